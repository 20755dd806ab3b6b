"""Runs all comparisons, prints their tables, and writes docs/accuracy.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from benchmarks.accuracy import communication, published, skew
from benchmarks.accuracy.compute import (
    FOLLOWS,
    SOURCE,
    ComputeFits,
    fit_compute,
    profile_blocks,
    reference_rows,
    stray_rows,
)
from benchmarks.accuracy.plot import plot_residuals
from benchmarks.accuracy.points import read_points

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


def run(data: Path | None, console: Console, *, show_fits: bool = False) -> None:
    """Fit, judge, print, and write the page; or print what belongs into the profiles."""
    if data is None:
        console.print("accuracy: needs --data (silicon/ with the kernel tables)")
        return
    fits = fit_compute(read_points(data / "silicon"))
    travel = communication.fit_communication(data / "silicon")
    if show_fits:
        for name, block in profile_blocks(fits):
            console.print(f"# {name}", style="bold", markup=False)
            console.out(block, highlight=False)
        for line in communication.profile_lines(travel):
            console.out(line, highlight=False)
        return
    sections = [*compute_sections(fits), _communication_section(travel), _skew_section(), *_published_sections(data)]
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


def compute_sections(fits: ComputeFits) -> Sequence[Section]:
    """Compute kernels: those in the profiles, and those that do not follow the form."""
    headers = ("work", "format", "GPU", "kernel", "measured", "fitted", "held out", "carried over", "owed held out")
    words = (
        'One curve of three to six numbers for each GPU, kind of work and number format (model.md, "Compute"), in '
        "`profiles/gpus/`; GPUs without one use the curve fitted over all of them (`profiles/efficiency.yaml`). Of "
        "several kernels measured, the profile has a fast one that follows the form. A dash: one shape or one GPU only."
    )
    strays = (
        f"Kernels of which half the measurements are not met within {FOLLOWS:.0%}. No profile rests on them; a GPU "
        "that runs one of them is mispredicted by as much. They choose among implementations by size (min-latency "
        "kernels), or are tuned for few shapes."
    )
    short = ("work", "format", "GPU", "kernel", "fitted", "held out")
    picture = f"![predicted over measured time of these kernels]({_PICTURE})"
    return (
        Section("Compute kernels", words, headers, tuple(reference_rows(fits))),
        Section("Kernels that do not follow the form", strays, short, tuple(stray_rows(fits)), picture),
    )


def _skew_section() -> Section:
    words = (
        "DeepSeek-V3 in fp8 blocks on 32 H200 ranks, 16,384 tokens: time of the most loaded rank from its rows "
        "(AIConfigurator's wide-EP tables for TensorRT-LLM, which no fit has used)."
    )
    headers = ("layout", "rows on that rank", "measured", "predicted", "error")
    return Section("Skew", words, headers, tuple(skew.rows()))


def _communication_section(found: Sequence[communication.Judged]) -> Section:
    words = (
        'Constants of the kernel profiles (model.md, "Traffic" and "Collectives"). *Held out*: on a model shape (one '
        "node), a number of nodes or ranks, or an operation and number of ranks (NCCL) that was left out. All "
        "collectives of NCCL share four numbers. Its all-to-all follows the same soft form; plans take it as linear, "
        "because the placement decides its bytes. DeepEP's normal kernels were measured on 2 and 4 nodes (the rows "
        "of 8 look congested), so each is predicted from the other."
    )
    headers = ("library", "where", "GPU", "measured", "fitted", "held out", "owed held out")
    return Section("Communication", words, headers, tuple(communication.rows(found)))


def _published_sections(data: Path) -> tuple[Section, ...]:
    words = (
        "Steps of DeepSeek-V3 from published throughput (published_cases.json names the sources), with balanced ranks: "
        "the sources served EPLB's layout on real traffic, or simulated perfect balance. One path, no constant of a "
        "single case; the share of traffic that hides behind other work (70 %) rests on these very cases, so they are "
        "no hold-out for it. Cases that leave out batch or context cannot be predicted and are not here."
    )
    headers = ("case", "measured", "predicted", "error")
    steps = Section("Published steps", words, headers, tuple(published.rows(data)))
    travel = (
        "One dispatch and one combine of DeepSeek-V3 with the shipped profiles, measured / predicted. DeepEP's rows "
        "are of a version that sent by RDMA even inside the node, which later ones do not; the H100 rows took part in "
        "the fit; the one-sided ones are of a router that sends each token to eight different ranks, where uniform "
        "choice visits fewer."
    )
    columns = ("library, node", "EP", "tokens per GPU", "dispatch", "error", "combine", "error")
    exchanges = Section("Published exchanges", travel, columns, tuple(published.exchange_rows(data)))
    asked = ("question", "measured", "predicted", "sign")
    ranking = Section("Which is faster", "Time without over time with.", asked, tuple(published.ranking_rows(data)))
    return steps, exchanges, ranking
