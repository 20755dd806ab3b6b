"""The report of `ep-plan size`: the fewest nodes, why one less does not do, and the front of all plans made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from rich.console import Console
from rich.text import Text

from planner.capacity.pair import Pair
from planner.capacity.size import Answer, Point, Sizes, Wanted
from planner.inputs.units import format_bytes, format_count, format_number_of, format_percent, format_seconds
from planner.report.plots import Axes, Series, num_places, terminal_plot
from planner.report.style import plain_table

Least = Literal["gpus", "cost", "watts"]
_FRONT: Final = 12


@dataclass(frozen=True)
class Rates:
    """What a GPU costs and draws, by its name; `gpu` stands for any other."""

    per_hour: Mapping[str, float]
    watts: Mapping[str, float]

    def cost(self, gpu: str, count: int) -> float | None:
        """Per hour; None without a price."""
        one = self.per_hour.get(gpu, self.per_hour.get("gpu"))
        return None if one is None else one * count

    def power(self, gpu: str, count: int) -> float | None:
        """Watts; None if unknown."""
        one = self.watts.get(gpu, self.watts.get("gpu"))
        return None if one is None else one * count

    def worth(self, least: Least, answer: Answer) -> float:
        """What is to be least."""
        if answer.point is None:
            return float("inf")
        gpus = answer.point.gpus
        found = {"gpus": float(gpus), "cost": self.cost(answer.gpu, gpus), "watts": self.power(answer.gpu, gpus)}
        value = found[least]
        return float("inf") if value is None else value


def best_of(found: Sizes, rates: Rates, least: Least) -> Answer | None:
    """The answer with the least GPUs, cost or watts; of equals the first."""
    best = min(found.answers, key=lambda answer: rates.worth(least, answer))
    return None if best.point is None else best


def render_sizes(found: Sizes, rates: Rates, least: Least, console: Console) -> None:
    """Print answers, reasons and the front."""
    best = best_of(found, rates, least)
    console.print(Text(_wanted(found.wanted, found.phase), "bold"))
    console.print()
    _answers(found, rates, best, console)
    console.print()
    for answer in found.answers:
        console.print(_reason(answer))
    console.print()
    _front(found, console)
    series, axes = front_plot(found)
    if num_places(series) > 1:
        console.print()
        console.print(Text(terminal_plot(series, axes, console.width)))
    told = "not modelled: queueing, bursts, failures; every step finds its batch full"
    console.print(told, style="dim")


def _wanted(wanted: Wanted, phase: str) -> str:
    parts = [phase]
    if wanted.tokens_per_s is not None:
        parts.append(f"{format_count(wanted.tokens_per_s)} tokens/s")
    if wanted.sequences is not None:
        parts.append(f"{format_number_of(wanted.sequences, 'sequence')} at once")
    unit = "per output token" if phase == "decode" else "per step"
    if wanted.max_step_s is not None:
        parts.append(f"at most {format_seconds(wanted.max_step_s)} {unit}")
    if wanted.max_ttft_s is not None:
        parts.append(f"first token after at most {format_seconds(wanted.max_ttft_s)}")
    return ", ".join(parts)


def _answers(found: Sizes, rates: Rates, best: Answer | None, console: Console) -> None:
    columns = ["nodes", "GPUs", "split", "time", "tokens/s", "per GPU", "memory"]
    priced, powered = bool(rates.per_hour), bool(rates.watts)
    columns += ["per hour"] * priced + ["watts"] * powered
    table = plain_table("kind", *columns, right=(1, 2, *range(4, len(columns) + 1)))
    for answer in found.answers:
        point = answer.point
        if point is None or point.figures is None or point.time_s is None:
            table.add_row(answer.kind, f"> {answer.looked_at}", *("-" for _ in columns[1:]))
            continue
        cost, power = rates.cost(answer.gpu, point.gpus), rates.power(answer.gpu, point.gpus)
        extra = ["-" if cost is None else f"{cost:,.2f}"] * priced
        extra += ["-" if power is None else f"{power:,.0f}"] * powered
        table.add_row(
            answer.kind,
            str(point.nodes),
            str(point.gpus),
            f"{point.figures.split}, {format_number_of(point.tokens_per_gpu, 'token')} per GPU",
            format_seconds(point.time_s),
            format_count(point.figures.tokens_per_s),
            format_count(point.figures.tokens_per_s_per_gpu),
            format_percent(point.figures.fullest_gpu, 0),
            *extra,
            style="green" if answer is best else None,
        )
    console.print(table)


def _reason(answer: Answer) -> str:
    less = answer.one_less
    if answer.point is None:
        why = less.why_not if less is not None else ""
        return f"{answer.kind}: up to {format_number_of(answer.looked_at, 'node')} do not do: {why}"
    if less is None:
        return f"{answer.kind}: a single node does"
    return f"{answer.kind}: {format_number_of(less.nodes, 'node')} would not do: {less.why_not}"


def _front(found: Sizes, console: Console) -> None:
    front = found.front
    if not front:
        return
    columns = ("no plan made beats", "tokens/s per GPU", "time", "GPUs", "tokens per GPU", "split")
    table = plain_table(*columns, right=(1, 2, 3, 4))
    for point in front[:_FRONT]:
        assert point.figures is not None and point.time_s is not None, "the front can run"  # noqa: PT018
        table.add_row(
            point.kind,
            format_count(point.figures.tokens_per_s_per_gpu),
            format_seconds(point.time_s),
            str(point.gpus),
            f"{point.tokens_per_gpu:,}",
            point.figures.split,
        )
    console.print(table)


def front_plot(found: Sizes) -> tuple[list[Series], Axes]:
    """All plans made by kind, and the front."""
    series = []
    for kind in dict.fromkeys(point.kind for point in found.points):
        mine = [point for point in found.points if point.kind == kind and point.figures is not None]
        if mine:
            series.append(_series(kind, mine, joined=False))
    if len(found.front) > 1:
        series.append(_series("front", found.front, joined=True))
    return series, Axes("time per token [ms]" if found.phase == "decode" else "step [ms]", "tokens/s per GPU")


def _series(name: str, points: Sequence[Point], *, joined: bool) -> Series:
    known = [(point.time_s, point.figures.tokens_per_s_per_gpu) for point in points if point.figures and point.time_s]
    return Series(name, [time_s * 1e3 for time_s, _ in known], [rate for _, rate in known], joined)


def sizes_json(found: Sizes, rates: Rates, least: Least) -> dict[str, Any]:
    """The same as plain data."""
    best = best_of(found, rates, least)
    answers = []
    for answer in found.answers:
        gpus = answer.point.gpus if answer.point else 0
        cost, power = rates.cost(answer.gpu, gpus), rates.power(answer.gpu, gpus)
        answers.append(asdict(answer) | {"per_hour": cost, "watts": power} if gpus else asdict(answer))
    return {
        "schema": "ep-plan/size/1",
        "phase": found.phase,
        "wanted": asdict(found.wanted),
        "least": least,
        "best": None if best is None else best.kind,
        "answers": answers,
        "front": [asdict(point) for point in found.front],
        "points": [asdict(point) for point in found.points],
    }


# --- prefill and decode -----------------------------------------------------------------------------


def render_pairs(pairs: Sequence[Pair], console: Console) -> None:
    """Print both phases for each kind, the transfer between them, and both on one machine."""
    for one in pairs:
        console.print(Text(one.kind, "bold"))
        table = plain_table("", "nodes", "GPUs", "split", "time", "tokens/s", right=(1, 2, 4, 5))
        for name, answer in (("prefill", one.prefill), ("decode", one.decode)):
            _pair_row(table, name, answer.point, answer.point.time_s if answer.point else None)
        _pair_row(table, "both in turn", one.aggregated.point, one.aggregated.time_s)
        console.print(table)
        for name, answer in (("prefill", one.prefill), ("decode", one.decode)):
            console.print(f"{name}: {_reason(answer).partition(': ')[2]}")
        if one.transfer is not None and one.ttft_s is not None:
            moved = one.transfer
            size = f"{format_bytes(moved.bytes)}, {format_seconds(moved.seconds)} over {moved.level}"
            part = format_percent(moved.link_share)
            console.print(f"KV cache of a request: {size}; all need {part} of what prefill's GPUs can send")
            console.print(f"first token after {format_seconds(one.ttft_s)}: {_until_first(one.prefill.point)}")
        together = one.aggregated
        if together.point is not None:
            console.print(f"in turn: prefill takes {format_percent(together.prefill_share)} of the time")
        else:
            looked = format_number_of(together.looked_at, "node")
            console.print(f"in turn: up to {looked} do not do: {together.why_not}")
        console.print()
    console.print("means only; not modelled: queueing, bursts, failures", style="dim")


def _until_first(point: Point | None) -> str:
    """What comes before the first token."""
    figures = None if point is None else point.figures
    if figures is None or figures.time_to_first_token_s is None:
        return "prefill, then the transfer"
    steps = round(figures.time_to_first_token_s / figures.step_s)
    return f"{format_number_of(steps, 'step')} of prefill, then the transfer"


def _pair_row(table: Any, name: str, point: Point | None, time_s: float | None) -> None:
    if point is None or point.figures is None or time_s is None:
        table.add_row(name, *"-----")
        return
    cells = (str(point.nodes), str(point.gpus), point.figures.split, format_seconds(time_s))
    table.add_row(name, *cells, format_count(point.figures.tokens_per_s))


def pairs_json(pairs: Sequence[Pair]) -> dict[str, Any]:
    """The same as plain data."""
    return {"schema": "ep-plan/pair/1", "pairs": [asdict(one) for one in pairs]}
