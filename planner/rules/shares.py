"""How a split is laid on the machine: which GPUs form a stage, and how many slots each rank fills."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.cost.grid import Grid, stages_of
from planner.cost.instance import Instance
from planner.plan.placement import slots_of_ranks
from planner.plan.split import Split

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Shares:
    """For each stage GPU ids in rank order and filled slots of each EP rank."""

    gpus: tuple[tuple[int, ...], ...]
    slots_KR: tuple[Ints, ...]

    def grids(self, split: Split, instance: Instance) -> tuple[Grid, ...]:
        """The grid of each stage."""
        return tuple(Grid(split, instance.topology, gpus) for gpus in self.gpus)


def even_shares(instance: Instance, split: Split, redundant: int) -> Shares:
    """Consecutive GPUs, slots as even as possible."""
    slots_R = slots_of_ranks(instance.model.moe.num_experts + redundant, split.ep)
    return Shares(tuple(grid.gpus for grid in stages_of(split, instance.topology)), (slots_R,) * split.pp)
