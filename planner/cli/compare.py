"""`ep-plan compare`: plans and baselines on one trace."""

from __future__ import annotations

from pathlib import Path

import click

from planner.cli.options import echo_json, json_option, paths, trace_option, verbosity, warn


@click.command("compare")
@click.argument("plans", nargs=-1, required=True, metavar="PLAN...")
@click.option(
    "--map",
    "maps",
    nargs=2,
    multiple=True,
    metavar="FORMAT FILE",
    help="A map of an engine to score beside; may be given several times.",
)
@trace_option
@json_option
@verbosity
def command(
    plans: tuple[str, ...],
    maps: tuple[tuple[str, str], ...],
    traces: tuple[str, ...],
    as_json: bool,
    verbose: bool,
    quiet: bool,
) -> None:
    """Score plans and the built-in baselines on a trace that they have not seen.

    \b
    ep-plan compare plan.json --trace held-out.npz
    ep-plan compare plan.json --map sglang map.json --trace held-out.npz
    """
    from planner.plan.plan_file import read_plan
    from planner.report.comparison_report import comparison_json, render_comparison
    from planner.report.style import console
    from planner.review.compare import NamedMap, compare

    if not traces:
        raise click.UsageError("give at least one --trace to judge on")
    named = [NamedMap(name, Path(file)) for name, file in maps]
    comparisons = [compare(read_plan(path), path, paths(traces), named) for path in paths(plans)]
    if not quiet:
        warn(tuple(dict.fromkeys(text for one in comparisons for text in one.warnings)))
    if as_json:
        echo_json(comparison_json(comparisons))
    elif not quiet:
        render_comparison(comparisons, console(), verbose=verbose)
