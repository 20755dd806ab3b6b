"""`ep-plan trace info`: what a trace shows, and whether balancing is worth it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from planner.cli.options import echo_json, json_option, judged_work, options_given, verbosity, warn


@click.command("info")
@click.argument("traces", nargs=-1, required=True, metavar="TRACE...", type=click.Path(path_type=Path))
@judged_work("For the verdict; default: one on each rank.")
@click.option(
    "--nodes",
    type=click.IntRange(1, 65536),
    multiple=True,
    show_default="2 and 4",
    help="Count the distinct nodes per token for so many nodes.",
)
@json_option
@verbosity
def command(
    traces: tuple[Path, ...],
    phase: Literal["decode", "prefill"],
    step_tokens: int,
    ranks: int | None,
    redundant_experts: int | None,
    nodes: tuple[int, ...],
    as_json: bool,
    verbose: bool,
    quiet: bool,
) -> None:
    """Describe TRACE: skew, drift, domains, co-activation, and a verdict on balancing.

    The verdict places experts on some windows as `ep-plan solve` would, and tries that on later ones; beside it
    stands what EPLB saves if it runs again and again.

    \b
    ep-plan trace info trace.npz --ranks 16 --redundant-experts 16 --nodes 2
    """
    from planner.report.style import console
    from planner.report.trace_report import render_trace, trace_json
    from planner.review.describe import describe

    found = describe(
        traces,
        phase=phase,
        step_tokens=step_tokens,
        ranks=ranks,
        redundant=redundant_experts,
        node_counts=nodes,
        asked=options_given("phase", "step_tokens"),
    )
    if not quiet:
        warn(found.warnings)
    if as_json:
        echo_json(trace_json(found))
    elif not quiet:
        render_trace(found, console(), verbose=verbose)
