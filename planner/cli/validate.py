"""`ep-plan validate`: run a plan's ranks for real, and hold what they do against what the plan promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from planner.cli.options import Quantity, json_option, paths, refuse_given, trace_option, verbosity, warn


@click.command("validate")
@click.argument("plan", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("validation.json"), show_default=True)
@click.option("--emulate", is_flag=True, help="Ranks are processes on this machine's CPU, sizes are shrunken.")
@click.option(
    "--ranks",
    type=click.IntRange(min=1),
    metavar="N",
    help="With --emulate: run at most N ranks at a time, stage after stage.",
)
@click.option("--scale", type=click.IntRange(min=1), metavar="S", help="With --emulate: divide sizes by S.")
@click.option(
    "--device",
    type=click.Choice(["cuda", "cpu"]),
    default="cuda",
    show_default=True,
    help="cuda: the plan's GPUs, NCCL. cpu: a core for each GPU, real sizes, gloo.",
)
@trace_option
@click.option("--against", metavar="NAME,...", help="Baselines that run the same windows: linear, eplb, ...")
@click.option(
    "--windows", type=click.IntRange(1, 1 << 16), default=4, show_default=True, help="Windows that are timed."
)
@click.option(
    "--repeats", type=click.IntRange(2, 1 << 16), default=5, show_default=True, help="Timed passes over each."
)
@click.option("--tolerance", type=Quantity("fraction"), default="25%", show_default=True, help="For measured times.")
@click.option("--timeout", type=Quantity("time"), default="120 s", show_default=True, help="Longest without progress.")
@click.option("--join-timeout", type=Quantity("time"), default="120 s", show_default=True, help="For ranks to arrive.")
@click.option(
    "--calibrate",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the plan's topology, corrected by the measured times.",
)
@click.option("--links/--no-links", default=None, help="Test links in pairs first. Default: unless emulated.")
@click.option("--worker", is_flag=True, help="Be one rank; torchrun, srun or mpirun says which.")
@click.option("--rendezvous", metavar="HOST:PORT", help="With --worker: where rank 0 listens.")
@click.option(
    "--print-launch",
    "launcher",
    type=click.Choice(["torchrun", "slurm", "kubernetes"]),
    help="Print the script that starts the ranks on a cluster; nothing is run.",
)
@click.option("--hosts", metavar="NAME,...", help="With --print-launch: hosts in order of the plan's nodes.")
@click.option("--image", metavar="NAME", help="With --print-launch kubernetes: the container image.")
@click.option("--interface", metavar="NAME", help="Network interface; default: the one that reaches the rendezvous.")
@json_option
@verbosity
def command(plan: Path, output: Path, as_json: bool, verbose: bool, quiet: bool, **given: Any) -> int:
    """Run the ranks of PLAN, replay its routing, and judge counts, results and times.

    On this machine the ranks are started here; on a cluster the same command runs once per GPU with
    --worker, see --print-launch. Exit code 6 unless the verdict is pass; 7 if GPUs, torch or a rank are
    missing.

    \b
    ep-plan validate plan.json --emulate
    ep-plan validate plan.json --against linear,eplb
    """
    import os

    if given["launcher"] is not None:
        refuse_given(("as_json",), "--print-launch prints a script")
        click.echo(_script(plan, output, given), nl=False)
        return 0
    from planner.errors import BadAnswerError

    _check_options(plan, output, given)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # what went wrong is told in one line
    from planner.measure.devices import require_torch

    require_torch()
    from planner.measure.reported import reported_findings

    if given["worker"]:
        code, validation, ready, results = _as_rank(plan, given)
        if validation is None:
            return int(code)
    else:
        validation, ready, results = _here(plan, given)
    if not quiet:
        warn((*ready.warnings, *reported_findings(results)))
    _write(validation, output, as_json=as_json, verbose=verbose, quiet=quiet)
    if given["calibrate"] is not None:
        _calibrate(validation, ready, given["calibrate"], quiet=quiet)
    return 0 if validation.verdict == "pass" else int(BadAnswerError.exit_code)


def _check_options(plan: Path, output: Path, given: dict[str, Any]) -> None:
    """Refuse options that would be ignored, and targets that cannot be written, before anything runs."""
    from planner.files import check_target, refuse_overwriting

    for name in ("hosts", "image"):
        if given[name] is not None:
            raise click.UsageError(f"--{name} is for --print-launch")
    if given["rendezvous"] is not None and not given["worker"]:
        raise click.UsageError("--rendezvous is for --worker: ranks that are started here meet on the loopback address")
    if given["emulate"]:
        refuse_given(("device", "windows", "repeats"), "with --emulate ranks are processes on CPUs, and none is timed")
    if given["calibrate"] is not None and given["emulate"]:
        raise click.UsageError("--calibrate needs measured times; an emulation has none")
    for target in filter(None, (output, given["calibrate"])):
        check_target(target)
        refuse_overwriting(target, [plan, *paths(given["traces"])])
    if given["calibrate"] is not None and given["calibrate"].resolve() == output.resolve():
        raise click.UsageError(f"--calibrate and -o both name {output}")


def _script(plan: Path, output: Path, given: dict[str, Any]) -> str:
    from planner.measure.script import Launch, launch_script
    from planner.measure.seats import Seating
    from planner.plan.plan_file import read_plan

    if given["emulate"] or given["worker"]:
        raise click.UsageError("--print-launch is for the plan's GPUs, without --emulate and --worker")
    for name, of in (("ranks", "--emulate"), ("scale", "--emulate"), ("rendezvous", "--worker")):
        if given[name] is not None:
            raise click.UsageError(f"--{name} is for {of}: the script says where ranks meet and how many there are")
    if given["image"] is not None and given["launcher"] != "kubernetes":
        raise click.UsageError("--image is for --print-launch kubernetes")
    hosts = tuple(filter(None, (given["hosts"] or "").split(",")))
    arguments = [str(plan.absolute()), "-o", str(output.absolute()), *_repeated(given)]
    return launch_script(given["launcher"], Launch(Seating(read_plan(plan)), tuple(arguments), hosts, given["image"]))


def _repeated(given: dict[str, Any]) -> list[str]:
    """Options that every rank must be given, as they were given here."""
    words = [word for trace in given["traces"] for word in ("--trace", str(Path(trace).absolute()))]
    plain = ("device", "against", "windows", "repeats", "interface")
    words += [word for name in plain if given[name] is not None for word in (f"--{name}", str(given[name]))]
    if given["calibrate"] is not None:
        words += ["--calibrate", str(given["calibrate"].absolute())]
    words += ["--tolerance", f"{100 * given['tolerance']:g}%"]
    for name in ("timeout", "join_timeout"):
        words += [f"--{name.replace('_', '-')}", f"{given[name]:g} s"]
    return words if given["links"] is None else [*words, "--links" if given["links"] else "--no-links"]


def _here(plan: Path, given: dict[str, Any]) -> Any:
    from planner.measure.validate import validate_here

    return validate_here(_job(plan, given))


def _as_rank(plan: Path, given: dict[str, Any]) -> Any:
    from planner.measure.identity import identity_from
    from planner.measure.store import parse_meeting
    from planner.measure.validate import validate_as_rank

    if given["rendezvous"] is None:
        raise click.UsageError("--worker needs --rendezvous HOST:PORT, an address of rank 0's host")
    meeting = parse_meeting(given["rendezvous"])
    return validate_as_rank(_job(plan, given), identity_from(), meeting)


def _job(plan: Path, given: dict[str, Any]) -> Any:
    from planner.measure.job import Job

    emulate = given["emulate"]
    for name in ("ranks", "scale"):
        if given[name] is not None and not emulate:
            raise click.UsageError(f"--{name} is for --emulate")
    return Job(
        plan_path=plan,
        traces=tuple(paths(given["traces"])) or None,
        device="emulate" if emulate else given["device"],
        scale=given["scale"],
        windows=given["windows"],
        repeats=given["repeats"],
        against=tuple(filter(None, (given["against"] or "").split(","))),
        tolerance=given["tolerance"],
        timeout_s=given["timeout"],
        join_timeout_s=given["join_timeout"],
        links=not emulate if given["links"] is None else given["links"],
        interface=given["interface"],
        most_ranks=given["ranks"],
    )


def _calibrate(validation: Any, ready: Any, target: Path, *, quiet: bool) -> None:
    from planner.files import write_whole
    from planner.measure.calibrate import calibrated_text, uncertain

    write_whole(target, calibrated_text(validation, ready.plan, ready.cost))
    if not quiet:
        warn(uncertain(validation, ready.cost))
        click.echo(f"wrote {target}", err=True)


def _write(validation: Any, output: Path, *, as_json: bool, verbose: bool, quiet: bool) -> None:
    from planner.files import write_whole
    from planner.measure.document import validation_text
    from planner.report.style import console
    from planner.report.validation_report import node_lists, render_validation

    text = validation_text(validation)
    lists = node_lists(validation, output)
    for path, hosts in lists.items():
        write_whole(path, hosts)
    write_whole(output, text)  # last: where it stands, all of this run stands
    if as_json:
        click.echo(text, nl=False)
    elif not quiet:
        render_validation(validation, console(), verbose=verbose)
    if not quiet:
        click.echo(f"wrote {', '.join(map(str, (output, *lists)))}", err=True)
