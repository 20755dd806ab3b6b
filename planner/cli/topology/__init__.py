"""`ep-plan topology`: topology files made from what other tools say."""

from __future__ import annotations

from typing import Final

import click

from planner.cli.group import LazyGroup
from planner.cli.options import verbosity

# Subcommand -> (module, what it does).
COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "import": ("planner.cli.topology.import_", "Read `nvidia-smi topo -m`, Slurm's topology.conf or scontrol."),
}


@click.group("topology", cls=LazyGroup, table=COMMANDS)
@verbosity
def command(**_: bool) -> None:
    """Make a topology.yaml from what other tools say about a machine.

    \b
    ep-plan topology import topo.txt --gpu h100-sxm --nic ib-ndr --nodes 4
    """
