"""Runs all comparisons, prints their tables, and writes docs/accuracy.md."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.accuracy import balance, communication, exchanges, left_out, published, rankings, skew
from benchmarks.accuracy.compute import (
    FAMILIES,
    SOURCE,
    ComputeFits,
    carried_rows,
    fastest_rows,
    fit_compute,
    reference_rows,
    short_prompt_rows,
    stray_rows,
)
from benchmarks.accuracy.plot import plot_residuals
from benchmarks.accuracy.points import SHORTEST_PROMPT, Points, read_points
from benchmarks.accuracy.profiles import write_profiles
from benchmarks.accuracy.published import Outcome

DOCS: Final = Path(__file__).resolve().parents[2] / "docs"
_PICTURE: Final = "images/accuracy-strays.png"


@dataclass(frozen=True)
class Section:
    """A heading, words, and a table."""

    title: str
    words: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    after: str = ""

    def markdown(self) -> str:
        """As part of the page."""
        lines = [f"| {' | '.join(self.headers)} |", "|" + " --- |" * len(self.headers)]
        lines += [f"| {' | '.join(row)} |" for row in self.rows]
        blocks = [f"## {self.title}", self.words, "\n".join(lines), self.after]
        return "\n\n".join(block for block in blocks if block)

    def table(self) -> Table:
        """For the terminal."""
        table = Table(title=self.title, title_justify="left", box=None)
        for header in self.headers:
            table.add_column(header)
        for row in self.rows:
            table.add_row(*row)
        return table


def run(data: Path | None, console: Console, *, write_fits: bool = False) -> None:
    """Fit, judge, print, and write the page; first write the curves into the profiles, if so asked."""
    if data is None:
        console.print("accuracy: needs --data (silicon/ with the kernel tables)")
        return
    fits = fit_compute(read_points(data / "silicon"))
    travel = communication.fit_communication(data / "silicon")
    if write_fits:
        for path in write_profiles(fits):
            console.print(f"wrote {path.name}")
        for line in communication.profile_lines(travel):
            console.out(line, highlight=False)
    every = read_points(data / "silicon", shortest=1)
    sections = [
        *compute_sections(fits, every),
        _communication_section(travel),
        _skew_section(),
        *_published_sections(data),
    ]
    for section in sections:
        console.print(section.table())
        console.print()
    plot_residuals([one for one in fits.kernels if not one.follows], DOCS / _PICTURE)
    (DOCS / "accuracy.md").write_text(page(sections), encoding="utf-8", newline="\n")
    console.print("wrote docs/accuracy.md")


_HEAD: Final = f"""\
<!-- Written by `python -m benchmarks accuracy --data FOLDER`. -->

# How good are the predictions

