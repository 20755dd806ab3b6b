"""A plan as the writers of formats see it: who holds which expert, and where the ranks are.

Legend: L MoE layers, P slots, E experts, R EP ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from planner.check import refuse_broken
from planner.cost.instance import Instance
from planner.inputs.model import Model
from planner.inputs.topology import Topology
from planner.inputs.workload import CopyRule
from planner.plan.decision import placement_of, split_of
from planner.plan.placement import Placement
from planner.plan.plan import Plan
from planner.plan.split import Split

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Layout:
    """What every format is made from."""

    split: Split
    cuts: tuple[range, ...]
    """Hidden layers of each stage."""
    gpus: tuple[tuple[int, ...], ...]
    """Global GPU ids of each stage, in rank order."""
    model: Model
    topology: Topology
    placement: Placement
    redundant_experts: int
    kernel: str = ""
    """Communication kernel of dispatch and combine."""
    copy_rule: CopyRule = "even"
    """How copies of an expert share its tokens in the plan."""
    for_checkpoint: bool = False
    """Whether the placement is meant for a permuted checkpoint, where linear layout realises it."""

    @property
    def num_experts(self) -> int:
        """E."""
        return self.model.moe.num_experts

    @property
    def num_gpus(self) -> int:
        """GPUs of all stages."""
        return sum(map(len, self.gpus))

    @property
    def ranks(self) -> tuple[int, ...]:
        """The GPU of each rank of the world: stage after stage, in rank order."""
        return tuple(gpu for stage in self.gpus for gpu in stage)

    def gpus_of_ranks(self) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """For each stage the GPUs of every EP rank: all shards in all copies of the expert grid."""
        return tuple(gpus_of_ranks(stage, self.split) for stage in self.gpus)

    def by_rank(self, row: int) -> list[list[int]]:
        """Experts of each EP rank in a row of the placement, empty slots left out."""
        ranks = self.placement.expert_LP[row].reshape(self.split.ep, -1)
        return [[expert for expert in experts if expert >= 0] for experts in ranks.tolist()]

    def rows(self) -> list[list[int]]:
        """Experts in the slots of every MoE layer; only for formats without empty slots."""
        found: list[list[int]] = self.placement.expert_LP.tolist()
        return found

    def stage_of(self, layer: int) -> int:
        """The stage of a hidden layer."""
        return next(number for number, layers in enumerate(self.cuts) if layer in layers)


def gpus_of_ranks(stage: tuple[int, ...], split: Split) -> tuple[tuple[int, ...], ...]:
    """The GPUs of every EP rank of a stage, from its GPUs in rank order."""
    grid = np.array(stage).reshape(split.edp, split.ep, split.etp)
    return tuple(tuple(grid[:, rank].reshape(-1).tolist()) for rank in range(split.ep))


def layout_of(plan: Plan, file: Path) -> Layout:
    """The layout of a plan; its figures need not be right, but its ranks and slots must.

    Raises:
        BadAnswerError: they are not.
    """
    inputs = plan.inputs
    topology = inputs.machine
    refuse_broken(plan, Instance(inputs.model, topology, inputs.workload, inputs.cost, None), file)
    return Layout(
        split=split_of(plan),
        cuts=tuple(range(*stage.layers) for stage in plan.stages),
        gpus=tuple(stage.gpus for stage in plan.stages),
        model=plan.inputs.model,
        topology=topology,
        placement=placement_of(plan),
        redundant_experts=plan.placement.redundant_experts,
        kernel=inputs.cost.communication.kernel,
        copy_rule=plan.placement.copy_rule,
        for_checkpoint=plan.inputs.target == "checkpoint",
    )
