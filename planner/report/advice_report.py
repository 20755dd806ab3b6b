"""The report of `ep-plan advise`; the same lines stand at the end of `ep-plan trace info`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from planner.capacity.advise import Advice, DriftWatch
from planner.capacity.verdict import Schedule, Verdict, saved_text
from planner.inputs.units import format_number_of, format_percent, format_seconds
from planner.report.style import plain_table

ANSWERS: Final = {
    "recommended": ("recommended", "green"),
    "not_worth_it": ("not worth it", "yellow"),
    "insufficient_evidence": ("insufficient evidence", "yellow"),
}
_STATES: Final = {
    "good": ("still good", "green"),
    "stale": ("gone stale", "red"),
    "insufficient_evidence": ("insufficient evidence", "yellow"),
}


def render_advice(found: Advice, console: Console) -> None:
    """Print the verdict, and how often to place anew."""
    table = verdict_table(found.verdict)
    for number, line in enumerate(_engine_lines(found.engine)):
        table.add_row("" if number else Text("EPLB", "bold"), Text(line))
    copies = found.group.slots - found.num_experts
    ranks, redundant = format_number_of(found.group.ranks, "rank"), format_number_of(copies, "redundant expert")
    windows, layers = format_number_of(found.windows, "window"), format_number_of(found.layers, "layer")
    table.add_row(
        "", Text(f"judged for {ranks} with {redundant}, on {windows} of {found.tokens:,} tokens, {layers}", "dim")
    )
    table.add_row("", Text(f"{found.how}; net benefit unknown: no step was timed", "dim"))
    console.print(table)
    if found.verdict.schedules:
        console.print()
        console.print(_schedules(found.verdict))


def _engine_lines(verdict: Verdict) -> Iterator[str]:
    """The same for the placement that engines make by themselves."""
    yield ANSWERS[verdict.answer][0]
    yield from how_lines(verdict)
    yield f"static holds: {verdict.static_holds}; {verdict.static_reason}"


def verdict_table(verdict: Verdict) -> Table:
    """The answer, its reasons, how to balance, and whether a static plan holds."""
    word, colour = ANSWERS[verdict.answer]
    table = plain_table("", "")
    table.columns[0].no_wrap = True
    table.add_row(Text("balancing", "bold"), Text(word, f"bold {colour}"))
    for reason in verdict.reasons:
        table.add_row("", Text(reason))
    for line in how_lines(verdict):
        table.add_row("", Text(line))
    table.add_row(Text("static plan", "bold"), Text(f"holds: {verdict.static_holds}; {verdict.static_reason}"))
    return table


def how_lines(verdict: Verdict) -> Iterator[str]:
    """How to balance, if that is recommended."""
    if verdict.how == "static":
        yield "how: place once"
    if verdict.every is not None:
        kept = f"that saves {saved_text(verdict.every.trial)} than the linear layout"
        yield f"how: place anew every {_windows(verdict.every)}; {kept}"


def _schedules(verdict: Verdict) -> Table:
    table = plain_table("placed anew every", "peak work saved", "less in", right=(1, 2))
    for one in verdict.schedules:
        table.add_row(*_schedule(one), style="green" if one == verdict.every else None)
    return table


def _windows(one: Schedule) -> str:
    return f"{one.windows:g} window{'' if one.windows == 1 else 's'}"


def _schedule(one: Schedule) -> tuple[str, str, str]:
    better = round(one.trial.better_part * len(one.trial.judged))
    return _windows(one), format_percent(one.trial.mean_saved), f"{better} of {len(one.trial.judged)}"


def render_watch(found: DriftWatch, console: Console) -> None:
    """Print whether the plan in force still holds."""
    word, colour = _STATES[found.state]
    table = plain_table("", "")
    table.columns[0].no_wrap = True
    table.add_row(Text("plan in force", "bold"), Text(word, f"bold {colour}"))
    error = "" if found.error is None else f" (standard error {format_percent(found.error, 2)})"
    where = "the windows that it is made from" if found.error is None else "unseen windows"
    saves = f"placing anew would save {format_percent(found.stale)} of a step on {where}{error}"
    table.add_row("", f"{saves}; threshold {format_percent(found.threshold)}")
    booked = "-" if found.booked_max_over_mean is None else f"{found.booked_max_over_mean:.3f}"
    table.add_row("", f"max/mean {found.max_over_mean:.3f}, booked {booked}")
    steps = f"step {format_seconds(found.step_s)}, booked {format_seconds(found.booked_step_s)}"
    table.add_row("", f"{steps}; on {format_number_of(found.windows, 'window')}")
    console.print(table)


def advice_json(advice: Advice | None, watch: DriftWatch | None) -> dict[str, Any]:
    """The same as plain data."""
    data: dict[str, Any] = {"schema": "ep-plan/advice/1", "advice": None, "watch": asdict(watch) if watch else None}
    if advice is not None:
        data["advice"] = asdict(advice) | {"paths": [str(path) for path in advice.paths]}
    return data
