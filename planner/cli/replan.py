"""`ep-plan replan`: from a plan in force to a better one with few moves."""

from __future__ import annotations

from pathlib import Path

import click

from planner.cli.options import Quantity, echo_json, json_option, paths, trace_option, verbosity, warn


@click.command("replan")
@click.argument("plan", type=click.Path(path_type=Path))
@trace_option
@click.option("--budget", type=click.IntRange(0), metavar="K", help="Move at most so many experts.")
@click.option(
    "--interval",
    type=Quantity("time"),
    default="10 min",
    show_default=True,
    help="How long the next plan will be in force.",
)
@click.option(
    "--least-gain",
    type=Quantity("fraction"),
    default="0.5%",
    show_default=True,
    help="Part of a step that must be gained.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the plan that is recommended.")
@json_option
@verbosity
def command(
    plan: Path,
    traces: tuple[str, ...],
    budget: int | None,
    interval: float,
    least_gain: float,
    output: Path | None,
    as_json: bool,
    verbose: bool,
    quiet: bool,
) -> None:
    """Tell which experts of PLAN to move for recent routing, in what order, and whether it pays.

    Time gained in an interval is held against the time that weights travel over the links of the machine; to do
    nothing is always one of the answers. Gains are judged on windows that the placement was not made from.

    \b
    ep-plan replan plan.json --trace today.npz --budget 64 --interval "10 min" -o next.json
    """
    from planner.capacity.new_plan import plan_after
    from planner.capacity.replan import Asked, replan
    from planner.files import check_target, refuse_overwriting, write_whole
    from planner.plan.plan_file import plan_text, read_plan
    from planner.report.progress import ProgressWatch
    from planner.report.replan_report import render_replan, replan_json
    from planner.report.style import console

    if not traces:
        raise click.UsageError("give at least one --trace of recent routing")
    if output is not None:
        check_target(output)
        refuse_overwriting(output, [plan, *paths(traces)])
    in_force = read_plan(plan)
    with ProgressWatch(console(stderr=True), quiet=quiet) as progress:
        found = replan(in_force, plan, paths(traces), Asked(interval, budget, least_gain), progress)
        moves = found.answers[found.best].moves
        if output is not None and moves:
            made = plan_after(in_force, plan, paths(traces), found.placements[found.best], output, progress)
            write_whole(output, plan_text(made))
    if not quiet:
        warn(found.warnings)
    if as_json:
        echo_json(replan_json(found))
    elif not quiet:
        render_replan(found, console(), verbose=verbose)
    if output is not None and not quiet:
        click.echo(f"wrote {output}" if moves else f"{output} was not written: the plan in force stays", err=True)
