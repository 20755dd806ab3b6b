"""What a report shows beyond the figures that a plan books: the linear layout rank by rank, and traffic by pair.

Both are derived again from the plan's traces with the functions that price plans.

Legend: L MoE layers, R EP ranks, G GPUs, N nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from planner.baselines import placements, weights_of
from planner.check import cost_of, refuse_broken
from planner.cost.booking import book
from planner.cost.prepare import from_plan
from planner.cost.step import Cuts, SplitCost, stage_of_layers
from planner.cost.traffic import copies_between
from planner.plan.decision import cuts_of, placement_of
from planner.plan.placement import Placement
from planner.plan.plan import Plan

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Traffic:
    """Bytes of one step's dispatch in the traced MoE layers, mean over windows."""

    plan_GG: Floats
    """[to, from] by GPU id."""
    linear_GG: Floats
    """The same under the linear layout."""
    node_G: NDArray[np.int64]
    layers: int
    """Traced layers that are counted."""

    def by_node(self, bytes_GG: Floats) -> Floats:
        """The same between nodes [N to, N from]; the diagonal is what stays inside."""
        on_node_GN = np.asarray(self.node_G[:, None] == np.arange(self.node_G.max() + 1), dtype=float)
        return np.asarray(on_node_GN.T @ bytes_GG @ on_node_GN)

    def between_nodes(self, bytes_GG: Floats) -> float:
        """Bytes that cross from one node to another."""
        return float(bytes_GG[self.node_G[:, None] != self.node_G].sum())


@dataclass(frozen=True)
class Unbooked:
    """What a plan file does not hold."""

    linear_rank_tokens: tuple[tuple[int, ...], ...]
    """[L, R] as `predicted.rank_tokens`, for the linear layout."""
    traffic: Traffic | None
    """None where the placement does not change what travels."""


def unbooked(plan: Plan, path: Path, traces: Sequence[Path] | None = None) -> Unbooked:
    """Derive them from the plan's traces.

    Args:
        plan: the plan.
        path: its file; traces are named relative to it.
        traces: where its traces are now, if they were moved.

    Raises:
        InputError: a trace is not there any more, or has changed.
        BadAnswerError: the plan's parts do not go with each other.
    """
    instance = from_plan(plan, path, traces).instance
    refuse_broken(plan, instance, path)
    cost, cuts = cost_of(plan, instance), cuts_of(plan)
    if instance.windows is None:
        return Unbooked((), None)
    linear = placements(cost, stage_of_layers(cost, cuts), weights_of(instance.windows))["linear"]
    traffic = None
    if any(stage.moe.has_exchange for stage in cost.stages):
        traffic = Traffic(
            plan_GG=_dispatched(cost, cuts, placement_of(plan)),
            linear_GG=_dispatched(cost, cuts, linear),
            node_G=instance.topology.node_G,
            layers=len(instance.traced_layer_ids),
        )
    return Unbooked(book(cost, cuts, linear).rank_tokens, traffic)


def _dispatched(cost: SplitCost, cuts: Cuts, placement: Placement) -> Floats:
    """Bytes [G to, G from] of a step's dispatch, all micro-batches."""
    instance = cost.instance
    bytes_GG = np.zeros((instance.topology.num_gpus,) * 2)
    row_of = {layer: row for row, layer in enumerate(placement.layer_ids)}
    dedup = instance.constants.communication.dedup
    for stage, layers in zip(cost.stages, cuts, strict=True):
        moe, ids = stage.moe, list(stage.grid.gpus)
        volumes: dict[int, Floats] = {}
        for layer, load in zip(instance.traced_layer_ids, instance.loads, strict=True):
            if layer in layers:
                expert_P = placement.expert_LP[row_of[layer]]
                copies = moe.copies(load, expert_P, moe.rank_rows(load, expert_P))
                volumes = {key: volume_SX + volumes.get(key, 0.0) for key, volume_SX in copies.items()}
        if volumes:
            scale = moe.dispatch_bytes * cost.split.micro_batches / moe.etp
            bytes_GG[np.ix_(ids, ids)] = copies_between(stage.grid, dedup, volumes) * scale
    return bytes_GG
