"""`ep-plan trace split`: part a trace for planning and for judging."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from planner.cli.options import Quantity, refuse_given, verbosity, warn


@click.command("split")
@click.argument("trace", type=click.Path(path_type=Path))
@click.option(
    "--by",
    type=click.Choice(["time", "sequence", "domain"]),
    default="time",
    show_default=True,
    help="The later part, sequences in turn, or whole domains are held out.",
)
@click.option(
    "--part",
    type=Quantity("fraction", above_0=True, below_1=True),
    default="50%",
    show_default=True,
    help="Part to plan on, above 0% and below 100%.",
)
@click.option("--held-out", multiple=True, metavar="DOMAIN", help="By domain: hold this one out.")
@click.option("-o", "--output", metavar="PREFIX", help="Prefix of both files; default: the trace's name.")
@verbosity
def command(
    trace: Path,
    by: Literal["time", "sequence", "domain"],
    part: float,
    held_out: tuple[str, ...],
    output: str | None,
    verbose: bool,  # noqa: ARG001 - there is nothing more to say
    quiet: bool,
) -> None:
    """Part TRACE into PREFIX.planning.npz, to plan on, and PREFIX.held-out.npz, to judge on.

    \b
    ep-plan trace split trace.npz --by time --part 70%
    ep-plan trace split trace.npz --by domain --held-out "domain 1"
    """
    from planner.errors import UsageError
    from planner.files import check_target, refuse_overwriting
    from planner.trace.native import read_trace
    from planner.trace.split import by_domain, by_sequence, by_time, write_part

    if held_out and by != "domain":
        raise UsageError("--held-out names domains", hint="add --by domain")
    if by == "domain":
        refuse_given(("part",), "by domain whole domains are held out, those that --held-out names")
    read = read_trace(trace)
    prefix = output or trace.stem
    paths = [Path(f"{prefix}.{name}.npz") for name in ("planning", "held-out")]
    for path in paths:
        check_target(path)
        refuse_overwriting(path, [trace])
    if by == "domain":
        parting = by_domain(read.trace, held_out)
    else:
        parting = (by_time if by == "time" else by_sequence)(read.trace, part)
    if not quiet:
        warn(read.warnings)
    for path, keep in zip(paths, (parting.planning, ~parting.planning), strict=True):
        write_part(read.trace, keep, path)
        if not quiet:
            what = parting.how if keep is parting.planning else "the rest"
            click.echo(f"wrote {path}: {what}, {keep.mean():.1%}", err=True)
