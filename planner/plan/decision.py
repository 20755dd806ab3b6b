"""What a plan decides, apart from what it promises: the split, the stages, and experts in slots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from planner.plan.placement import Placement, slots_of_ranks
from planner.plan.plan import PlacementRecord, SplitRecord, StageRecord
from planner.plan.split import Split

Ints = NDArray[np.int64]


class Decided(Protocol):
    """A plan file, or what one decides."""

    @property
    def split(self) -> SplitRecord:
        """The degrees."""

    @property
    def stages(self) -> tuple[StageRecord, ...]:
        """Layers and GPUs of every stage."""

    @property
    def placement(self) -> PlacementRecord:
        """Experts in slots."""


@dataclass(frozen=True)
class Decision:
    """What a plan decides, without the figures."""

    split: SplitRecord
    stages: tuple[StageRecord, ...]
    placement: PlacementRecord


def split_of(plan: Decided) -> Split:
    """The plan's split."""
    return Split(**plan.split.model_dump())


def placement_of(plan: Decided) -> Placement:
    """The plan's placement as arrays."""
    record = plan.placement
    expert_LP = np.array(record.physical_to_logical, dtype=np.int64)
    return Placement(record.layer_ids, record.slots_per_rank, expert_LP)


def slots_of(plan: Decided) -> tuple[Ints, ...]:
    """Filled slots of each EP rank, by stage, as in the stage's first MoE layer; even where it has none."""
    record, ep = plan.placement, plan.split.ep
    filled_LP = np.array(record.physical_to_logical, dtype=np.int64) >= 0
    found = []
    for stage in plan.stages:
        rows = [row for row, layer in enumerate(record.layer_ids) if stage.layers[0] <= layer < stage.layers[1]]
        if rows:
            found.append(filled_LP[rows[0]].reshape(ep, -1).sum(axis=1))
        else:
            found.append(slots_of_ranks(int(filled_LP[0].sum()), ep))
    return tuple(found)


def cuts_of(plan: Decided) -> tuple[range, ...]:
    """Hidden layers of each stage."""
    return tuple(range(*stage.layers) for stage in plan.stages)
