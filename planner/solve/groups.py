"""Which node keeps which routing group, where groups must stay together (docs/model.md, (C6)).

Legend: S windows, A routing groups, N nodes, E experts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from planner.rules import group_room
from planner.solve.problem import LayerProblem

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def assign_groups(problem: LayerProblem) -> Ints | None:
    """The node of each group [A]: greedy by falling load, then swaps on all windows at once."""
    if problem.group_E is None:
        return None
    groups = int(problem.group_E.max()) + 1
    room_N = group_room(problem.num_experts, groups, problem.slots_R, problem.node_R)
    room_N = np.minimum(room_N, -(-groups // len(room_N)))
    ranks_N = np.bincount(problem.node_R).astype(float)
    load_SA = np.zeros((problem.num_windows, groups))
    np.add.at(load_SA.T, problem.group_E, problem.rows_SE.T)
    node_A = _greedy(load_SA, room_N, ranks_N)
    return _swapped(node_A, load_SA, ranks_N)


def _greedy(load_SA: Floats, room_N: Ints, ranks_N: Floats) -> Ints:
    node_A = np.empty(load_SA.shape[1], dtype=np.int64)
    load_N, left_N = np.zeros(len(room_N)), room_N.copy()
    order = np.argsort(-load_SA.sum(axis=0), kind="stable").tolist()
    for position, group in enumerate(order):
        open_N = left_N > 0
        empty_N = left_N == room_N
        if len(order) - position <= int(empty_N.sum()):  # every node needs a group
            open_N &= empty_N
        node = int(np.argmin(np.where(open_N, load_N / ranks_N, np.inf)))
        node_A[group] = node
        load_N[node] += load_SA[:, group].sum()
        left_N[node] -= 1
    return node_A


def _swapped(node_A: Ints, load_SA: Floats, ranks_N: Floats) -> Ints:
    """Exchange two groups while that lowers the sum over windows of the fullest node."""

    def cost(nodes: Ints) -> float:
        load_SN = np.zeros((len(load_SA), len(ranks_N)))
        np.add.at(load_SN.T, nodes, load_SA.T)
        return float((load_SN / ranks_N).max(axis=1).sum())

    best = cost(node_A)
    improved = True
    while improved:
        improved = False
        for first in range(len(node_A)):
            for second in range(first):
                if node_A[first] == node_A[second]:
                    continue
                trial = node_A.copy()
                trial[first], trial[second] = node_A[second], node_A[first]
                value = cost(trial)
                if value < best * (1 - 1e-12):
                    node_A, best, improved = trial, value, True
    return node_A
