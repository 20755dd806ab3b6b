"""One MoE layer as an optimisation problem: which expert copies sit on which rank.

Minimise the mean over windows of the layer's time (docs/model.md, "Placement"), under
(C1) every expert at least once, (C2) the slots of each rank, (C3) no expert twice on a rank, and
(C6) a routing group's experts on one node where that is asked for.

Legend: S windows, E experts, R ranks, P slots, k copies of an expert.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from planner.cost.instance import LayerLoad
from planner.cost.moe import LayerTimes, MoeCost, rows_of, touched_of
from planner.cost.roofline import Kernel
from planner.cost.sharing import Sharing
from planner.cost.step import StageCost
from planner.cost.term import NOTHING
from planner.cost.traffic import Exchange
from planner.inputs.model import MoeFfn
from planner.rules import Limits, group_blocks

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CLOSED = 1e-6
"""Relative gap at which a plan counts as optimal."""


@dataclass(frozen=True)
class LayerProblem:
    """Data of one layer; `moe` holds the truth that prices placements."""

    moe: MoeCost
    load: LayerLoad
    slots_R: Ints
    group_E: Ints | None = None
    """Routing group of each expert if groups must stay on a node, or on a block of ranks."""
    block_R: Ints | None = None
    """Block of each rank, if blocks keep the groups and not nodes: a placement for a permuted checkpoint."""
    num_groups: int = 1
    """Groups of consecutive experts that the model routes to first."""

    @property
    def num_windows(self) -> int:
        """S."""
        return int(self.load.share_SE.shape[0])

    @property
    def num_experts(self) -> int:
        """E."""
        return int(self.load.share_SE.shape[1])

    @property
    def num_ranks(self) -> int:
        """R."""
        return len(self.slots_R)

    @cached_property
    def num_slots(self) -> int:
        """Filled slots, copies included."""
        return int(self.slots_R.sum())

    @cached_property
    def serves_nearest(self) -> bool:
        """Whether it matters which copy of an expert is nearest to a token's home."""
        return self.moe.sharing.rule == "nearest" and self.num_slots > self.num_experts

    @cached_property
    def ways(self) -> tuple[LayerProblem, ...]:
        """The layer by one kernel alone, for each that it may run; what searches and bounds work on."""
        return tuple(replace(self, moe=moe) for moe in self.moe.ways)

    def shared_evenly(self) -> LayerProblem:
        """The same layer if copies shared evenly."""
        return replace(self, moe=replace(self.moe, sharing=Sharing("even", self.moe.sharing.node_R)))

    @cached_property
    def loads_evenly(self) -> bool:
        """Whether all copies of an expert serve equally many tokens."""
        return not self.serves_nearest or self.moe.sharing.loads_evenly

    @cached_property
    def least_part(self) -> float:
        """The least part of an expert's tokens that a copy serves: by nearness, at least those of its own rank."""
        return 1.0 / (self.most_copies if self.loads_evenly else self.num_ranks)

    @cached_property
    def most_copies(self) -> int:
        """Copies that one expert can have at most."""
        return min(self.num_ranks, 1 + self.num_slots - self.num_experts)

    @cached_property
    def node_R(self) -> Ints:
        """Node (or block) of each rank, for keeping groups together; of the first all-to-all group."""
        return self.moe.exchange.node_R if self.block_R is None else self.block_R

    @cached_property
    def busy_R(self) -> Floats:
        """Expert seconds of each rank with mean rows and mean touched experts, constants apart."""
        rows = float(self.rows_SE.sum(axis=1).mean()) / self.num_ranks
        touched = float(self.touched_SE(1.0).sum(axis=1).mean()) / self.num_ranks
        by_class = [
            float(self.moe.class_s(number, np.array(rows), np.array(touched), 0.0) - kernel.base_s)
            for number, kernel in enumerate(self.moe.kernels_C)
        ]
        return np.asarray(np.array(by_class)[self.moe.class_R])

    @cached_property
    def slow_R(self) -> Floats:
        """Seconds of each rank with balanced load over those of a mean rank; exactly 1 where ranks are alike.

        A search that multiplies the load of a rank by it gives faster ranks more.
        """
        row_s_R = self.moe.exchange.row_s_R
        if self.moe.num_classes == 1 and self.moe.exchange.alike:
            return np.ones(self.num_ranks)
        rows = float(self.rows_SE.sum(axis=1).mean()) / self.num_ranks
        per_byte = (self.moe.dispatch_bytes + self.moe.combine_bytes) / self.moe.etp
        seconds_R = self.busy_R + rows * per_byte * row_s_R
        return np.asarray(seconds_R * (1.0 / seconds_R).mean())

    @cached_property
    def rows_SE(self) -> Floats:
        """Rows of each expert in a step, all copies together."""
        return rows_of(self.load, self.moe.tokens)

    def touched_SE(self, copies: Floats | float) -> Floats:
        """Probability that one of so many copies of each expert is touched in a step."""
        return touched_of(self.load, self.moe.tokens, copies)

    def times(self, expert_P: Ints) -> LayerTimes:
        """The truth."""
        return self.moe.layer(self.load, expert_P)

    def seconds(self, expert_P: Ints) -> float:
        """Objective: mean over windows."""
        return float(self.times(expert_P).total_S.mean())


