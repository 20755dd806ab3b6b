"""The report of `ep-plan check`, for people and as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from planner.inputs.printable import printable
from planner.inputs.units import format_number_of
from planner.report.style import plain_table
from planner.review.checked import Checked
from planner.review.compare_golden import Compared
from planner.review.map_doctor import Balance

_MARKS = {"wrong": "red", "ok": "green", "new": "cyan"}
_SHOWN = 10


def render_checked(results: Sequence[Checked], console: Console, *, verbose: bool = False, quiet: bool = False) -> None:
    """One line per good file, all findings and the diff of the others.

    Args:
        results: what was found, file by file.
        console: where to print.
        verbose: also the diff of good files, and all findings.
        quiet: only files that are not good.
    """
    for result in results:
        if not (quiet and result.is_good):
            _file(result, console, verbose)
    if not quiet or not all(result.is_good for result in results):
        console.print(f"{sum(result.is_good for result in results)} of {len(results)} good")


def _file(result: Checked, console: Console, verbose: bool) -> None:
    written = result.compared is not None and result.compared.status in ("created", "renewed")
    mark = "wrong" if not result.is_good else "new" if written else "ok"
    findings, count = result.all_findings, len(result.all_findings)
    told = result.summary if result.is_good else f"{count} finding{'s' if count > 1 else ''}"
    line = Text(f"{mark:<6} ", _MARKS[mark]) + Text(printable(str(result.path)), "bold")
    _line(console, line + Text(f": {printable(told)}" if result.error is None else "", "default"))
    if result.error is not None:
        for problem in str(result.error).splitlines():
            _line(console, Text(printable(problem)))
    shown = findings if verbose else findings[:_SHOWN]
    for finding in shown:
        _line(console, Text(f"  {printable(finding)}"))
    if len(shown) < count:
        _line(console, Text(f"  and {count - len(shown)} more (-v)"))
    for note in result.all_notes:
        _line(console, Text(f"  {printable(note)}", "dim"))
    if result.balance is not None:
        _line(console, Text(f"  {_balance(result.balance)}"))
    if result.compared is not None:
        _compared(result.compared, console, verbose)


def _compared(compared: Compared, console: Console, verbose: bool) -> None:
    if compared.rows and (verbose or compared.status not in ("same", "as good")):
        console.print(_diff(compared))
    if verbose:
        for cause in compared.causes:
            for value in cause.values:
                _line(console, Text(f"    {printable(value)}", "dim"))
    if compared.to_do:
        _line(console, Text("  to do: ", "bold") + Text(printable(compared.to_do), "default"))


def _diff(compared: Compared) -> Table:
    table = plain_table("    what changed", "golden", "now", "", right=(1, 2))
    for row in compared.rows:
        cells = (f"    {row.what}", row.golden, row.now, row.change)
        table.add_row(*(Text(printable(cell)) for cell in cells))
    return table


def _line(console: Console, text: Text) -> None:
    """Long lines are not broken: they hold paths and commands to be copied."""
    console.print(text, soft_wrap=True)


def _balance(balance: Balance) -> str:
    return (
        f"max/mean {balance.max_mean:.3f} (linear without copies {balance.linear_max_mean:.3f}), "
        f"worst layer {balance.worst_layer} with {balance.worst:.3f}; balancedness {balance.balancedness:.3f}; "
        f"{format_number_of(balance.windows, 'window')}, copies share evenly"
    )


def checked_json(results: Sequence[Checked]) -> dict[str, Any]:
    """The same as plain data."""
    files = [
        {
            "path": str(result.path),
            "kind": result.kind,
            "good": result.is_good,
            "findings": list(result.all_findings),
            "problems": [str(problem) for problem in result.error.problems] if result.error else [],
            "notes": list(result.all_notes),
            "summary": result.summary,
            **({"golden": _golden_json(result.compared)} if result.compared is not None else {}),
            **({"balance": asdict(result.balance)} if result.balance is not None else {}),
        }
        for result in results
    ]
    return {"schema": "ep-plan/checked/1", "files": files}


def _golden_json(compared: Compared) -> dict[str, Any]:
    return {
        "path": str(compared.path),
        "status": compared.status,
        "inputs_changed": [{**asdict(cause), "values": list(cause.values)} for cause in compared.causes],
        "changes": [asdict(row) for row in compared.rows],
        "to_do": compared.to_do,
    }
