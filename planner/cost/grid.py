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

    Groups with the same pattern of units cost the same; units are numbered by first appearance.
    """

    unit_VR: Ints

    @cached_property
    def levels_used(self) -> tuple[int, ...]:
        """Levels that some pair of ranks needs: the innermost that joins the two."""
        used = []
        for level, unit_R in enumerate(self.unit_VR):
            inner = self.unit_VR[level - 1] if level else np.arange(len(unit_R))
            if len(np.unique(unit_R)) < len(np.unique(inner)):
                used.append(level)
        return tuple(used)


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
    def ep_groups(self) -> tuple[EpGroup, ...]:
        """The different patterns among the edp * etp all-to-all groups of the stage."""
        split = self.split
        by_group = self.unit_VG.reshape(-1, split.edp, split.ep, split.etp)
        shifted = by_group - by_group.min(axis=2, keepdims=True)  # most groups are then equal: few are renumbered
        raw: dict[bytes, Ints] = {}
        for copy in range(split.edp):
            for shard in range(split.etp):
                raw.setdefault(shifted[:, copy, :, shard].tobytes(), shifted[:, copy, :, shard])
        patterns: dict[bytes, EpGroup] = {}
        for units_VR in raw.values():
            unit_VR = np.stack([_renumbered(units) for units in units_VR])
            patterns.setdefault(unit_VR.tobytes(), EpGroup(unit_VR))
        return tuple(patterns.values())

    @cached_property
    def pattern(self) -> bytes:
        """Equal for stages whose GPUs are joined alike."""
        return np.stack([_renumbered(units) for units in self.unit_VG]).tobytes()

    @cached_property
    def key(self) -> tuple[bytes, ...]:
        """Equal for stages whose EP ranks are arranged alike: placements carry over between them."""
        return tuple(sorted(group.unit_VR.tobytes() for group in self.ep_groups))

    def tp_level(self) -> int | None:
        """Outermost level inside a tensor-parallel group; None if tp = 1."""
        return self._level_of_blocks(self.split.tp)

    def etp_level(self) -> int | None:
        """Outermost level inside the GPUs that share one expert; None if etp = 1."""
        return self._level_of_blocks(self.split.etp)

    def _level_of_blocks(self, size: int) -> int | None:
        if size == 1:
            return None
        blocks = self.unit_VG.reshape(len(self.unit_VG), -1, size)
        joined_V = (blocks == blocks[:, :, :1]).all(axis=(1, 2))
        return int(np.argmax(joined_V))

    def level_to(self, other: Grid) -> int:
        """Level that a pipeline send to the next stage passes (rank i to rank i), at worst."""
        joined_V = (self.unit_VG == other.unit_VG).all(axis=1)
        return int(np.argmax(joined_V)) if joined_V.any() else len(joined_V) - 1


def _renumbered(units: Ints) -> Ints:
    _, first, inverse = np.unique(units, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(len(first))
    return rank[inverse]


def stages_of(split: Split, topology: Topology) -> tuple[Grid, ...]:
    """The stages over consecutive GPUs, in order of GPU id."""
    size = split.stage_gpus
    return tuple(Grid(split, topology, tuple(range(stage * size, (stage + 1) * size))) for stage in range(split.pp))
