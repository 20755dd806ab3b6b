"""`ep-plan solve`: inputs, cost, search, check, plan. Read it top to bottom for the main path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from planner.cli.options import (
    CopiesOrAuto,
    Quantity,
    SplitPins,
    json_option,
    model_option,
    trace_option,
    verbosity,
    warn,
)


@click.command("solve")
@click.argument("deployment", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", default="plan.json", show_default=True, type=click.Path(path_type=Path), help="Plan file."
)
@model_option("A shipped model, a config.json or a model.yaml.")
@click.option("--topology", metavar="NODES|FILE", help='Nodes such as "4 x hgx-h100", or a topology.yaml.')
@trace_option
@click.option("--gpus", type=click.IntRange(min=1), metavar="N", help="Use only the first N GPUs.")
@click.option("--split", type=SplitPins(), help="Pin degrees, e.g. tp=1,ep=32,pp=1.")
@click.option("--redundant-experts", type=CopiesOrAuto(), help="Copies per layer over all ranks.")
@click.option("--target", type=click.Choice(["checkpoint"]), help="Only what permuting a checkpoint realises.")
@click.option("--time-limit", type=Quantity("time"), help='Stop after this long, e.g. "60 s".')
@click.option("--gap", type=Quantity("fraction"), help='Stop when this close to the bound, e.g. "1%".')
@click.option(
    "--risk",
    type=Quantity("fraction", above_0=True),
    help='Minimise the mean of the slowest windows, e.g. "10%" of them.',
)
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), help="Seed of the solver.")
@json_option
@verbosity
def command(deployment: Path, output: Path, as_json: bool, verbose: bool, quiet: bool, **given: Any) -> None:
    """Find the best split and expert placement for DEPLOYMENT and write the plan.

    \b
    ep-plan solve deployment.yaml
    ep-plan solve deployment.yaml --topology "4 x hgx-h100" --split ep=32 -o ep32.json
    """
    import contextlib
    import time

    from planner.cost.prepare import from_deployment, load
    from planner.files import check_target, refuse_overwriting, write_whole
    from planner.plan.plan_file import plan_text
    from planner.report.plan_report import render_plan
    from planner.report.progress import ProgressWatch
    from planner.report.style import console
    from planner.solve.diagnosis import infeasible
    from planner.solve.interrupts import Interrupts
    from planner.solve.request import search_space, solve_deployment
    from planner.solve.workers import Workers

    started = time.monotonic()
    check_target(output)
    refuse_overwriting(output, [deployment])
    loaded = load(deployment, _overrides(given))
    refuse_overwriting(output, loaded.read_paths)
    prepared = from_deployment(loaded)
    if not quiet:
        warn(prepared.warnings)
    limit_s = loaded.file.solve.time_limit
    deadline = None if limit_s is None else started + limit_s
    progress = ProgressWatch(console(stderr=True), quiet=quiet)
    with Interrupts(progress) as watch:
        with progress, Workers(deadline=deadline) as workers:
            solved = solve_deployment(loaded, prepared, output, workers, watch)
            if solved.plan is None:
                tried = solved.solution.candidates
                raise infeasible(prepared.instance, search_space(loaded), tried, watch, deadline)
        text = plan_text(solved.plan)
        write_whole(output, text)
    with contextlib.suppress(KeyboardInterrupt):  # the plan is there: only the report is cut short
        if as_json:
            click.echo(text, nl=False)
        elif not quiet:
            render_plan(solved.plan, console(), verbose=verbose)
    if not quiet:
        click.echo(f"wrote {output} after {time.monotonic() - started:.1f} s", err=True)


def _overrides(given: dict[str, Any]) -> Any:
    from planner.inputs.deployment import Overrides

    return Overrides(
        model=given["model"],
        topology=given["topology"],
        traces=tuple(given["traces"]),
        gpus=given["gpus"],
        split=given["split"],
        redundant_experts=given["redundant_experts"],
        time_limit_s=given["time_limit"],
        gap=given["gap"],
        risk=given["risk"],
        seed=given["seed"],
        target=given["target"],
    )
