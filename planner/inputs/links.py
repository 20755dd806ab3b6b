"""Links of a machine: levels, what single groups of nodes have instead, and pairs that differ.

Bandwidth is per GPU and per direction everywhere; of a port that several GPUs share, it is that of
the port.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from planner.inputs.documents import Frozen, Sparse
from planner.inputs.fabrics import FabricName, with_fabric
from planner.inputs.sourced import Sourced
from planner.inputs.units import Duration, Percentage, Rate

Count = Annotated[int, Field(ge=1, le=1 << 16)]
Index = Annotated[int, Field(ge=0, lt=1 << 16)]
LevelName = Annotated[str, Field(min_length=1, max_length=40)]


class Link(Sparse):
    """One level of links, per GPU and per direction."""

    optional_keys: ClassVar[frozenset[str]] = frozenset({"gpus", "rails", "oversubscription", "shared_by"})

    level: LevelName
    """Name of the level, e.g. node, rail, rack or cluster."""
    fabric: FabricName | None = None
    """Fabric profile that gives bandwidth and latency where they are not spelled out, e.g. ib-ndr."""
    bandwidth: Sourced[Rate]
    """Of one GPU, in one direction, e.g. 450 GB/s; may be left out where a fabric is named."""
    latency: Sourced[Duration]
    """Of one message, e.g. 3 us; may be left out where a fabric is named."""
    nodes: Annotated[int, Field(ge=1)] | None = None
    """Nodes that this level joins; default: 1 for the innermost level, all for the outermost."""
    gpus: Annotated[int, Field(ge=2, le=1 << 16)] | None = None
    """For a level inside a node: so many GPUs in a row are joined (a bridge, a PCIe switch)."""
    rails: bool = False
    """The level joins only GPUs of the same local index in its nodes, each such rail for itself; all
    other messages pass the next level."""
    oversubscription: Annotated[float, Field(ge=1, le=1e6)] = 1.0
    """What the GPUs of a unit of the level inside could send by their ports together, over what the
    uplinks into this level carry, e.g. 2 for 2:1. Default: 1, no bottleneck besides the ports."""
    shared_by: Count = 1
    """GPUs of a node in a row that share one port of this bandwidth. Default: 1, a port each."""
    efficiency: Sourced[Percentage] | None = None
    """Part of the bandwidth that large messages reach; default: from the communication kernel."""
    same_port: bool | None = None
    """Whether messages of this level leave a GPU by the same port as those of the level inside it
    (NVLink across trays; a NIC beyond the leaf switch). Default: not for the first level that joins
    nodes (its NIC is another port than NVLink), yes for those further out."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_fabric(cls, data: Any) -> Any:
        return with_fabric(data) if isinstance(data, dict) else data

    @model_validator(mode="after")
    def _one_reach(self) -> Link:
        if self.gpus is not None and (self.nodes is not None or self.rails):
            raise ValueError("gpus is for a level inside a node\ngive it without nodes and rails")
        return self


class GroupLink(Frozen):
    """What the nodes of one group have at a level instead of what `links` says."""

    level: LevelName
    """Name of a level of `links`."""
    fabric: FabricName | None = None
    """Fabric profile that gives bandwidth and latency where they are not spelled out."""
    bandwidth: Sourced[Rate] | None = None
    """Of one GPU, in one direction; default: as in `links`."""
    latency: Sourced[Duration] | None = None
    """Of one message; default: as in `links`."""
    efficiency: Sourced[Percentage] | None = None
    """Part of the bandwidth that large messages reach; default: as in `links`."""
    shared_by: Count | None = None
    """GPUs of a node in a row that share one port; default: as in `links`."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_fabric(cls, data: Any) -> Any:
        return with_fabric(data) if isinstance(data, dict) else data


class Gone(Frozen):
    """GPUs out of service; the others of the node stay usable."""

    node: Index
    """The node, counting from 0 in order of the file."""
    gpus: Annotated[tuple[Index, ...], Field(min_length=1)] | None = None
    """Local indices, counting from 0; default: the whole node."""


class End(Frozen):
    """One end of a link."""

    node: Index
    """The node, counting from 0 in order of the file."""
    gpu: Index | None = None
    """Local index, counting from 0; default: every GPU of the node."""


class PairLink(Frozen):
    """A pair of GPUs, or of nodes, whose link is slower than its level says; both directions alike."""

    between: tuple[End, End]
    """The two ends."""
    bandwidth: Sourced[Rate]
    """Of the link between one GPU and one other, in one direction."""
    latency: Sourced[Duration] | None = None
    """Of one message; default: that of the level."""
