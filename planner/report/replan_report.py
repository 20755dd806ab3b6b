"""The report of `ep-plan replan`: what to move, in what order, and whether it pays."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final

from rich.console import Console
from rich.text import Text

from planner.capacity.migration import Migration
from planner.capacity.replan import Replan
from planner.inputs.units import format_bytes, format_number_of, format_seconds
from planner.report.style import plain_table

_LAYERS: Final = 8
_EXPERTS: Final = 4
_WHY: Final = {
    "nothing": "",
    "gains": "pays",
    "too_few_windows": "too few windows to judge on",
    "chance": "no more than chance",
    "small": "gains too little",
    "costs_more": "costs more than it gains",
}


def render_replan(found: Replan, console: Console, *, verbose: bool = False) -> None:
    """Print the recommendation, all answers, and the moves."""
    best = found.answers[found.best]
    if best.moves:
        told = f"move {format_number_of(best.moves, 'expert')}"
        pays = f"{format_seconds(best.net_s)} gained in {format_seconds(found.interval_s)}"
        console.print(Text(f"{told}: {pays}, pays after {_seconds(best.break_even_s)}", "bold green"))
    else:
        console.print(Text("do nothing", "bold"))
        console.print(_reason(found))
    console.print()
    _answers(found, console, verbose)
    if best.moves:
        console.print()
        _moves(found.migrations[found.best], console, verbose)
    how = "each half of them judges what the other half planned" if found.windows > 1 else "nothing to judge on"
    console.print(f"{format_number_of(found.windows, 'window')}; {how}; serving waits while a layer moves", style="dim")


def _reason(found: Replan) -> str:
    tried = [answer for answer in found.answers if answer.moves]
    if not tried:
        return "no placement is faster on this trace"
    nearest = max(tried, key=lambda answer: answer.net_s)
    return f"the most promising, {format_number_of(nearest.moves, 'move')}: {_WHY[nearest.why]}"


def _answers(found: Replan, console: Console, verbose: bool) -> None:
    columns = ("moves", "step", "unseen windows", "gained", "moving takes", "net", "pays after", "")
    table = plain_table(*columns, right=range(7))
    for index, answer in enumerate(found.answers):
        if not (verbose or index in (0, found.best, len(found.answers) - 1) or _is_round(answer.moves)):
            continue
        name = "nothing" if not answer.moves else f"{answer.moves:,}"
        table.add_row(
            name,
            format_seconds(answer.step_s),
            _seconds(answer.judged_s),
            format_seconds(answer.gained_per_interval_s),
            format_seconds(answer.migration_s),
            format_seconds(answer.net_s),
            _seconds(answer.break_even_s) if answer.moves else "-",
            _WHY[answer.why],
            style="green" if index == found.best else None,
        )
    console.print(table)


def _is_round(moves: int) -> bool:
    return moves > 0 and moves & (moves - 1) == 0


def _moves(moved: Migration, console: Console, verbose: bool) -> None:
    bytes_text = ", ".join(f"{format_bytes(count)} over {level}" for level, count in moved.bytes_by_level.items())
    room = f"at most {format_bytes(moved.received_bytes)} besides on a GPU"
    console.print(f"{bytes_text}; {room}")
    table = plain_table("in this order", "takes", "expert: from rank > to rank", right=(1,))
    shown = moved.layers if verbose else moved.layers[:_LAYERS]
    for layer in shown:
        parts = [f"{one.expert}: {one.source} > {one.target}" for one in layer.transfers]
        more = f" and {len(parts) - _EXPERTS} more" if len(parts) > _EXPERTS and not verbose else ""
        listed = ", ".join(parts if verbose else parts[:_EXPERTS]) + more
        table.add_row(f"layer {layer.layer}", format_seconds(layer.seconds), listed)
    console.print(table)
    if len(shown) < len(moved.layers):
        console.print(f"and {len(moved.layers) - len(shown)} more layers (-v)", style="dim")


def _seconds(value: float | None) -> str:
    return "-" if value is None else format_seconds(value)


def replan_json(found: Replan) -> dict[str, Any]:
    """The same as plain data, every transfer of every answer included."""
    answers = [
        asdict(answer) | {"migration": _migration(moved)}
        for answer, moved in zip(found.answers, found.migrations, strict=True)
    ]
    head = {"interval_s": found.interval_s, "windows": found.windows, "best": found.best}
    return {"schema": "ep-plan/replan/1", **head, "answers": answers}


def _migration(moved: Migration) -> dict[str, Any]:
    return {
        "bytes_by_level": moved.bytes_by_level,
        "received_bytes": moved.received_bytes,
        "layers": [asdict(layer) for layer in moved.layers],
    }
