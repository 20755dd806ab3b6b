"""Which format a text has, and which options it needs."""

from __future__ import annotations

from dataclasses import dataclass

from planner.errors import InputError, Place, Problem, UsageError
from planner.inputs import profiles
from planner.inputs.fabrics import load_fabric
from planner.inputs.gpu import load_gpu
from planner.inputs.importers import nvidia_smi, slurm
from planner.inputs.importers.cluster import draw_cluster, plain_node
from planner.inputs.importers.drawn import Drawn
from planner.inputs.importers.one_host import draw_host
from planner.inputs.topology import NodeFile, load_node


@dataclass(frozen=True)
class Given:
    """What the user says beside the file; None: not said."""

    source: str | None = None
    gpu: str | None = None
    node: str | None = None
    nic: str | None = None
    nodes: int | None = None
    gpus_per_node: int | None = None


def drawn(text: str, file: str, given: Given) -> Drawn:
    """Read a text of either format.

    Raises:
        InputError: the text is neither, or broken.
        UsageError: an option is missing, or means nothing for this format.
    """
    source = given.source or _detected(text, file)
    needless: tuple[str, ...] = ("node", "gpus_per_node") if source == "nvidia-smi" else ("nodes",)
    if source == "slurm" and given.node is not None:
        needless = ("nodes", "gpu", "nic", "gpus_per_node")
    ignored = [f"--{name.replace('_', '-')}" for name in needless if getattr(given, name) is not None]
    if ignored:
        beside = " with --node" if given.node is not None and source == "slurm" else ""
        raise UsageError(f"{', '.join(ignored)} means nothing for {source}{beside}", hint="leave it out")
    if given.nic is not None:
        load_fabric(given.nic)
    if source == "slurm":
        node = _node(given, file)
        return draw_cluster(slurm.read_groups(text, file), node)
    if given.gpu is None:
        known = ", ".join(profiles.names("gpus"))
        raise UsageError("nvidia-smi topo does not name the GPUs: give --gpu", hint=f"known: {known}")
    gpu = load_gpu(given.gpu)
    return draw_host(nvidia_smi.read_matrix(text, file), gpu, file, nodes=given.nodes or 1, nic=given.nic)


def _detected(text: str, file: str) -> str:
    found = [name for name, module in (("nvidia-smi", nvidia_smi), ("slurm", slurm)) if module.looks_like(text)]
    if len(found) == 1:
        return found[0]
    hint = (
        "expected the output of `nvidia-smi topo -m` (a header GPU0 GPU1 ...), Slurm's topology.conf or the output of "
        "`scontrol show topology` (lines SwitchName=... or BlockName=...)"
    )
    raise InputError(Problem("of both formats" if found else "of no known format", Place(file, 1, 1), hint))


def _node(given: Given, file: str) -> NodeFile:
    if given.node is not None:
        return load_node(given.node)
    missing = [name for name in ("gpu", "gpus_per_node", "nic") if getattr(given, name) is None]
    if missing or given.gpu is None or given.gpus_per_node is None or given.nic is None:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in missing)
        hint = "such as --node hgx-h100, or --gpu h100-sxm --gpus-per-node 8 --nic ib-ndr"
        raise UsageError(f"Slurm does not say what a node is: give --node, or {options}", hint=hint)
    return plain_node(load_gpu(given.gpu), given.gpus_per_node, given.nic, Place(file))
