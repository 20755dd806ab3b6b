"""The machine: GPUs, the nodes that hold them, and the links that join them.

The file describes; `Topology` is the same in arrays, GPU by GPU, which is what the cost model uses.
GPUs out of service are not counted: ids run over those in service, nodes in order, then local index.

Legend: G GPUs in service, V link levels, innermost first.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from planner.errors import InputError, Place, Problem
from planner.inputs import documents, profiles
from planner.inputs.documents import Frozen
from planner.inputs.gpu import Gpu, load_gpu
from planner.inputs.links import End, Link, PairLink
from planner.inputs.strict_yaml import Document
from planner.inputs.topology_file import LIMIT_GPUS, TopologyFile
from planner.inputs.units import format_rate

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_LIMIT_PAIRS: Final = 1 << 18
INLINE_NODES: Final = """gpu, nodes, gpus_per_node, links (level; fabric, or bandwidth and latency), in a topology.yaml:
schema: ep-plan/topology/1
gpu: h100-sxm
nodes: 4
gpus_per_node: 8
links:  # innermost first; per GPU, per direction
- {level: node, bandwidth: 450 GB/s, latency: 3 us}
- {level: cluster, fabric: ib-ndr}"""


@dataclass(frozen=True)
class Pair:
    """Two GPUs whose link is slower than its level."""

    gpus: tuple[int, int]
    bandwidth: float
    latency_s: float


@dataclass(frozen=True)
class Topology:
    """All GPUs in service, in order of their global ids (nodes in order, then local index)."""

    file: TopologyFile
    """The description in its shortest form, GPUs inline."""
    kinds: tuple[Gpu, ...]
    """Different GPUs, in order of first appearance."""
    kind_G: Ints
    """Kind of each GPU."""
    links: tuple[Link, ...]
    node_G: Ints
    """Node of each GPU."""
    local_G: Ints
    """Index of each GPU in its node, those out of service counted."""
    unit_VG: Ints
    """Unit (node, rack, ...) of each GPU at each level: GPUs of one unit are joined by that level."""
    bandwidth_VG: Floats
    """Bytes per second of the port by which each GPU reaches each level."""
    latency_VG: Floats
    efficiency_VG: Floats
    """Part of the bandwidth that the description says is reached; nan: as the communication kernel says."""
    port_VG: Ints
    """Port of each GPU at each level; GPUs with the same number share it."""
    pairs: tuple[Pair, ...] = field(default=())

    @property
    def gpu(self) -> Gpu:
        """The kind of GPU 0; of all GPUs where they are alike."""
        return self.kinds[0]

    @property
    def is_mixed(self) -> bool:
        """Whether there are different GPUs."""
        return len(self.kinds) > 1

    @cached_property
    def num_gpus(self) -> int:
        """GPUs in service."""
        return int(self.unit_VG.shape[1])

    @cached_property
    def memory_G(self) -> Ints:
        """Bytes of memory of each GPU."""
        return np.array([gpu.memory.value for gpu in self.kinds], dtype=np.int64)[self.kind_G]

    @cached_property
    def ports(self) -> tuple[int, ...]:
        """For each level the innermost level whose port its messages leave by."""
        first_out = self.file.node_level + 1
        ports: list[int] = []
        for level, link in enumerate(self.links):
            shares = link.same_port if link.same_port is not None else level > first_out
            ports.append(ports[-1] if level and shares else level)
        return tuple(ports)

    @cached_property
    def scale_up_level(self) -> int:
        """Outermost level that leaves by a port inside the node: beyond it lies the scale-out network."""
        return max(level for level, port in enumerate(self.ports) if port <= self.file.node_level)

    @cached_property
    def links_alike(self) -> bool:
        """Whether every GPU has the same rates at every level."""
        tables = (self.bandwidth_VG, self.latency_VG, np.nan_to_num(self.efficiency_VG, nan=-1.0))
        return all(bool((table == table[:, :1]).all()) for table in tables)

    @cached_property
    def shares_ports(self) -> bool:
        """Whether some GPUs share a port or an oversubscribed uplink."""
        return bool((self.port_users_VG > 1).any()) or any(link.oversubscription > 1 for link in self.links)

    @cached_property
    def port_users_VG(self) -> Ints:
        """GPUs in service that share the port of each GPU at each level, itself counted."""
        rows = [np.unique(ports, return_inverse=True, return_counts=True) for ports in self.port_VG]
        return np.stack([counts[inverse] for _, inverse, counts in rows])

    @cached_property
    def num_nodes(self) -> int:
        """Nodes with a GPU in service."""
        return len(np.unique(self.node_G))


def resolve(file: TopologyFile, num_gpus: int | None = None, document: Document | None = None) -> Topology:
    """Spell a topology out in arrays.

    Args:
        file: the description; GPUs inline.
        num_gpus: keep only the first so many GPUs in service (`--gpus`).
        document: where the description stands, for the places of problems.

    Raises:
        InputError: more GPUs asked for than there are, or a pair that is not slower than its level.
    """
    file = file.shortest()
    group_G, node_G, local_G, kinds, kind_G = _gpus(file)
    total = len(node_G)
    if num_gpus is not None and not 1 <= num_gpus <= total:
        hint = f"the topology has {file.counts()} GPUs{' in service' if file.out_of_service else ''}: give 1..{total}"
        raise InputError(Problem(f"{num_gpus} GPUs asked for, {total} are there", None, hint))
    kept = slice(num_gpus)
    group_G, node_G, local_G = group_G[kept], node_G[kept], local_G[kept]
    rates = _rates(file, group_G)
    used = sorted(set(kind_G[kept].tolist()))
    topology = Topology(
        file=file,
        kinds=tuple(kinds[kind] for kind in used),
        kind_G=np.searchsorted(used, kind_G[kept]).astype(np.int64),
        links=file.links,
        node_G=node_G,
        local_G=local_G,
        unit_VG=np.stack([_units(file, level, node_G, local_G) for level in range(len(file.links))]),
        bandwidth_VG=rates[0],
        latency_VG=rates[1],
        efficiency_VG=rates[2],
        port_VG=_ports(file, group_G, node_G, local_G),
    )
    return _with_pairs(topology, document)


def _gpus(file: TopologyFile) -> tuple[Ints, Ints, Ints, list[Gpu], Ints]:
    """Group, node, local index, kinds, and kind of every GPU in service."""
    groups = file.node_groups()
    kinds: list[Gpu] = []
    group_of: list[Ints] = []
    kind_of: list[Ints] = []
    locals_of: list[Ints] = []
    sizes: list[int] = []
    for number, group in enumerate(groups):
        own = [_kind(kinds, gpu) for gpu in group.kinds()]
        per_node = np.array(own * group.size if len(own) == 1 else own, dtype=np.int64)
        kind_of.append(np.tile(per_node, group.nodes))
        locals_of.append(np.tile(np.arange(group.size, dtype=np.int64), group.nodes))
        group_of.append(np.full(group.size * group.nodes, number, dtype=np.int64))
        sizes += [group.size] * group.nodes
    node_G = np.repeat(np.arange(len(sizes), dtype=np.int64), sizes)
    local_G = np.concatenate(locals_of)
    serves_G = np.ones(len(node_G), dtype=bool)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    for gone in file.out_of_service:
        first = int(starts[gone.node])
        if gone.gpus is None:
            serves_G[first : int(starts[gone.node + 1])] = False
        else:
            serves_G[[first + index for index in gone.gpus]] = False
    return (
        np.concatenate(group_of)[serves_G],
        node_G[serves_G],
        local_G[serves_G],
        kinds,
        np.concatenate(kind_of)[serves_G],
    )


def _kind(kinds: list[Gpu], gpu: str | Gpu) -> int:
    assert isinstance(gpu, Gpu), "GPUs are looked up before"
    if gpu not in kinds:
        kinds.append(gpu)
    return kinds.index(gpu)


def _units(file: TopologyFile, level: int, node_G: Ints, local_G: Ints) -> Ints:
    link, span = file.links[level], file.spans()[level]
    most = max(group.size for group in file.node_groups())
    if link.gpus is not None:
        return np.asarray(node_G * most + local_G // link.gpus)
    units = node_G // span
    return np.asarray(units * most + local_G if link.rails else units)


def _rates(file: TopologyFile, group_G: Ints) -> tuple[Floats, Floats, Floats]:
    """Bandwidth, latency and efficiency [V, G] of each GPU's port at each level."""
    shape = (len(file.links), len(file.node_groups()))
    bandwidth, latency, efficiency = np.empty(shape), np.empty(shape), np.full(shape, np.nan)
    for level, link in enumerate(file.links):
        for number, group in enumerate(file.node_groups()):
            own = group.link(link.level)
            bandwidth[level, number] = (own.bandwidth if own and own.bandwidth else link.bandwidth).value
            latency[level, number] = (own.latency if own and own.latency else link.latency).value
            reached = own.efficiency if own and own.efficiency else link.efficiency
            if reached is not None:
                efficiency[level, number] = reached.value
    return bandwidth[:, group_G], latency[:, group_G], efficiency[:, group_G]


