"""`ep-plan probe`: measure this machine or a cluster, and write what was measured as a topology file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from planner.cli.options import Quantity, echo_json, json_option, verbosity, warn


@click.command("probe")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("topology.yaml"), show_default=True)
@click.option(
    "--device",
    type=click.Choice(["cuda", "cpu"]),
    default="cuda",
    show_default=True,
    help="cuda: GPUs, NCCL. cpu: cores in the place of GPUs, gloo.",
)
@click.option("--ranks", type=click.IntRange(min=1), metavar="N", help="Ranks here; default: every GPU, or every core.")
@click.option("--timeout", type=Quantity("time"), default="120 s", show_default=True, help="Longest without progress.")
@click.option("--join-timeout", type=Quantity("time"), default="120 s", show_default=True, help="For ranks to arrive.")
@click.option("--worker", is_flag=True, help="Be one rank; torchrun, srun or mpirun says which.")
@click.option("--rendezvous", metavar="HOST:PORT", help="With --worker: where rank 0 listens.")
@click.option("--interface", metavar="NAME", help="Network interface; default: the one that reaches the rendezvous.")
@json_option
@verbosity
def command(output: Path, as_json: bool, verbose: bool, quiet: bool, **given: Any) -> int:
    """Measure memory, compute, kernels, links and exchanges; write a topology file with measured values.

    On a cluster the same command runs once per GPU with --worker, host by host.

    \b
    ep-plan probe -o topology.yaml
    ep-plan probe --device cpu --ranks 2 -o cpu.yaml
    """
    import os

    from planner.files import check_target, write_whole

    check_target(output)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # what went wrong is told in one line
    from planner.measure.devices import require_torch

    require_torch()
    from planner.measure.drawn import topology_text
    from planner.measure.probe import findings

    code, machine = _machine(given)
    if machine is None:
        return int(code)
    text = topology_text(machine)
    write_whole(output, text)
    found = findings(machine)
    if as_json:
        document = {"schema": "ep-plan/probe/1", "topology": text, "findings": found, "ranks": list(machine.results)}
        echo_json(document)
    elif not quiet:
        from planner.report.probe_report import render_probe
        from planner.report.style import console

        render_probe(machine, console(), verbose=verbose)
    if not quiet:
        warn(found)
        click.echo(f"wrote {output}", err=True)
    return 0


def _machine(given: dict[str, Any]) -> Any:
    from planner.measure.identity import identity_from
    from planner.measure.job import Job
    from planner.measure.probe import probe_as_rank, probe_here
    from planner.measure.store import parse_meeting

    job = Job(
        device=given["device"],
        timeout_s=given["timeout"],
        join_timeout_s=given["join_timeout"],
        interface=given["interface"],
        probes=True,
    )
    if not given["worker"]:
        if given["rendezvous"] is not None:
            raise click.UsageError(
                "--rendezvous is for --worker: ranks that are started here meet on the loopback address"
            )
        return 0, probe_here(job, given["ranks"])
    if given["rendezvous"] is None:
        raise click.UsageError("--worker needs --rendezvous HOST:PORT, an address of rank 0's host")
    if given["ranks"] is not None:
        raise click.UsageError("--ranks is for this machine alone; with --worker the launcher says how many there are")
    return probe_as_rank(job, identity_from(), parse_meeting(given["rendezvous"]))
