"""`ep-plan compare`: plans and baselines on one trace."""

from __future__ import annotations

import click

from planner.cli.options import json_option, paths, trace_option, verbosity


@click.command("compare")
@click.argument("plans", nargs=-1, required=True, metavar="PLAN...")
@trace_option
@json_option
@verbosity
def command(plans: tuple[str, ...], traces: tuple[str, ...], as_json: bool, verbose: bool, quiet: bool) -> None:
    """Score plans and the built-in baselines on a trace that they have not seen.

    \b
    ep-plan compare plan.json --trace held-out.npz
    """
    import json

    from planner.plan.plan import read_plan
    from planner.report.comparison_report import comparison_json, render_comparison
    from planner.report.style import console
    from planner.review.compare import compare

    if not traces:
        raise click.UsageError("give at least one --trace to judge on")
    comparisons = [compare(read_plan(path), path, paths(traces)) for path in paths(plans)]
    if as_json:
        click.echo(json.dumps(comparison_json(comparisons), ensure_ascii=False, indent=1))
    elif not quiet:
        render_comparison(comparisons, console(), verbose=verbose)
