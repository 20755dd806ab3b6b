"""The report of `ep-plan check`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

import click

from planner.review.check_files import Checked
from planner.review.map_doctor import Balance

_GOOD: Final = {
    "plan": "every rule and figure holds",
    "deployment": "inputs are valid",
    "map": "nothing is wrong with the map",
}


def render_checked(results: Sequence[Checked], *, verbose: bool = False) -> None:
    """One line per good file, all findings of the others."""
    for result in results:
        if result.is_good:
            click.echo(f"ok     {result.path}: {_GOOD[result.kind]}")
        elif result.error is not None:
            click.echo(f"wrong  {result.path}")
            click.echo(str(result.error))
        else:
            count = len(result.findings)
            click.echo(f"wrong  {result.path}: {count} finding{'s' if count > 1 else ''}")
            shown = result.findings if verbose else result.findings[:10]
            for finding in shown:
                click.echo(f"  {finding}")
            if len(shown) < len(result.findings):
                click.echo(f"  and {len(result.findings) - len(shown)} more (-v)")
        for note in result.notes:
            click.echo(f"  {note}")
        if result.balance is not None:
            _render_balance(result.balance)
    good = sum(result.is_good for result in results)
    click.echo(f"{good} of {len(results)} good")


def _render_balance(balance: Balance) -> None:
    click.echo(
        f"  max/mean {balance.max_mean:.3f} (linear without copies {balance.linear_max_mean:.3f}), "
        f"worst layer {balance.worst_layer} with {balance.worst:.3f}; balancedness {balance.balancedness:.3f}; "
        f"{balance.windows} windows, copies share evenly"
    )


def checked_json(results: Sequence[Checked]) -> dict[str, Any]:
    """The same as plain data."""
    files = [
        {
            "path": str(result.path),
            "kind": result.kind,
            "good": result.is_good,
            "findings": list(result.findings),
            "problems": [str(problem) for problem in result.error.problems] if result.error else [],
            **({"notes": list(result.notes)} if result.kind == "map" else {}),
            **({"balance": asdict(result.balance)} if result.balance is not None else {}),
        }
        for result in results
    ]
    return {"schema": "ep-plan/checked/1", "files": files}
