"""The machine: GPUs, the nodes that hold them, and the links that join them.

The file describes; `Topology` is the same in arrays, GPU by GPU, which is what the cost model uses.
Bandwidth is per GPU and per direction everywhere.

Legend: G GPUs in service, V link levels, innermost first.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from planner.errors import InputError, Place, Problem
from planner.inputs import documents, profiles
from planner.inputs.documents import Frozen
from planner.inputs.fabrics import known_fabric, with_fabric
from planner.inputs.precision import COMPUTE_ORDER
from planner.inputs.sourced import Sourced
from planner.inputs.units import ComputeRate, Duration, Percentage, Rate, Size

LIMIT_GPUS: Final = 1 << 16
INLINE_GPU: Final = f"""memory, hbm_bandwidth and compute (dense rates of any of {", ".join(COMPUTE_ORDER)}), inline:
gpu: {{memory: 80 GiB, hbm_bandwidth: 3.35 TB/s, compute: {{bf16: 989 TFLOP/s, fp8: 1979 TFLOP/s}}}}"""
INLINE_NODES: Final = """gpu, nodes, gpus_per_node, links (level; fabric, or bandwidth and latency), in a topology.yaml:
schema: ep-plan/topology/1
gpu: h100-sxm
nodes: 4
gpus_per_node: 8
links:  # innermost first; per GPU, per direction
- {level: node, bandwidth: 450 GB/s, latency: 3 us}
- {level: cluster, fabric: ib-ndr}"""


class Roofline(Frozen):
    """How a kernel family falls short of the speed of light; see docs/model.md, "Compute".

    time = base + per_expert * experts + (a**exponent + b**exponent)**(1/exponent) + moved,
    a = FLOP / (compute * peak), b = weight bytes / (memory * HBM), moved = rows in and out /
    (activation * HBM).
    """

    base: Duration
    """Constant time of one launch."""
    per_expert: Duration = 0.0
    """Further time per expert slot."""
    compute: Percentage
    """Part of the peak compute rate reached."""
    memory: Percentage
    """Part of the HBM bandwidth reached when reading weights."""
    activation: Percentage | None = None
    """Part of the HBM bandwidth reached when moving rows; default: as memory."""
    exponent: Literal[2, 4] = 4
    """Sharpness of the smooth maximum."""


class Efficiency(Frozen):
    """What kernels reach on a GPU, by kind of work."""

    experts: Sourced[Roofline]
    """Grouped GEMM over the experts of a rank."""
    gemm: Sourced[Roofline]
    """Dense GEMM: projections, router, dense and shared parts, LM head."""
    attention_prefill: Sourced[Roofline]
    """Attention over the prompt."""
    attention_decode: Sourced[Roofline]
    """Attention over the KV cache, one token per sequence."""
    overlap: Sourced[Percentage]
    """Part of the shorter of expert time and traffic time that hides behind the longer."""


class Gpu(Frozen):
    """One kind of GPU. Compute rates are dense (no structured sparsity)."""

    name: str = "inline"
    """Name of the profile; not written in files."""
    memory: Sourced[Size]
    """Memory of one GPU as its driver reports it, e.g. 80 GiB."""
    hbm_bandwidth: Sourced[Rate]
    """Memory bandwidth, e.g. 3.35 TB/s."""
    compute: Annotated[dict[str, Sourced[ComputeRate]], Field(min_length=1)]
    """Dense compute rates by format, e.g. {bf16: 989 TFLOP/s, fp8: 1979 TFLOP/s}."""
    efficiency: Efficiency | None = None
    """What kernels reach; default: profiles/efficiency.yaml."""
    scale_up: str | None = None
    """Fabric that joins such GPUs directly, e.g. nvlink-4; none: they meet over the host."""
    bridge: str | None = None
    """Fabric of bridges that join a few such cards where they are fitted, e.g. nvlink-4."""
    host: str | None = None
    """Fabric to the host, e.g. pcie-5-x16."""
    note: str = ""
    """Anything a reader should know."""

    @field_validator("scale_up", "bridge", "host")
    @classmethod
    def _known_fabric(cls, value: str | None) -> str | None:
        return value if value is None else known_fabric(value)

    @field_validator("compute")
    @classmethod
    def _known_formats(cls, value: dict[str, Sourced[ComputeRate]]) -> dict[str, Sourced[ComputeRate]]:
        unknown = sorted(set(value) - set(COMPUTE_ORDER))
        if unknown:
            raise ValueError(f"unknown format {unknown[0]}\nknown: {', '.join(COMPUTE_ORDER)}")
        return value


class Link(Frozen):
    """One level of links, per GPU and per direction."""

    level: Annotated[str, Field(min_length=1, max_length=40)]
    """Name of the level, e.g. node or cluster."""
    fabric: str | None = None
    """Fabric profile that gives bandwidth and latency where they are not spelled out, e.g. ib-ndr."""
    bandwidth: Sourced[Rate]
    """Of one GPU, in one direction, e.g. 450 GB/s; may be left out where a fabric is named."""
    latency: Sourced[Duration]
    """Of one message, e.g. 3 us; may be left out where a fabric is named."""
    nodes: Annotated[int, Field(ge=1)] | None = None
    """Nodes that this level joins; default: 1 for the innermost level, all for the outermost."""
    efficiency: Sourced[Percentage] | None = None
    """Part of the bandwidth that large messages reach; default: from the communication kernel."""
    same_port: bool | None = None
    """Whether messages of this level leave a GPU by the same port as those of the level inside it
    (NVLink across trays; a NIC beyond the leaf switch). Default: not for the second level (its NIC
    is another port than NVLink), yes for those further out."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_fabric(cls, data: Any) -> Any:
        return with_fabric(data) if isinstance(data, dict) else data

    @field_validator("fabric")
    @classmethod
    def _known_fabric(cls, value: str | None) -> str | None:
        return value if value is None else known_fabric(value)


