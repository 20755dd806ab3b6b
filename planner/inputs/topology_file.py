"""A topology.yaml as it stands: node groups, link levels, GPUs out of service, slow pairs."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated, ClassVar, Final

from pydantic import Field, model_validator

from planner.inputs.documents import Sparse
from planner.inputs.gpu import Gpu, GpuOrName
from planner.inputs.kernels import Calibration
from planner.inputs.links import Gone, GroupLink, Link, PairLink

LIMIT_GPUS: Final = 1 << 16
LIMIT_LINKS: Final = 8
JOIN_NODES: Final = "add the level that joins the nodes: {level: cluster, bandwidth: 50 GB/s, latency: 10 us}"
_INSTEAD: Final = "give gpu, nodes and gpus_per_node, or groups: [{gpu: h200-sxm, nodes: 1, gpus_per_node: 8}, ...]"


class NodeGroup(Sparse):
    """Nodes that are alike."""

    optional_keys: ClassVar[frozenset[str]] = frozenset({"gpu", "gpus_per_node", "gpus", "links"})

    nodes: Annotated[int, Field(ge=1, le=LIMIT_GPUS)] = 1
    """Number of nodes."""
    gpu: GpuOrName | None = None
    """The GPU of these nodes: a profile, or described inline."""
    gpus_per_node: Annotated[int, Field(ge=1, le=LIMIT_GPUS)] | None = None
    """GPUs of each node."""
    gpus: Annotated[tuple[GpuOrName, ...], Field(min_length=1, max_length=1024)] | None = None
    """Instead of gpu and gpus_per_node, where a node holds different GPUs: one for each, in order."""
    links: Annotated[tuple[GroupLink, ...], Field(max_length=LIMIT_LINKS)] = ()
    """Levels at which these nodes differ from `links` of the topology."""

    @model_validator(mode="after")
    def _one_form(self) -> NodeGroup:
        alike = self.gpu is not None and self.gpus_per_node is not None
        if (self.gpus is None) != alike or (self.gpus is not None and (self.gpu or self.gpus_per_node)):
            raise ValueError("a group has gpu and gpus_per_node, or gpus with one entry for each GPU of a node")
        return self

    @property
    def size(self) -> int:
        """GPUs of each node."""
        return self.gpus_per_node or len(self.gpus or ())

    def kinds(self) -> tuple[str | Gpu, ...]:
        """The GPU of all, or each GPU of a node."""
        return (self.gpu,) if self.gpu is not None else self.gpus or ()

    def link(self, level: str) -> GroupLink | None:
        """What these nodes have at a level instead."""
        return next((link for link in self.links if link.level == level), None)


class TopologyFile(Sparse):
    """A topology.yaml."""

    optional_keys: ClassVar[frozenset[str]] = frozenset(
        {"gpu", "nodes", "gpus_per_node", "groups", "out_of_service", "overrides", "calibration"}
    )

    gpu: GpuOrName | None = None
    """A GPU profile, or a GPU described inline."""
    nodes: Annotated[int, Field(ge=1, le=LIMIT_GPUS)] | None = None
    """Number of nodes."""
    gpus_per_node: Annotated[int, Field(ge=1, le=LIMIT_GPUS)] | None = None
    """GPUs of each node."""
    groups: Annotated[tuple[NodeGroup, ...], Field(max_length=1024)] = ()
    """Instead of gpu, nodes and gpus_per_node: groups of nodes with different GPUs, or counts of them."""
    links: Annotated[tuple[Link, ...], Field(min_length=1, max_length=LIMIT_LINKS)]
    """Link levels, innermost first."""
    out_of_service: Annotated[tuple[Gone, ...], Field(max_length=LIMIT_GPUS)] = ()
    """GPUs that are there but must not be used. Plans number the others."""
    overrides: Annotated[tuple[PairLink, ...], Field(max_length=4096)] = ()
    """Pairs of GPUs or nodes whose link is slower than its level; the last one said of a pair holds."""
    calibration: Annotated[tuple[Calibration, ...], Field(max_length=64)] = ()
    """Figures of communication kernels that were measured on this machine; they replace the shipped ones."""

    # --- the same in other words ------------------------------------------------------------------

    def node_groups(self) -> tuple[NodeGroup, ...]:
        """All nodes, group by group."""
        if self.groups:
            return self.groups
        return (NodeGroup(gpu=self.gpu, nodes=self.nodes or 1, gpus_per_node=self.gpus_per_node),)

    @property
    def num_nodes(self) -> int:
        """Nodes, also those without a GPU in service."""
        return sum(group.nodes for group in self.node_groups())

    def counts(self) -> str:
        """Nodes times GPUs, for people."""
        return " + ".join(f"{group.nodes} x {group.size}" for group in self.node_groups())

    def gpu_kinds(self) -> Iterator[str | Gpu]:
        """Every GPU named or described."""
        for group in self.node_groups():
            yield from group.kinds()

    def shortest(self) -> TopologyFile:
        """The same machine without needless words, so that equal machines give equal plans."""
        groups: list[NodeGroup] = []
        for group in map(_plain, self.node_groups()):
            if groups and groups[-1].model_copy(update={"nodes": group.nodes}) == group:
                groups[-1] = group.model_copy(update={"nodes": groups[-1].nodes + group.nodes})
            else:
                groups.append(group)
        (first, *others) = groups
        if others or first.gpus is not None or first.links:
            return self.model_copy(update={"gpu": None, "nodes": None, "gpus_per_node": None, "groups": tuple(groups)})
        update = {"gpu": first.gpu, "nodes": first.nodes, "gpus_per_node": first.gpus_per_node, "groups": ()}
        return self.model_copy(update=update)

    def spans(self) -> list[int]:
        """Nodes that each level joins, innermost first; 0 for a level inside a node."""
        last = len(self.links) - 1
        spans: list[int] = []
        for index, link in enumerate(self.links):
            if link.gpus is not None:
                spans.append(0)
                continue
            innermost = index == self.node_level
            implied = 1 if innermost and (last > index or self.num_nodes == 1) else self.num_nodes
            spans.append(link.nodes or implied)
        return spans

    @property
    def joins_nodes(self) -> bool:
        """Whether there is a level beyond a node."""
        outside = self.links[self.node_level :]
        return len(outside) != 1 or outside[0].nodes is not None

    @property
    def node_level(self) -> int:
        """The innermost level that joins whole nodes."""
        return next((index for index, link in enumerate(self.links) if link.gpus is None), len(self.links))

    # --- what must hold ---------------------------------------------------------------------------

    @model_validator(mode="after")
    def _consistent(self) -> TopologyFile:
        plain = {"gpu": self.gpu, "nodes": self.nodes, "gpus_per_node": self.gpus_per_node}
        missing = [name for name, value in plain.items() if value is None]
        if self.groups and len(missing) < len(plain):
            raise ValueError(f"groups stand beside {', '.join(n for n in plain if n not in missing)}\n{_INSTEAD}")
        if not self.groups and missing:
            raise ValueError(f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing\n{_INSTEAD}")
        count = sum(group.nodes * group.size for group in self.node_groups())
        if count > LIMIT_GPUS:
            raise ValueError(f"{count:,} GPUs\nat most {LIMIT_GPUS:,} are planned")
        self._check_levels()
        self._check_named()
        return self

    def _check_levels(self) -> None:
        names = [link.level for link in self.links]
        if len(set(names)) < len(names):
            raise ValueError(f"links: a level name stands twice: {', '.join(names)}")
        for number, group in enumerate(self.groups):
            unknown = [link.level for link in group.links if link.level not in names]
            if unknown:
                raise ValueError(f"groups[{number}].links: no level {unknown[0]!r}\nlevels: {', '.join(names)}")
        for number, one in enumerate(self.calibration):
            strange = [name for name in one.levels if name not in names]
            if strange:
                raise ValueError(f"calibration[{number}].levels: no level {strange[0]!r}\nlevels: {', '.join(names)}")
        nodes, spans = self.num_nodes, self.spans()
        outside = self.links[self.node_level :]
        if nodes > 1 and not self.joins_nodes:
            raise ValueError(f"{nodes} nodes, but only the level {outside[0].level!r} inside a node\n{JOIN_NODES}")
        if not outside or any(link.gpus is not None for link in outside):
            raise ValueError("links: levels inside a node (gpus: ...) come first, then those that join whole nodes")
        inside = [link.gpus or 0 for link in self.links[: self.node_level]]
        if any(inner >= outer for inner, outer in pairwise(inside)):
            raise ValueError(f"links: each level must join more GPUs than the one before, found {inside}")
        if nodes > 1 and any(
            inner > outer or (inner == outer and not link.rails and outer)
            for (inner, outer), link in zip(pairwise(spans), self.links, strict=False)
        ):
            raise ValueError(f"links: each level must join more nodes than the one before, found {spans}")
        if spans[-1] != nodes:
            raise ValueError(f"links: the outermost level joins {spans[-1]} of {nodes} nodes")
        if self.links[-1].rails or outside[0].rails:
            raise ValueError("links: rails lie between the level of a node and one that joins all GPUs")

    def _check_named(self) -> None:
        """Nodes and GPUs that are named must exist; some GPU must be left."""
        sizes = [group.size for group in self.node_groups() for _ in range(group.nodes)]
        gone: set[tuple[int, int]] = set()
        for number, entry in enumerate(self.out_of_service):
            here = f"out_of_service[{number}]"
            _check_node(here, entry.node, len(sizes))
            for index in entry.gpus if entry.gpus is not None else range(sizes[entry.node]):
                _check_gpu(here, entry.node, index, sizes)
                if (entry.node, index) in gone:
                    raise ValueError(f"{here}: GPU {index} of node {entry.node} stands twice")
                gone.add((entry.node, index))
        if len(gone) == sum(sizes):
            raise ValueError("out_of_service: no GPU is left")
        for number, pair in enumerate(self.overrides):
            one, other = pair.between
            for end in pair.between:
                _check_node(f"overrides[{number}]", end.node, len(sizes))
                if end.gpu is not None:
                    _check_gpu(f"overrides[{number}]", end.node, end.gpu, sizes)
            if one == other and one.gpu is not None:
                raise ValueError(f"overrides[{number}]: both ends are the same GPU")


def _plain(group: NodeGroup) -> NodeGroup:
    if group.gpus is None or any(gpu != group.gpus[0] for gpu in group.gpus):
        return group
    return group.model_copy(update={"gpu": group.gpus[0], "gpus_per_node": len(group.gpus), "gpus": None})


def _check_node(where: str, node: int, count: int) -> None:
    if node >= count:
        raise ValueError(f"{where}: no node {node}\nnodes count from 0 to {count - 1}")


def _check_gpu(where: str, node: int, index: int, sizes: list[int]) -> None:
    if index >= sizes[node]:
        raise ValueError(f"{where}: node {node} has no GPU {index}\nits GPUs count from 0 to {sizes[node] - 1}")
