"""Where the search begins: how many copies each expert has, and a first rank for each of them.

Legend: S windows, E experts, R ranks, N nodes, k copies.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from planner.solve.problem import LayerProblem

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def spread_copies(smooth_kSE: Floats, slots_R: Ints) -> Ints:
    """Copies of each expert: spare slots one by one to the expert whose copy is largest on average.

    Where ranks have unequal slots, only as far as these hold it: of any m experts a rank holds at most m copies and at
    most as many as it has slots (Gale 1957, Ryser 1957). What holds this can always be extended until all slots are
    filled, as the independent sets of a polymatroid can.
    """
    most, _, experts = smooth_kSE.shape
    mean_kE = smooth_kSE.mean(axis=1)
    copies_E = np.ones(experts, dtype=np.int64)
    room_E = np.minimum(slots_R[:, None], np.arange(1, experts + 1)).sum(axis=0)
    full_E = np.zeros(experts, dtype=bool)
    unequal = int(np.ptp(slots_R)) > 1
    for _ in range(int(slots_R.sum()) - experts):
        while True:
            largest_E = mean_kE[copies_E - 1, np.arange(experts)]
            largest_E[(copies_E >= most) | full_E] = -np.inf
            expert = int(np.argmax(largest_E))
            assert largest_E[expert] > -np.inf, "no rank has more slots than there are experts"
            copies_E[expert] += 1
            if not unequal or (np.cumsum(-np.sort(-copies_E)) <= room_E).all():
                break
            copies_E[expert] -= 1
            full_E[expert] = True
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
    """Free slots are only on ranks that hold the expert already: move others there; the expert's new rank.

    A rank gives an expert to one that lacks it and has room, or to one that gives on another in turn; the first that
    lacks the expert itself takes it. Such a chain exists where the numbers of copies fit the slots (`spread_copies`).
    """
    node_R = problem.node_R

    def chain(target: int) -> list[tuple[int, int]]:
        """Ranks that give, from the one that takes the expert to one that fills the target, with what each gives."""
        gives: dict[int, tuple[int, int]] = {}
        waiting, seen = [target], {target}
        for taking in waiting:
            for source in np.argsort(load_R, kind="stable").tolist():
                if source in seen or (node_of_group is not None and node_R[source] != node_R[target]):
                    continue
                moved = next((e for e in held[source] if e not in held[taking]), None)
                if moved is None:
                    continue
                gives[source] = moved, taking
                if expert not in held[source]:
                    found = [(source, moved)]
                    while gives[found[-1][0]][1] != target:
                        found.append((gives[found[-1][0]][1], gives[gives[found[-1][0]][1]][0]))
                    return found
                waiting.append(source)
                seen.add(source)
        return []

    for target in np.flatnonzero(room_R > 0).tolist():
        found = chain(target)
        arriving = expert
        for source, moved in found:
            held[source][held[source].index(moved)] = arriving
            load_R[source] += (mean_E[arriving] - mean_E[moved]) * problem.slow_R[source]
            arriving = moved
        if found:
            held[target].append(arriving)
            load_R[target] += mean_E[arriving] * problem.slow_R[target]
            room_R[target] -= 1
            return found[0][0]
    raise AssertionError("no legal slot for a copy: the numbers of copies do not fit the slots")


def _legal_copies(problem: LayerProblem, smooth_kSE: Floats, node_of_group: Ints | None) -> Ints:
    """Copies of each expert; where groups stay on nodes, each node fills its own slots."""
    if node_of_group is None or problem.group_E is None:
        return spread_copies(smooth_kSE, problem.slots_R)
    copies_E = np.ones(problem.num_experts, dtype=np.int64)
    for node in range(int(problem.node_R.max()) + 1):
        ranks = np.flatnonzero(problem.node_R == node)
        members = np.flatnonzero(node_of_group[problem.group_E] == node)
        table = smooth_kSE[: len(ranks)][:, :, members]
        copies_E[members] = spread_copies(table, problem.slots_R[ranks])
    return copies_E
