"""`ep-plan show`: the report of a plan file, in the terminal or as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from planner.cli.options import json_option, paths, trace_option, verbosity, warn

if TYPE_CHECKING:
    from planner.plan.plan import Plan


@click.command("show")
@click.argument("plan", type=click.Path(path_type=Path))
@click.option("--html", metavar="FILE", type=click.Path(path_type=Path), help="Write the report as one HTML file.")
@trace_option
@json_option
@verbosity
def command(plan: Path, html: Path | None, traces: tuple[str, ...], as_json: bool, verbose: bool, quiet: bool) -> None:
    """Print the report of PLAN as `solve` printed it, or write it with charts as one HTML file.

    The HTML file needs no network and holds no script. What a plan does not book (the linear layout rank
    by rank, traffic by pair of GPUs) is derived from its traces; --trace says where these are now.

    \b
    ep-plan show plan.json -v
    ep-plan show plan.json --html report.html
    """
    from planner.check import refuse_untellable
    from planner.plan.plan_file import plan_text, read_plan
    from planner.report.plan_report import render_plan
    from planner.report.style import console

    if traces and html is None:
        raise click.UsageError("--trace is for --html: the plan itself holds all that is printed")
    read = read_plan(plan)
    refuse_untellable(read, plan)
    if html is not None:
        _write(read, plan, html, paths(traces), quiet=quiet)
    if as_json:
        click.echo(plan_text(read), nl=False)
    elif not quiet and html is None:
        render_plan(read, console(), verbose=verbose)


def _write(read: Plan, plan: Path, html: Path, traces: list[Path], *, quiet: bool) -> None:
    from planner.errors import InputError, MissingEnvironmentError
    from planner.files import check_target, refuse_overwriting, write_whole
    from planner.review.unbooked import Unbooked, unbooked

    check_target(html)
    refuse_overwriting(html, [plan, *traces])
    try:
        from planner.report.html.page import html_report
    except ImportError as error:
        hint = "pip install 'ep-plan[report]'"
        raise MissingEnvironmentError(f"--html needs {error.name}, which is not installed", hint=hint) from None
    found: Unbooked | str
    try:
        found = unbooked(read, plan, traces or None)
    except InputError as error:
        if traces:
            raise
        found = "; ".join(problem.message for problem in error.problems)
        if not quiet:
            warn((f"{found}; the report lacks what only the trace tells (--trace)",))
    write_whole(html, html_report(read, found))
    if not quiet:
        click.echo(f"wrote {html}", err=True)
