"""`ep-plan show`: the report of a plan file."""

from __future__ import annotations

from pathlib import Path

import click

from planner.cli.options import json_option, verbosity


@click.command("show")
@click.argument("plan", type=click.Path(path_type=Path))
@json_option
@verbosity
def command(plan: Path, as_json: bool, verbose: bool, quiet: bool) -> None:
    """Print the report of PLAN as `solve` printed it.

    \b
    ep-plan show plan.json -v
    """
    from planner.plan.plan import plan_text, read_plan
    from planner.report.plan_report import render_plan
    from planner.report.style import console

    read = read_plan(plan)
    if as_json:
        click.echo(plan_text(read), nl=False)
    elif not quiet:
        render_plan(read, console(), verbose=verbose)
