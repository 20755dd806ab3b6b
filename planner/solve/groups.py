"""Which node keeps which routing group, where groups must stay together (docs/model.md, (C6)).

Legend: S windows, A routing groups, N nodes, E experts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from planner.rules import group_limits
from planner.solve.problem import LayerProblem

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def assign_groups(problem: LayerProblem) -> Ints | None:
    """The node of each group [A]: greedy by falling load, then swaps on all windows at once."""
    if problem.group_E is None:
        return None
    groups = int(problem.group_E.max()) + 1
    fewest_N, most_N = group_limits(problem.num_experts, groups, problem.slots_R, problem.node_R)
    even = -(-groups // len(most_N))
    while np.clip(even, fewest_N, most_N).sum() < groups:
        even += 1
    ranks_N = np.bincount(problem.node_R, weights=1.0 / problem.slow_R).astype(float)  # slow ranks count less
    load_SA = np.zeros((problem.num_windows, groups))
    np.add.at(load_SA.T, problem.group_E, problem.rows_SE.T)
    node_A = _greedy(load_SA, fewest_N, np.clip(even, fewest_N, most_N), ranks_N)
    return _swapped(node_A, load_SA, ranks_N)


def _greedy(load_SA: Floats, fewest_N: Ints, most_N: Ints, ranks_N: Floats) -> Ints:
    """Heaviest group first, each to the node with the least load per rank that may take it."""
    node_A = np.empty(load_SA.shape[1], dtype=np.int64)
    load_N, held_N = np.zeros(len(most_N)), np.zeros_like(most_N)
    order = np.argsort(-load_SA.sum(axis=0), kind="stable").tolist()
    for position, group in enumerate(order):
        missing_N = np.maximum(fewest_N - held_N, 0)
        open_N = held_N < most_N
        if len(order) - position <= int(missing_N.sum()):  # the rest is needed where groups are missing
            open_N &= missing_N > 0
        node = int(np.argmin(np.where(open_N, load_N / ranks_N, np.inf)))
        node_A[group] = node
        load_N[node] += load_SA[:, group].sum()
        held_N[node] += 1
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
