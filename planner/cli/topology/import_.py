"""`ep-plan topology import`: a topology from `nvidia-smi topo -m` or from Slurm."""

from __future__ import annotations

from pathlib import Path

import click

from planner.cli.options import verbosity, warn

_LIMIT_BYTES = 16 << 20


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--from", "source", type=click.Choice(["nvidia-smi", "slurm"]), help="Format; default: by content.")
@click.option("--gpu", metavar="NAME", help="GPU profile: neither format names the GPUs.")
@click.option("--node", metavar="NAME", help="Slurm: node profile, instead of --gpu, --gpus-per-node and --nic.")
@click.option("--nic", metavar="FABRIC", help="Fabric of one NIC port, such as ib-ndr: no format tells rates.")
@click.option("--nodes", type=click.IntRange(1, 65536), help="nvidia-smi: hosts like this one; default 1.")
@click.option("--gpus-per-node", type=click.IntRange(1, 64), help="Slurm: GPUs of each node.")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("topology.yaml"), show_default=True)
@verbosity
def command(
    file: Path,
    source: str | None,
    gpu: str | None,
    node: str | None,
    nic: str | None,
    nodes: int | None,
    gpus_per_node: int | None,
    output: Path,
    verbose: bool,
    quiet: bool,
) -> None:
    """Turn FILE (`nvidia-smi topo -m`, Slurm's topology.conf or `scontrol show topology`) into a topology.

    \b
    ep-plan topology import topo.txt --gpu h100-sxm --nic ib-ndr --nodes 4
    ep-plan topology import /etc/slurm/topology.conf --node hgx-h100
    """
    from planner.files import check_target, read_text, refuse_overwriting, write_whole
    from planner.inputs.importers.choose import Given, drawn
    from planner.inputs.units import format_number_of

    check_target(output)
    refuse_overwriting(output, [file])
    text = read_text(file, limit_bytes=_LIMIT_BYTES)
    given = Given(source=source, gpu=gpu, node=node, nic=nic, nodes=nodes, gpus_per_node=gpus_per_node)
    made = drawn(text, str(file), given)
    text = made.text(file.name)
    write_whole(output, text)
    if verbose and not quiet:
        click.echo(text, nl=False)
    if quiet:
        return
    warn(tuple(f"not expressed: {sentence}" for sentence in made.left_out))
    gpus = format_number_of(made.nodes * made.gpus_per_node, "GPU")
    click.echo(f"wrote {output}: {made.nodes} x {made.gpus_per_node} {made.gpu}, {gpus}", err=True)