class TopologyFile(Frozen):
    """A topology.yaml."""

    gpu: str | Gpu
    """A GPU profile, or a GPU described inline."""
    nodes: Annotated[int, Field(ge=1)]
    """Number of nodes."""
    gpus_per_node: Annotated[int, Field(ge=1)]
    """GPUs of each node."""
    links: Annotated[tuple[Link, ...], Field(min_length=1, max_length=8)]
    """Link levels, innermost first."""

    @model_validator(mode="after")
    def _consistent(self) -> TopologyFile:
        if self.nodes * self.gpus_per_node > LIMIT_GPUS:
            count = self.nodes * self.gpus_per_node
            raise ValueError(f"{count:,} GPUs\nat most {LIMIT_GPUS:,} are planned")
        names = [link.level for link in self.links]
        if len(set(names)) < len(names):
            raise ValueError(f"links: a level name stands twice: {', '.join(names)}")
        spans = self.spans()
        if self.nodes > 1 and len(self.links) == 1 and self.links[0].nodes is None:
            raise ValueError(
                f"{self.nodes} nodes, but only the level {names[0]!r} inside a node\n"
                "add the level that joins the nodes: {level: cluster, bandwidth: 50 GB/s, latency: 10 us}"
            )
        if self.nodes > 1 and any(inner >= outer for inner, outer in pairwise(spans)):
            raise ValueError(f"links: each level must join more nodes than the one before, found {spans}")
        if spans[-1] != self.nodes:
            raise ValueError(f"links: the outermost level joins {spans[-1]} of {self.nodes} nodes")
        return self

    def spans(self) -> list[int]:
        """Nodes that each level joins, innermost first."""
        last = len(self.links) - 1
        spans = []
        for index, link in enumerate(self.links):
            implied = 1 if index == 0 and (last > 0 or self.nodes == 1) else self.nodes
            spans.append(link.nodes or implied)
        return spans


