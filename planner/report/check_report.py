"""The report of `ep-plan check`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from planner.review.check_files import Checked


def render_checked(results: Sequence[Checked], *, verbose: bool = False) -> None:
    """One line per good file, all findings of the others."""
    for result in results:
        if result.is_good:
            what = "every rule and figure holds" if result.kind == "plan" else "inputs are valid"
            click.echo(f"ok     {result.path}: {what}")
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
    good = sum(result.is_good for result in results)
    click.echo(f"{good} of {len(results)} good")


def checked_json(results: Sequence[Checked]) -> dict[str, Any]:
    """The same as plain data."""
    files = [
        {
            "path": str(result.path),
            "kind": result.kind,
            "good": result.is_good,
            "findings": list(result.findings),
            "problems": [str(problem) for problem in result.error.problems] if result.error else [],
        }
        for result in results
    ]
    return {"schema": "ep-plan/checked/1", "files": files}
