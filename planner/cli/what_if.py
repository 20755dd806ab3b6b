"""`ep-plan what-if`: solve again with inputs changed, and show only what changes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from planner.cli.options import echo_json, json_option, paths, trace_option, verbosity, warn

if TYPE_CHECKING:
    from planner.capacity.case import Case
    from planner.capacity.sweep import Axis
    from planner.inputs.edits import Setting


@click.command("what-if")
@click.argument("start", metavar="PLAN|DEPLOYMENT", type=click.Path(path_type=Path))
@click.option("--set", "settings", multiple=True, metavar="PATH=VALUE", help="A value to change.")
@click.option("--lose", "lost", multiple=True, metavar="NODE", help="Take a node out of service, e.g. n3.")
@click.option("--sweep", "axes", multiple=True, metavar="PATH=V1,V2,...", help="Try several values; at most twice.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the new plan there.")
@click.option(
    "--repaired",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="With --lose, write the repair that brings the fewest weights there, as a plan.",
)
@click.option("--plot", type=click.Path(path_type=Path), help="Draw the sweep into an .svg, .pdf or .png.")
@click.option("--dask", metavar="ADDRESS", help="Plan on the workers of this Dask scheduler.")
@trace_option
@json_option
@verbosity
def command(
    start: Path,
    settings: tuple[str, ...],
    lost: tuple[str, ...],
    axes: tuple[str, ...],
    output: Path | None,
    repaired: Path | None,
    plot: Path | None,
    dask: str | None,
    traces: tuple[str, ...],
    as_json: bool,
    verbose: bool,
    quiet: bool,
) -> None:
    """Change inputs of PLAN or DEPLOYMENT, solve again, and show only what changes and why.

    Paths are keys of the deployment file, of its topology or (model.) of its model; links go by the name of
    their level. Values are written as in the files. Tokens per GPU stay as they are when GPUs come or go.

    \b
    ep-plan what-if plan.json --set links.cluster.bandwidth="100 GB/s" --set solve.redundant_experts=32
    ep-plan what-if plan.json --lose n1 --repaired left.json
    ep-plan what-if deployment.yaml --sweep solve.redundant_experts=0,16,32
    """
    from planner.capacity.case import case_of
    from planner.capacity.loss import nodes_named
    from planner.capacity.sweep import parse_axis
    from planner.files import check_target, refuse_overwriting
    from planner.inputs.edits import parse_setting
    from planner.report.plots import check_plot

    _refuse(settings, lost, axes, output, plot, dask)
    if repaired is not None and (axes or not lost):
        raise click.UsageError("--repaired goes with --lose, and not with --sweep")
    if output is not None and repaired is not None and output.resolve() == repaired.resolve():
        raise click.UsageError(f"-o and --repaired both name {output}")
    changes, varied = [parse_setting(text) for text in settings], [parse_axis(text) for text in axes]
    named = [*(one.path for one in changes), *(one.path for one in varied)]
    twice = [path for path in dict.fromkeys(named) if named.count(path) > 1]
    if twice:
        raise click.UsageError(f"{', '.join(twice)}: given more than once by --set and --sweep")
    for target in filter(None, (output, repaired)):
        check_target(target)
    if plot is not None:
        check_plot(plot)
    case = case_of(start, paths(traces))
    for target in filter(None, (output, repaired, plot)):
        refuse_overwriting(target, [start, *case.deployment.read_paths])
    nodes = nodes_named(lost, case.deployment.topology)
    shown = Shown(as_json=as_json, verbose=verbose, quiet=quiet)
    if not quiet:
        warn(case.deployment.warnings)
    if varied:
        _sweep(case, changes, varied, nodes, plot, dask, shown)
    else:
        _single(case, changes, nodes, Files(output, repaired), shown)


@dataclass(frozen=True)
class Shown:
    """What goes to stdout."""

    as_json: bool
    verbose: bool
    quiet: bool


@dataclass(frozen=True)
class Files:
    """Where plans are written."""

    output: Path | None
    repaired: Path | None


def _single(case: Case, changes: list[Setting], nodes: tuple[int, ...], files: Files, shown: Shown) -> None:
    from planner.capacity.what_if import what_if
    from planner.files import write_whole
    from planner.plan.plan_file import plan_text
    from planner.report.progress import ProgressWatch
    from planner.report.style import console
    from planner.report.what_if_report import render_what_if, what_if_json
    from planner.solve.interrupts import Interrupts
    from planner.solve.workers import Workers

    progress = ProgressWatch(console(stderr=True), quiet=shown.quiet)
    with Interrupts(progress) as watch, progress, Workers() as workers:
        place = files.output or case.path
        found = what_if(case, changes, nodes, place, workers, watch, repaired=files.repaired)
    written = [(path, plan) for path, plan in ((files.output, found.plan), (files.repaired, found.repaired)) if plan]
    for path, plan in written:
        if path is not None:
            write_whole(path, plan_text(plan))
    if shown.as_json:
        echo_json(what_if_json(found))
    elif not shown.quiet:
        render_what_if(found, console(), verbose=shown.verbose)
    if not shown.quiet:
        for path, _ in written:
            if path is not None:
                click.echo(f"wrote {path}", err=True)
        if files.repaired is not None and found.repaired is None:
            click.echo(f"{files.repaired} was not written: there is no repair", err=True)


def _sweep(
    case: Case,
    changes: list[Setting],
    varied: list[Axis],
    nodes: tuple[int, ...],
    plot: Path | None,
    dask: str | None,
    shown: Shown,
) -> None:
    from planner.capacity.sweep import sweep
    from planner.files import write_whole
    from planner.report.plots import picture
    from planner.report.progress import ProgressWatch
    from planner.report.style import console
    from planner.report.what_if_report import curves, render_sweep, sweep_json

    with ProgressWatch(console(stderr=True), quiet=shown.quiet) as progress:
        found = sweep(case, changes, varied, case.path, progress, lost_nodes=nodes, dask=dask)
    if plot is not None:
        write_whole(plot, picture(*curves(found), plot.suffix))
    if shown.as_json:
        echo_json(sweep_json(found))
    elif not shown.quiet:
        render_sweep(found, console())
    if plot is not None and not shown.quiet:
        click.echo(f"wrote {plot}", err=True)


def _refuse(
    settings: tuple[str, ...],
    lost: tuple[str, ...],
    axes: tuple[str, ...],
    output: Path | None,
    plot: Path | None,
    dask: str | None,
) -> None:
    """Options that go together, and those that do not."""
    if not (settings or lost or axes):
        raise click.UsageError("nothing to change: give --set, --lose or --sweep")
    if axes and output is not None:
        raise click.UsageError("-o writes one plan, --sweep makes many: leave one of them out")
    if not axes and (plot is not None or dask is not None):
        raise click.UsageError("--plot and --dask go with --sweep")