@dataclass(frozen=True)
class Topology:
    """All GPUs in service, in order of their global ids (nodes in order, then local index)."""

    file: TopologyFile
    gpu: Gpu
    links: tuple[Link, ...]
    node_G: NDArray[np.int64]
    """Node of each GPU."""
    unit_VG: NDArray[np.int64]
    """Unit (node, rack, ...) of each GPU at each level: GPUs of one unit are joined by that level."""

    @cached_property
    def num_gpus(self) -> int:
        """GPUs in service."""
        return int(self.unit_VG.shape[1])

    @cached_property
    def ports(self) -> tuple[int, ...]:
        """For each level the innermost level whose port its messages leave by."""
        ports: list[int] = []
        for level, link in enumerate(self.links):
            shares = link.same_port if link.same_port is not None else level >= 2
            ports.append(ports[-1] if level and shares else level)
        return tuple(ports)

    @cached_property
    def num_nodes(self) -> int:
        """Nodes with a GPU in service."""
        return len(np.unique(self.node_G))


def resolve(file: TopologyFile, gpu: Gpu, num_gpus: int | None = None) -> Topology:
    """Spell a topology out in arrays.

    Args:
        file: the description.
        gpu: its GPU, looked up.
        num_gpus: keep only the first so many GPUs in service (`--gpus`).

    Raises:
        InputError: more GPUs asked for than there are.
    """
    total = file.nodes * file.gpus_per_node
    if num_gpus is not None and not 1 <= num_gpus <= total:
        hint = f"the topology has {file.nodes} x {file.gpus_per_node} GPUs: give 1..{total}"
        raise InputError(Problem(f"{num_gpus} GPUs asked for, {total} are there", None, hint))
    node_G = np.arange(num_gpus or total, dtype=np.int64) // file.gpus_per_node
    unit_VG = np.stack([node_G // span for span in file.spans()])
    return Topology(file.model_copy(update={"gpu": gpu}), gpu, file.links, node_G, unit_VG)


def load_topology(path: Path, num_gpus: int | None = None) -> Topology:
    """Read a topology.yaml and the GPU profile that it names."""
    file, document = documents.load(path, TopologyFile, "topology")
    gpu = file.gpu
    if isinstance(gpu, str):
        gpu = load_gpu(gpu, document.place(("gpu",)))
    return resolve(file, gpu, num_gpus)


def load_gpu(name: str, where: Place | None = None) -> Gpu:
    """Read a GPU profile."""
    path = profiles.path_of("gpus", name, where, INLINE_GPU)
    gpu, _ = documents.load(path, Gpu, "gpu")
    return gpu.model_copy(update={"name": name})


class NodeFile(Frozen):
    """A shipped node profile: a box, and the fabric that usually joins such boxes."""

    gpu: str
    """The GPU profile."""
    gpus_per_node: Annotated[int, Field(ge=1)]
    """GPUs of the box."""
    links: Annotated[tuple[Link, ...], Field(min_length=1)]
    """Link levels, innermost first."""
    note: str = ""
    """Anything a reader should know."""


def load_node(name: str, where: Place | None = None) -> NodeFile:
    """Read a node profile."""
    path = profiles.path_of("nodes", name, where, INLINE_NODES)
    node, _ = documents.load(path, NodeFile, "node")
    return node


def topology_of_nodes(count: int, name: str, where: Place | None, num_gpus: int | None = None) -> Topology:
    """The topology `COUNT x NODE-PROFILE`."""
    node = load_node(name, where)
    if not 1 <= count <= LIMIT_GPUS // node.gpus_per_node:
        hint = f"expected 1..{LIMIT_GPUS // node.gpus_per_node}"
        raise InputError(Problem(f"{count} x {name}: {count} nodes are not allowed", where, hint))
    links = _links_within(node.links, count)
    file = TopologyFile(gpu=node.gpu, nodes=count, gpus_per_node=node.gpus_per_node, links=links)
    return resolve(file, load_gpu(node.gpu, where), num_gpus)


def _links_within(links: tuple[Link, ...], count: int) -> tuple[Link, ...]:
    """The levels that so many nodes need: of a rack of 18 trays, 4 trays use the part that joins 4."""
    for index, link in enumerate(links):
        if link.nodes is not None and link.nodes >= count:
            return (*links[:index], link.model_copy(update={"nodes": count}))
    return links