def _ports(file: TopologyFile, group_G: Ints, node_G: Ints, local_G: Ints) -> Ints:
    most = max(group.size for group in file.node_groups())
    rows = []
    for link in file.links:
        own = [group.link(link.level) for group in file.node_groups()]
        share = np.array([one.shared_by if one and one.shared_by else link.shared_by for one in own], dtype=np.int64)
        rows.append(node_G * most + local_G // share[group_G])
    return np.stack(rows)


def _with_pairs(topology: Topology, document: Document | None) -> Topology:
    found: dict[tuple[int, int], Pair] = {}
    for number, link in enumerate(topology.file.overrides):
        ends = [_gpus_of(topology, end) for end in link.between]
        where = document.place(("overrides", number)) if document is not None else None
        if len(ends[0]) * len(ends[1]) + len(found) > _LIMIT_PAIRS:
            raise InputError(Problem(f"more than {_LIMIT_PAIRS:,} pairs of GPUs", where, "name fewer nodes"))
        for one in ends[0].tolist():
            for other in ends[1].tolist():
                if one != other:
                    found[min(one, other), max(one, other)] = _pair(topology, link, (one, other), where)
    return Topology(**{**topology.__dict__, "pairs": tuple(found.values())}) if found else topology


def _gpus_of(topology: Topology, end: End) -> Ints:
    """Ids of an end's GPUs that are in service."""
    here = topology.node_G == end.node
    if end.gpu is not None:
        here &= topology.local_G == end.gpu
    return np.flatnonzero(here)


def _pair(topology: Topology, link: PairLink, ends: tuple[int, int], where: Place | None) -> Pair:
    one, other = ends
    joined_V = topology.unit_VG[:, one] == topology.unit_VG[:, other]
    level = int(np.argmax(joined_V))
    both = topology.bandwidth_VG[level, [one, other]]
    if link.bandwidth.value > both.min():
        hint = "an override slows a pair; for faster pairs add a level with gpus: 2"
        rate, most = format_rate(link.bandwidth.value), format_rate(float(both.min()))
        message = f"{rate} is more than the {most} that the level {topology.links[level].level} gives"
        raise InputError(Problem(message, where, hint))
    latency = link.latency.value if link.latency is not None else topology.latency_VG[level, [one, other]].max()
    return Pair((min(one, other), max(one, other)), link.bandwidth.value, float(latency))


def load_topology(path: Path, num_gpus: int | None = None) -> Topology:
    """Read a topology.yaml and the GPU profiles that it names."""
    file, document = documents.load(path, TopologyFile, "topology")
    return resolve(_with_gpus(file), num_gpus, document)


def _with_gpus(file: TopologyFile) -> TopologyFile:
    """The same with GPU profiles looked up."""

    def looked_up(gpu: str | Gpu | None) -> Gpu | None:
        return load_gpu(gpu) if isinstance(gpu, str) else gpu

    groups = []
    for group in file.groups:
        gpus = None if group.gpus is None else tuple(looked_up(gpu) for gpu in group.gpus)
        groups.append(group.model_copy(update={"gpu": looked_up(group.gpu), "gpus": gpus}))
    return file.model_copy(update={"gpu": looked_up(file.gpu), "groups": tuple(groups)})


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
    links = links_within(node.links, count)
    gpu = load_gpu(node.gpu, where)
    return resolve(TopologyFile(gpu=gpu, nodes=count, gpus_per_node=node.gpus_per_node, links=links), num_gpus)


def links_within(links: tuple[Link, ...], count: int) -> tuple[Link, ...]:
    """The levels that so many nodes need: of a rack of 18 trays, 4 trays use the part that joins 4."""
    for index, link in enumerate(links):
        if link.nodes is not None and link.nodes >= count:
            return (*links[:index], link.model_copy(update={"nodes": count}))
    return links
