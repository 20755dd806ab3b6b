"""Which rank of the run is which rank of the plan.

Ranks of the run are the plan's GPU ids: nodes in order, then local index, as launchers count.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from planner.plan.plan import Plan

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Seat:
    """A rank's place in the plan's grids."""

    gpu: int
    """GPU id of the plan."""
    rank: int
    """Rank of the run."""
    stage: int
    turn: int
    """Position of the stage among those that run."""
    index: int
    """Position in the stage's list of GPUs."""
    tp_rank: int
    etp_rank: int
    ep_rank: int
    edp_rank: int


@dataclass(frozen=True)
class Seating:
    """The ranks of a run: all of a plan, or one stage of it at a time."""

    plan: Plan
    only: int | None = None
    """Just this stage."""

    @property
    def stages(self) -> range:
        """Stages that run."""
        return range(self.plan.split.pp) if self.only is None else range(self.only, self.only + 1)

    @cached_property
    def gpus(self) -> tuple[int, ...]:
        """GPU id of each rank of the run."""
        return tuple(sorted(gpu for stage in self.stages for gpu in self.plan.stages[stage].gpus))

    @cached_property
    def rank_KI(self) -> Ints:
        """Rank of the run at each place of each stage that runs."""
        rank_of = {gpu: rank for rank, gpu in enumerate(self.gpus)}
        rows = [[rank_of[gpu] for gpu in self.plan.stages[stage].gpus] for stage in self.stages]
        return np.array(rows, dtype=np.int64)

    @property
    def dense_KDT(self) -> Ints:
        """The same as [stage, data-parallel rank, tensor-parallel rank]."""
        split = self.plan.split
        return self.rank_KI.reshape(len(self.stages), split.dp, split.tp)

    @property
    def expert_KCRT(self) -> Ints:
        """The same as [stage, copy of the expert grid, EP rank, expert-TP rank]."""
        split = self.plan.split
        return self.rank_KI.reshape(len(self.stages), split.edp, split.ep, split.etp)

    @cached_property
    def seats(self) -> tuple[Seat, ...]:
        """By rank of the run."""
        split = self.plan.split
        found: dict[int, Seat] = {}
        for turn, stage in enumerate(self.stages):
            for index, rank in enumerate(self.rank_KI[turn].tolist()):
                found[rank] = Seat(
                    gpu=self.gpus[rank],
                    rank=rank,
                    stage=stage,
                    turn=turn,
                    index=index,
                    tp_rank=index % split.tp,
                    etp_rank=index % split.etp,
                    ep_rank=index // split.etp % split.ep,
                    edp_rank=index // (split.etp * split.ep),
                )
        return tuple(found[rank] for rank in range(len(found)))

    @property
    def world_size(self) -> int:
        """Ranks of the run."""
        return len(self.gpus)

    @cached_property
    def node_G(self) -> Ints:
        """Node of each GPU of the plan."""
        return self.plan.inputs.machine.node_G

    @cached_property
    def local_G(self) -> Ints:
        """Index of each GPU in its node, those out of service counted."""
        return self.plan.inputs.machine.local_G