Errors are absolute and relative to the measurement, median / 90th percentile in per cent. *Fitted*: on the measurements
of the fit. *Held out*: on model shapes (experts), matrix shapes (GEMM) or head counts (attention) that were left out of
it. *Carried over*: on a GPU that no fit has seen, from its datasheet alone. Kernel measurements: {SOURCE}.
"""


def page(sections: Iterable[Section]) -> str:
    """docs/accuracy.md."""
    return "\n\n".join([_HEAD.rstrip(), *(section.markdown() for section in sections)]) + "\n"


def compute_sections(fits: ComputeFits, every: Sequence[Points]) -> Sequence[Section]:
    """Compute kernels: those in the profiles, what is carried over, and kernels that do not follow the form.

    Args:
        fits: everything fitted.
        every: all measurements, those of the shortest prompts included.
    """
    headers = ("work", "format", "GPU", "kernel", "measured", "fitted", "held out", "owed", "excellent")
    words = (
        'A curve of five or six numbers for each GPU, kind of work, number format and kernel (model.md, "Compute"), in '
        "`profiles/gpus/`. *Owed* and *excellent* are targets for held-out errors of so small a form. A dash: one "
        "shape only, or no target. Where a table has several times for the same work of one kernel, the least counts. "
        "Held-out errors flatter, because more than the numbers was chosen by them: the forms (8 tried for GEMM; 11 "
        "and 8 for prefill attention with grouped and latent heads, 15 and 7 for decode; 5 for experts), and the "
        "kernels of a profile. Times below those of light were left out: of DeepSeek-V3's experts on one rank, whose "
        "router touched fewer of them than the table says, and of decode attention where the GPU's cache holds it all "
        "(A100) or arithmetic was narrower (GB200)."
    )
    least = (
        "Engines run the fastest kernel, so predictions are the least of a profile's curves. Of the kernels measured "
        "on a GPU the profile has as few as that takes: one is added at a time, while the worse of median and 90th "
        "percentile, as parts of what is owed, falls by a twentieth. A kernel of which more than a twelfth of the "
        "measurements is faster than light is not believed; one that was mostly measured on works of its own is taken "
        "if it follows the form. TensorRT-LLM has no kernels but its own, so with it these alone count, and profiles "
        "have them. *Works*: those that two kernels or more were measured on. *Held out*: the least of the curves, "
        "fitted to other shapes, against the least time measured. *Bias*: median of the signed errors. Experts run one "
        "kernel on all ranks: the one by which a layer is done first."
    )
    brief = (
        f"Prompts shorter than {SHORTEST_PROMPT} tokens took no part in the fits above: they were taken out after "
        "looking at their errors, because a tile of 128 queries is then mostly empty, and the form leaves that out "
        '(model.md, "Dense work"). *Short*: errors of the profile\'s curve on them. *Held out, all*: of curves fitted '
        "to all prompts, short ones included."
    )
    carried = (
        f"GPUs without a curve of their own use those of `profiles/efficiency.yaml`: of a kernel that follows the form "
        f"on {FAMILIES[0]} GPUs or more; on {FAMILIES[1]}, where none of these carries over within what is owed; or "
        "else of the kernels that the profiles have. Errors are on a GPU left out of the fit, of which only the "
        "datasheet is used; they grow where another kernel runs there, and say less where all GPUs are of one "
        "architecture. Nothing is said about formats measured on one GPU (nvfp4). Of several such kernels the one that "
        "carries over best was taken, which flatters, too."
    )
    strays = (
        "Kernels that miss what is owed on shapes held out (without a target: median 18 %, p90 40 %). Profiles have "
        "them only where they are the fastest by more than they are missed; an engine that runs one of the others is "
        "mispredicted by as much. They choose among implementations by size, or are tuned for few shapes. *Time*: over "
        "the least of the profile's curves on the same work, geometric mean; below 1 the kernel is the faster one. "
        "*Beyond light*: measurements faster than light. A dash: no kernel of the GPU follows the form."
    )
    short = ("work", "format", "GPU", "kernel", "fitted", "held out", "time", "beyond light")
    several = ("work", "format", "GPU", "kernels", "works", "held out", "bias", "owed")
    picture = f"![predicted over measured time of these kernels]({_PICTURE})"
    briefly = ("format", "GPU", "kernel", "short prompts", "short", "held out, all", "owed")
    over = ("work", "format", "GPU left out", "kernel", "carried over", "owed")
    return (
        Section("Compute kernels", words, headers, tuple(reference_rows(fits))),
        Section("The fastest kernels", least, several, tuple(fastest_rows(fits))),
        Section("Short prompts", brief, briefly, tuple(short_prompt_rows(fits, every))),
        Section("Compute kernels, carried over", carried, over, tuple(carried_rows(fits))),
        Section("Kernels that do not follow the form", strays, short, tuple(stray_rows(fits)), picture),
    )


def _skew_section() -> Section:
    words = (
        "DeepSeek-V3 in fp8 blocks on 32 H200 ranks, 16,384 tokens: time of the most loaded rank from its rows "
        "(AIConfigurator's wide-EP tables for TensorRT-LLM, which no fit has used), by TensorRT-LLM's kernels."
    )
    headers = ("layout", "rows on that rank", "measured", "predicted", "error")
    return Section("Skew", words, headers, tuple(skew.rows()))


def _communication_section(found: Sequence[communication.Judged]) -> Section:
    words = (
        'Constants of the kernel profiles (model.md, "Traffic" and "Collectives"). *Held out*: on a model shape (one '
        "node), a number of nodes or ranks, or an operation and number of ranks (NCCL) that was left out. All "
        "collectives of NCCL share six numbers; engines' small all-reduces are the faster of two algorithms. GB200 was "
        "measured with 2 and 4 ranks alone, so that one has to tell the other. The all-to-alls of all GPUs share the "
        "time of a doubling of the ranks. DeepEP's normal kernels were measured "
        "on 2 and 4 nodes (the rows of 8 look congested), so each is predicted from the other."
    )
    headers = ("library", "where", "GPU", "measured", "fitted", "held out", "owed held out")
    return Section("Communication", words, headers, tuple(communication.rows(found)))


@dataclass(frozen=True)
class _Judged:
    """Every published case that is predicted."""

    steps: Sequence[tuple[published.Case, Outcome]]
    flat: Sequence[tuple[published.Case, Outcome]]
    exchanges: Sequence[tuple[exchanges.Exchange, list[Outcome]]]
    drawn: Sequence[tuple[skew.Drawn, Outcome]]
    gains: Sequence[tuple[balance.Gain, Outcome]]
    spreads: Sequence[tuple[balance.Spread, str, Outcome]]
    answers: Sequence[rankings.Answer]

    @property
    def cases(self) -> set[str]:
        """Ids that the tables show."""
        found = [outcome for _, outcome in (*self.steps, *self.flat, *self.drawn, *self.gains)]
        found += [outcome for _, outcomes in self.exchanges for outcome in outcomes]
        found += [outcome for _, _, outcome in self.spreads]
        return {outcome.case for outcome in found} | {answer.case for answer in self.answers}

    def summary(self) -> Iterator[tuple[str, ...]]:
        """What, cases, median error, share within 30 per cent."""
        decodes = [outcome for case, outcome in self.steps if case.phase == "decode"]
        kinds = (
            ("whole steps, all conditions given", [outcome for _, outcome in self.steps]),
            ("decode steps among them", decodes),
            ("prefill, batch not given", [outcome for _, outcome in self.flat]),
            ("dispatches and combines", [one for _, outcomes in self.exchanges for one in outcomes]),
            ("most loaded rank, loads drawn", [outcome for _, outcome in self.drawn]),
            ("gain by EPLB", [outcome for _, outcome in self.gains]),
            ("ranks' inequality", [outcome for _, _, outcome in self.spreads]),
        )
        every = [one for what, outcomes in kinds for one in outcomes if outcomes is not decodes]
        for what, outcomes in (*kinds, ("all figures", every)):
            errors = np.abs([outcome.error for outcome in outcomes])
            within = f"{(errors <= _WITHIN).mean():.0%}"
            yield what, f"{len(errors)}", f"{np.median(errors):.0%}", within, f"{errors.max():.0%}"
        right = sum(answer.right for answer in self.answers)
        yield "which is faster", f"{len(self.answers)}", "-", f"{right} of {len(self.answers)} right", "-"


_WITHIN: Final = 0.3


def _judge_published(data: Path) -> _Judged:
    cases = published.read_published(data)
    loads = balance.read_loads(data)
    gains = list(balance.gains(cases, loads))
    found = _Judged(
        steps=list(published.outcomes(published.CASES, cases)),
        flat=list(published.outcomes(published.FLAT_CASES, cases)),
        exchanges=list(exchanges.judged(cases)),
        drawn=list(skew.judged(cases)),
        gains=gains,
        spreads=list(balance.spreads(cases, loads)),
        answers=list(rankings.answers(cases, [gain for _, gain in gains], balance.loads_path(data))),
    )
    left_out.check(cases.keys(), found.cases)
    return found


def _published_sections(data: Path) -> tuple[Section, ...]:
    found = _judge_published(data)
    return (
        _summary_section(found),
        *_step_sections(found),
        _exchange_section(found),
        *_load_sections(found),
        _ranking_section(found),
        Section("Not predicted", _LEFT_OUT, ("case", "what it lacks"), tuple(left_out.rows())),
    )


def _summary_section(found: _Judged) -> Section:
    words = (
        "Every case of published_cases.json, which names the sources, is in one of the tables below, or in the last "
        "one with what it lacks. One path predicts all; no constant belongs to a case."
    )
    headers = ("what", "figures", "median error", "within 30 %", "largest")
    return Section("Published cases", words, headers, tuple(found.summary()))


def _step_sections(found: _Judged) -> tuple[Section, ...]:
    words = (
        "Steps of DeepSeek-V3 from published throughput, with balanced ranks: the sources served EPLB's layout on real "
        "traffic, or simulated perfect balance. The share of traffic that hides behind other work (50 %) rests on "
        "these very cases, so they are no hold-out for it. *mtp*: one draft token, of which the source assumes 60 % "
        "right; it simulated the attention of drafts by slower kernels."
    )
    headers = ("case", "measured", "predicted", "error")
    rows = tuple(published.step_row(*pair) for pair in found.steps)
    steps = Section("Published steps", words, headers, rows)
    flat = (
        "Prefill of DeepSeek-V3 whose batch is not given, at two batches between which one of the sources says that "
        "throughput is flat. Tokens per second and GPU; the error is that of the time. Half of the experts' weights "
        "of the ep=2 cases lie in host memory, which the sources say costs nothing. H20 takes the curves of H100 "
        "with the part of its compute rate that was measured for kernels on H20, not for this case (its profile)."
    )
    columns = ("case", "split", "tokens per GPU", "measured", "predicted", "error")
    rows = tuple(published.flat_row(*pair) for pair in found.flat)
    return steps, Section("Published prefill, batch not given", flat, columns, rows)


def _exchange_section(found: _Judged) -> Section:
    words = (
        "One dispatch and one combine of DeepSeek-V3 with the shipped profiles, measured / predicted. DeepEP's "
        "low-latency rows on H800 are of a version that sent by RDMA even inside the node, which later ones do not; "
        "the H100 rows took part in the fit; its normal kernels' times follow from the bandwidths and byte counts of "
        "its own tests, and tokens there use at most four nodes. The one-sided rows are of a router that sends each "
        "token to eight different ranks, where uniform choice visits fewer."
    )
    headers = ("library, node", "EP", "tokens per GPU", "format", "dispatch", "error", "combine", "error")
    rows = tuple(exchanges.row(*pair) for pair in found.exchanges)
    return Section("Published exchanges", words, headers, rows)


def _load_sections(found: _Judged) -> tuple[Section, ...]:
    words = (
        "DeepSeek-V3's experts in fp8 blocks, 32 ranks. Loads were drawn from a power law, once, and not kept; the "
        "prediction is the mean over draws of the same law, which scatter by 10 to 25 %. The H100 rows are SGLang's "
        "DeepGEMM, whose curve was fitted to its times of uniform loads; what skew costs by itself follows."
    )
    headers = ("case", "tokens", "exponent", "layout", "measured", "predicted", "error")
    drawn = tuple(skew.drawn_row(*pair) for pair in found.drawn)
    alone = "Times over those with uniform loads."
    columns = ("tokens", "exponent", "measured", "predicted", "error")
    pairs = skew.over_uniform(found.drawn)
    over = tuple(
        (f"{one.tokens:,}", f"{one.alpha:g}", f"x {ratio.measured:.2f}", f"x {ratio.predicted:.2f}", ratio.text)
        for one, ratio in pairs
    )
    spread = (
        "How unequal ranks are in decode, from DeepSeek-V3's recorded loads (another serving than the source's): "
        f"(max - mean) / mean of the rows of a step, and their deviation where the mean is {balance.ROWS:,}. Steps are "
        "drawn from the loads that EPLB saw; how the source's traffic drifted from one step to the next is not in it."
    )
    titles = ("layout", "figure", "measured", "predicted", "error")
    unequal = tuple(
        (one.layout, what, f"{of.measured:.3g}", f"{of.predicted:.3g}", of.text) for one, what, of in found.spreads
    )
    return (
        Section("Skew, loads drawn", words, headers, drawn),
        Section("Skew by itself", alone, columns, over),
        Section("Inequality of ranks", spread, titles, unequal),
    )


def _ranking_section(found: _Judged) -> Section:
    words = (
        "Time without over time with: above 1 what is asked for is faster. EPLB's gains are those of DeepSeek-V3's "
        "recorded loads, which are not the source's. GB200 and B200 are compared in decode alone, with three drafts of "
        "which 70 % are right (not given). The training cases are held against the forward pass, on machines with fast "
        "and slow networks, because theirs is not named."
    )
    headers = ("case", "question", "measured", "predicted", "sign")
    return Section("Which is faster", words, headers, tuple(answer.row() for answer in found.answers))


_LEFT_OUT: Final = "Cases without a prediction, each with the condition that is missing."
