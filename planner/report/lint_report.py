"""The report of `ep-plan lint-launch`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.text import Text

from planner.export.lint.run import Linted
from planner.inputs.units import format_number_of
from planner.report.style import plain_table

_WHAT = {
    "fatal": "the engine does not start, or not with these ranks",
    "ignored": "has no effect",
    "coerced": "becomes something else",
    "risk": "starts, and may answer wrongly",
    "note": "nothing wrong",
}
_STYLES = {"fatal": "red", "ignored": "yellow", "coerced": "yellow", "risk": "magenta", "note": "dim"}


def render_linted(linted: Linted, console: Console, *, verbose: bool = False) -> None:
    """The grid that the engine makes, and every remark with its source."""
    grid = linted.grid
    degrees = f"tp={grid.tp} pp={grid.pp} dp={grid.dp} ep={grid.ep} etp={grid.etp} edp={grid.edp}"
    console.print(Text(f"{linted.engine} {linted.version} makes {degrees}: {format_number_of(grid.gpus, 'GPU')}"))
    if linted.remarks:
        table = plain_table("", "flag", "what happens")
        table.columns[0].no_wrap = table.columns[1].no_wrap = True
        for remark in linted.remarks:
            source = f" ({remark.source})" if remark.source else ""
            message = Text(remark.message)
            message.append(source, "dim")
            table.add_row(Text(remark.level, _STYLES[remark.level]), Text(remark.flag), message)
        console.print(table)
    levels = dict.fromkeys(remark.level for remark in linted.remarks)
    for level in levels if verbose else ():
        console.print(Text(f"{level}: {_WHAT[level]}", "dim"))
    if linted.not_examined:
        console.print(Text(f"not examined: {', '.join(linted.not_examined)}", "dim"))
    if linted.is_good:
        console.print("no flag is refused, ignored or changed")


def linted_json(linted: Linted) -> dict[str, Any]:
    """The same as plain data."""
    return {
        "schema": "ep-plan/lint/1",
        "engine": linted.engine,
        "version": linted.version,
        "grid": {**asdict(linted.grid), "gpus": linted.grid.gpus},
        "good": linted.is_good,
        "remarks": [asdict(remark) for remark in linted.remarks],
        "not_examined": list(linted.not_examined),
    }