def layer_problem(stage: StageCost, load: LayerLoad, moe: MoeFfn, limits: Limits) -> LayerProblem:
    """One layer of a stage as an optimisation problem, under what user and engine allow."""
    group_E = block_R = None
    if (limits.keep_groups or limits.for_checkpoint) and moe.num_groups > 1:
        group_E = np.arange(moe.num_experts) // (moe.num_experts // moe.num_groups)
    if limits.for_checkpoint and moe.num_groups > 1:
        block_R = group_blocks(moe.num_groups, len(stage.slots_R))
    return LayerProblem(stage.moe, load, stage.slots_R, group_E, block_R, moe.num_groups)


@dataclass(frozen=True)
class Tangent:
    """busy >= per_row * rows + per_touched * touched, with equality along one ratio of the two.

    The smooth maximum is homogeneous, so its tangent planes pass through the origin and each is
    named by a ratio (docs/model.md, (C4)). Values per class of ranks and window [C, S].
    """

    per_row_CS: Floats
    per_touched_CS: Floats


def tangent(moe: MoeCost, rows_S: Floats, touched_S: Floats) -> Tangent:
    """Tangent of the expert time of each class of ranks at the ratio of these rows and touched experts."""
    planes = [_plane(moe, kernel, rows_S, touched_S) for kernel in moe.kernels_C]
    return Tangent(np.stack([plane[0] for plane in planes]), np.stack([plane[1] for plane in planes]))


def _plane(moe: MoeCost, k: Kernel, rows_S: Floats, touched_S: Floats) -> tuple[Floats, Floats]:
    row_s = moe.flop_per_row * k.s_per_flop
    touched_s = moe.weight_bytes * k.s_per_byte
    compute_S = np.maximum(rows_S * row_s, 1e-30)
    memory_S = np.maximum(touched_S * touched_s, 1e-30)
    power = k.exponent
    norm_S = (compute_S**power + memory_S**power) ** ((power - 1) / power)
    moved = moe.moved_bytes_per_row * k.s_per_moved_byte
    return row_s * compute_S ** (power - 1) / norm_S + moved, touched_s * memory_S ** (power - 1) / norm_S


def mean_tangent(problem: LayerProblem) -> Tangent:
    """Tangent at the balanced point: every rank with the mean rows and the mean touched experts."""
    rows_S = problem.rows_SE.sum(axis=1) / problem.num_ranks
    touched_S = problem.touched_SE(1.0).sum(axis=1) / problem.num_ranks
    return tangent(problem.moe, rows_S, touched_S)


def plain_load_problem(
    load_SE: Floats, slots_R: Ints, node_R: Ints | None = None, group_E: Ints | None = None
) -> LayerProblem:
    """A layer whose time is the load of its fullest rank: one second per row, traffic free.

    Args:
        load_SE: load of each expert in each window.
        slots_R: slots of each rank.
        node_R: node of each rank; default: one node.
        group_E: group of each expert, if groups must stay on a node.
    """
    nodes = np.zeros(len(slots_R), dtype=np.int64) if node_R is None else node_R
    sizes = np.bincount(nodes)
    free = Exchange(
        dedup="expert",
        num_ranks=len(slots_R),
        node_R=nodes,
        partitions=(),
        blocks=(),
        row_s_R=np.zeros(len(slots_R)),
        latency_s=0.0,
        alike=True,
        interchangeable=bool((sizes == sizes[0]).all()),
    )
    unit = Kernel(0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 4, "given", "one second per row", None, 1.0, 0.0)
    moe = MoeCost(
        num_ranks=len(slots_R),
        etp=1,
        tokens=1.0,
        kernels_C=(unit,),
        class_R=np.zeros(len(slots_R), dtype=np.int64),
        flop_per_row=1.0,
        weight_bytes=0.0,
        moved_bytes_per_row=0.0,
        exchange=free,
        sharing=Sharing("even", nodes),
        dispatch_bytes=0.0,
        combine_bytes=0.0,
        combine_light_bytes=0.0,
        dispatch_fixed=NOTHING,
        combine_fixed=NOTHING,
        gather_s_per_row_byte=0.0,
        overlap=0.0,
        experts_hide=False,
        beside_s=0.0,
    )
    total_S = load_SE.sum(axis=1)
    return LayerProblem(moe, LayerLoad(load_SE / total_S[:, None], total_S, None), slots_R, group_E)
