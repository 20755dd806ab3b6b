"""Placements that need the fewest weights brought: for what is left of a placement after GPUs are lost.

Which experts a rank holds is a flow of least cost: every expert is held at least once, no rank holds one twice, and
every slot is filled. An expert costs a rank as much as must be brought to its GPUs. So the answer is exact.

Legend: E experts, R ranks, P slots.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.plan.placement import from_ranks
from planner.solve.moves import no_more_moves
from planner.solve.problem import LayerProblem

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class RestoreJob:
    """One layer, what each rank would have to be brought of each expert, and its time, if its routing is known."""

    missing_ER: Ints
    """Parts of the expert that the rank's GPUs lack."""
    far_ER: Ints
    """Among placements that need equally many parts the one with the least sum of these is taken."""
    slots_R: Ints
    problem: LayerProblem | None


def restored(job: RestoreJob) -> Ints:
    """Slots of a layer with the fewest parts brought; of such placements a fast one. Deterministic."""
    expert_P = fewest_loads(job.missing_ER, job.far_ER, job.slots_R)
    return expert_P if job.problem is None else no_more_moves(job.problem, expert_P, job.missing_ER)


def fewest_loads(missing_ER: Ints, far_ER: Ints, slots_R: Ints) -> Ints:
    """The slots of one layer; arguments as of `RestoreJob`."""
    from ortools.graph.python.min_cost_flow import SimpleMinCostFlow  # noqa: PLC0415  # slow to load

    experts, ranks = missing_ER.shape
    cost_ER = missing_ER * (int(far_ER.sum()) + 1) + far_ER
    held = int(cost_ER.sum()) + 1  # to hold an expert at all is worth more than all else
    expert_E, rank_R = np.arange(experts), experts + np.arange(ranks)
    source, sink = experts + ranks, experts + ranks + 1
    flow = SimpleMinCostFlow()

    def arcs(tails: Ints, heads: Ints, most: Ints, costs: Ints) -> Ints:
        added: Ints = flow.add_arcs_with_capacity_and_unit_cost(tails, heads, most, costs)
        return added

    sources_E = np.full(experts, source)
    arcs(sources_E, expert_E, np.ones(experts, dtype=np.int64), np.full(experts, -held))
    arcs(sources_E, expert_E, np.full(experts, ranks - 1), np.zeros(experts, dtype=np.int64))
    row, column = np.divmod(np.arange(experts * ranks), ranks)
    chosen = arcs(row, rank_R[column], np.ones(experts * ranks, dtype=np.int64), cost_ER.ravel())
    arcs(rank_R, np.full(ranks, sink), slots_R, np.zeros(ranks, dtype=np.int64))
    total = int(slots_R.sum())
    flow.set_nodes_supplies(np.array([source, sink]), np.array([total, -total]))
    status = flow.solve()
    assert status == flow.OPTIMAL, "no rank has more slots than there are experts"
    held_ER = flow.flows(chosen).reshape(experts, ranks) > 0
    assert held_ER.any(axis=1).all(), "there are as many slots as experts at least"
    return from_ranks(list(_of_ranks(held_ER)), int(slots_R.max()))


def _of_ranks(held_ER: NDArray[np.bool_]) -> Iterator[list[int]]:
    for held_E in held_ER.T:
        yield np.flatnonzero(held_E).tolist()
