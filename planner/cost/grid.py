"""Where the ranks of a stage sit on the machine, and what their messages pass.

Legend: G GPUs of the stage, R EP ranks, V link levels, U units of a level.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from planner.inputs.topology import Topology
from planner.plan.split import Split

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class EpGroup:
    """The GPUs that exchange tokens in one all-to-all, as units of each level.

    Units are numbered by first appearance, so that groups joined alike look alike.
    """

    unit_VR: Ints
    index_R: Ints
    """Position of each rank's GPU in the stage."""

    @cached_property
    def level_RR(self) -> Ints:
        """Innermost level that joins two ranks; 0 for a rank and itself."""
        joined_VRR = self.unit_VR[:, :, None] == self.unit_VR[:, None, :]
        level: Ints = joined_VRR.argmax(axis=0)
        return level

    @cached_property
    def levels_used(self) -> tuple[int, ...]:
        """Levels that some pair of ranks needs: the innermost that joins the two."""
        others = ~np.eye(self.unit_VR.shape[1], dtype=bool)
        return tuple(np.unique(self.level_RR[others]).tolist())


@dataclass(frozen=True)
class Grid:
    """The GPUs of one stage in rank order."""

    split: Split
    topology: Topology
    gpus: tuple[int, ...]

    @cached_property
    def unit_VG(self) -> Ints:
        """Unit of each GPU of the stage at each level."""
        units: Ints = self.topology.unit_VG[:, list(self.gpus)]
        return units

    @cached_property
    def kind_G(self) -> Ints:
        """Kind of each GPU of the stage."""
        kinds: Ints = self.topology.kind_G[list(self.gpus)]
        return kinds

    @cached_property
    def every_group(self) -> tuple[EpGroup, ...]:
        """The edp * etp all-to-all groups of the stage."""
        split = self.split
        by_group = self.unit_VG.reshape(-1, split.edp, split.ep, split.etp)
        index = np.arange(len(self.gpus)).reshape(split.edp, split.ep, split.etp)
        shifted = by_group - by_group.min(axis=2, keepdims=True)  # most groups are then equal: few are renumbered
        known: dict[bytes, Ints] = {}
        groups = []
        for copy in range(split.edp):
            for shard in range(split.etp):
                units_VR = shifted[:, copy, :, shard]
                key = units_VR.tobytes()
                if key not in known:
                    known[key] = np.stack([_renumbered(units) for units in units_VR])
                groups.append(EpGroup(known[key], index[copy, :, shard]))
        return tuple(groups)

    @property
    def node_R(self) -> Ints:
        """Node of each EP rank, as the GPUs of the first copy stand."""
        nodes: Ints = self.every_group[0].unit_VR[self.topology.file.node_level]
        return nodes

    @cached_property
    def _different(self) -> dict[bytes, EpGroup]:
        machine, gpus = self.topology, np.array(self.gpus)
        tables = () if machine.links_alike else (machine.bandwidth_VG, machine.efficiency_VG, machine.latency_VG)
        found: dict[bytes, EpGroup] = {}
        for group in self.every_group:
            ports = b"".join(table[:, gpus[group.index_R]].tobytes() for table in tables)
            found.setdefault(group.unit_VR.tobytes() + ports + self._slow_pairs(gpus[group.index_R]), group)
        return found

    @property
    def ep_groups(self) -> tuple[EpGroup, ...]:
        """One of each kind among them: groups whose GPUs have equal links cost the same."""
        return tuple(self._different.values())

    def _slow_pairs(self, gpus: Ints) -> bytes:
        """The slow pairs among these GPUs, by position."""
        if not self.topology.pairs:
            return b""
        position = {gpu: index for index, gpu in enumerate(gpus.tolist())}
        inside = [pair for pair in self.topology.pairs if position.keys() >= set(pair.gpus)]
        return repr([(*(position[gpu] for gpu in p.gpus), p.bandwidth, p.latency_s) for p in inside]).encode()

    @cached_property
    def pattern(self) -> bytes:
        """Equal for stages whose GPUs are alike and joined alike."""
        machine, gpus = self.topology, list(self.gpus)
        numbered = [np.stack([_renumbered(row) for row in table]) for table in (self.unit_VG, machine.port_VG[:, gpus])]
        rates = [table[:, gpus] for table in (machine.bandwidth_VG, machine.efficiency_VG, machine.latency_VG)]
        whole = [self.kind_G, machine.port_users_VG[:, gpus], *numbered]
        parts = [*(table.tobytes() for table in whole), *(table.tobytes() for table in rates)]
        return b"".join(parts) + self._slow_pairs(np.array(gpus))

    @cached_property
    def key(self) -> tuple[bytes, ...]:
        """Equal for stages whose EP ranks are alike and arranged alike: placements carry over between them."""
        if self.topology.shares_ports:
            return (self.pattern,)
        split = self.split
        kinds_RG = self.kind_G.reshape(split.edp, split.ep, split.etp).transpose(1, 0, 2).reshape(split.ep, -1)
        return (np.sort(kinds_RG, axis=1).tobytes(), *sorted(self._different))


def _renumbered(units: Ints) -> Ints:
    """Units numbered in order of first appearance."""
    rises = np.diff(units)
    if (rises >= 0).all():  # as with consecutive GPUs, and much faster
        return np.concatenate(([0], np.cumsum(rises > 0)))
    _, first, inverse = np.unique(units, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(len(first))
    return rank[inverse]


def stages_of(split: Split, topology: Topology) -> tuple[Grid, ...]:
    """The stages over consecutive GPUs, in order of GPU id."""
    size = split.stage_gpus
    return tuple(Grid(split, topology, tuple(range(stage * size, (stage + 1) * size))) for stage in range(split.pp))
