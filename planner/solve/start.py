"""Where the search begins: how many copies each expert has, and a first rank for each of them.

Legend: S windows, E experts, R ranks, N nodes, k copies.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from planner.solve.problem import LayerProblem

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def spread_copies(smooth_kSE: Floats, num_slots: int) -> Ints:
    """Copies of each expert: spare slots one by one to the expert whose copy is largest on average."""
    most, _, experts = smooth_kSE.shape
    mean_kE = smooth_kSE.mean(axis=1)
    copies_E = np.ones(experts, dtype=np.int64)
    for _ in range(num_slots - experts):
        largest_E = mean_kE[copies_E - 1, np.arange(experts)]
        largest_E[copies_E >= most] = -np.inf
        copies_E[int(np.argmax(largest_E))] += 1
    return copies_E


def start(problem: LayerProblem, smooth_kSE: Floats, node_of_group: Ints | None) -> list[list[int]]:
    """Experts of each rank: copies by falling mean load, each to the lightest rank that may take it."""
    copies_E = _legal_copies(problem, smooth_kSE, node_of_group)
    mean_E = smooth_kSE.mean(axis=1)[copies_E - 1, np.arange(problem.num_experts)]
    held: list[list[int]] = [[] for _ in range(problem.num_ranks)]
    load_R = np.zeros(problem.num_ranks)
    room_R = problem.slots_R.copy()
    for expert in _packing_order(copies_E, mean_E):
        homes: list[int] = []
        for _ in range(copies_E[expert]):
            allowed_R = room_R > 0
            allowed_R[homes] = False
            if node_of_group is not None and problem.group_E is not None:
                allowed_R &= problem.node_R == node_of_group[problem.group_E[expert]]
            if not allowed_R.any():
                homes.append(_make_room(expert, held, room_R, load_R, mean_E, problem, node_of_group))
                continue
            rank = int(np.argmin(np.where(allowed_R, load_R, np.inf)))
            held[rank].append(expert)
            load_R[rank] += mean_E[expert] * problem.slow_R[rank]
            room_R[rank] -= 1
            homes.append(rank)
    return held


def _packing_order(copies_E: Ints, mean_E: Floats) -> list[int]:
    """Heaviest copy first."""
    return [int(expert) for expert in np.argsort(-mean_E, kind="stable") if copies_E[expert]]


def _make_room(
    expert: int,
    held: list[list[int]],
    room_R: Ints,
    load_R: Floats,
    mean_E: Floats,
    problem: LayerProblem,
    node_of_group: Ints | None,
) -> int:
    """Free slots are only on ranks that hold the expert already: move another expert there; the expert's new rank.

    Some rank without the expert holds one that the rank with room lacks; it moves, and the expert
    takes its slot. Such a pair exists because no rank has more slots than there are experts.
    """
    node_R = problem.node_R
    for target in np.flatnonzero(room_R > 0).tolist():
        for source in np.argsort(load_R, kind="stable").tolist():
            if expert in held[source] or (node_of_group is not None and node_R[source] != node_R[target]):
                continue
            moved = next((e for e in held[source] if e not in held[target]), None)
            if moved is None:
                continue
            held[source][held[source].index(moved)] = expert
            held[target].append(moved)
            load_R[source] += (mean_E[expert] - mean_E[moved]) * problem.slow_R[source]
            load_R[target] += mean_E[moved] * problem.slow_R[target]
            room_R[target] -= 1
            return int(source)
    raise AssertionError("no legal slot for a copy: slots per rank exceed the number of experts")


def _legal_copies(problem: LayerProblem, smooth_kSE: Floats, node_of_group: Ints | None) -> Ints:
    """Copies of each expert; where groups stay on nodes, each node fills its own slots."""
    if node_of_group is None or problem.group_E is None:
        return spread_copies(smooth_kSE, problem.num_slots)
    copies_E = np.ones(problem.num_experts, dtype=np.int64)
    for node in range(int(problem.node_R.max()) + 1):
        ranks = np.flatnonzero(problem.node_R == node)
        members = np.flatnonzero(node_of_group[problem.group_E] == node)
        table = smooth_kSE[: len(ranks)][:, :, members]
        copies_E[members] = spread_copies(table, int(problem.slots_R[ranks].sum()))
    return copies_E
