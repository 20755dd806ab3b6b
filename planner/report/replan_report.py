"""The report of `ep-plan replan`: what to move, in what order, and whether it pays."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final

from rich.console import Console
from rich.text import Text

from planner.capacity.migration import Migration, MoveRound
from planner.capacity.replan import FOLDS, Replan
from planner.inputs.units import format_bytes, format_number_of, format_seconds
from planner.report.style import plain_table

_LAYERS: Final = 8
_EXPERTS: Final = 4
_PARTS: Final = {2: "half", 3: "third", 4: "quarter"}
_WHY: Final = {
    "nothing": "",
    "gains": "pays",
    "too_few_windows": "too few windows to judge on",
    "chance": "no more than chance",
    "small": "gains too little",
    "costs_more": "costs more than it gains",
    "no_room": "no room for old and new experts at once",
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
    part = _PARTS.get(min(FOLDS, found.windows))
    how = f"each {part} of them judges what the others planned" if part else "nothing to judge on"
    console.print(f"{format_number_of(found.windows, 'window')}; {how}; serving waits while a layer moves", style="dim")


def _reason(found: Replan) -> str:
    if not any(answer.moves for answer in found.answers):
        if found.budget == 0:
            return "no move is allowed (--budget 0)"
        within = "" if found.budget is None else f" within {format_number_of(found.budget, 'move')}"
        return f"no placement{within} is faster on this trace"
    index = max(range(len(found.answers)), key=lambda one: (found.answers[one].moves > 0, found.answers[one].net_s))
    nearest, lacking = found.answers[index], found.migrations[index].lacking_bytes
    more = f", {format_bytes(lacking)} more would have to be free on a GPU" if lacking else ""
    return f"the most promising, {format_number_of(nearest.moves, 'move')}: {_WHY[nearest.why]}{more}"


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
    console.print(f"{bytes_text}; {_room(moved)}")
    table = plain_table("in this order", "takes", "expert: from rank > to rank", right=(1,))
    shown = moved.layers if verbose else moved.layers[:_LAYERS]
    for layer in shown:
        several = len(layer.rounds) > 1
        for number, part in enumerate(layer.rounds, start=1):
            name = f"layer {layer.layer}" + (f", round {number}" if several else "")
            table.add_row(name, format_seconds(part.seconds), _round(part, verbose))
    console.print(table)
    if len(shown) < len(moved.layers):
        console.print(f"and {format_number_of(len(moved.layers) - len(shown), 'more layer')} (-v)", style="dim")


def _room(moved: Migration) -> str:
    """The most that GPUs hold besides, and on how many ranks."""
    extra = {rank: num for layer in moved.layers for rank, num in enumerate(layer.extra_bytes_R) if num}
    told = f"at most {format_bytes(moved.received_bytes)} besides on a GPU"
    rounds = sum(len(layer.rounds) for layer in moved.layers)
    more = f", in {format_number_of(rounds, 'round')} as memory is short" if rounds > len(moved.layers) else ""
    return f"{told}, on {format_number_of(len(extra), 'rank')}{more}"


def _round(part: MoveRound, verbose: bool) -> str:
    parts = [f"{one.expert}: {one.source} > {one.target}" for one in part.transfers]
    more = f" and {len(parts) - _EXPERTS} more" if len(parts) > _EXPERTS and not verbose else ""
    gone = ", ".join(f"{expert} on {rank}" for expert, rank in part.gives_way)
    told = f"; {gone} dropped before" if gone and verbose else ""
    return ", ".join(parts if verbose else parts[:_EXPERTS]) + more + told


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
        "lacking_bytes": moved.lacking_bytes,
        "layers": [
            asdict(layer)
            | {
                "transfers": [asdict(one) for one in layer.transfers],
                "seconds": layer.seconds,
                "received_bytes": layer.received_bytes,
            }
            for layer in moved.layers
        ],
    }
