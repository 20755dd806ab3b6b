"""Ranks that are alike may change names: a placement is named so that as much as possible stays where it is.

Which names ranks bear changes no time, but every expert that a rank held before need not travel to it. The best
naming is an assignment problem: a rank's new experts against every rank's old ones. Where tokens are sent once
per scale-up domain, or routing groups keep to nodes, whole domains change names and the ranks inside them.

Legend: R ranks, D domains, P slots.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from planner.solve.held import Held
from planner.solve.problem import LayerProblem

Ints = NDArray[np.int64]
_SAME = 1e-9


def relabelled(problem: LayerProblem, before_P: Ints, after_P: Ints) -> Ints:
    """The placement after, its ranks named so that the fewest experts move; the same where ranks differ."""
    before_ER, after_ER = (Held.of(problem, placed_P).member_ER.astype(np.int64) for placed_P in (before_P, after_P))
    kept_RR = after_ER.T @ before_ER  # [new name's experts, old rank]
    old_R = _names(problem, kept_RR)
    if (old_R == np.arange(problem.num_ranks)).all():
        return after_P
    by_rank = after_P.reshape(problem.num_ranks, -1)
    named = np.empty_like(by_rank)
    named[old_R] = by_rank
    named_P = named.reshape(-1)
    if problem.seconds(named_P) > problem.seconds(after_P) * (1 + _SAME):
        return after_P  # the ranks were not quite alike
    return named_P


def _names(problem: LayerProblem, kept_RR: Ints) -> Ints:
    """For each rank of the new placement the rank that it becomes."""
    exchange, ranks = problem.moe.exchange, np.arange(problem.num_ranks)
    alike = problem.moe.num_classes == 1 and exchange.alike and len(set(problem.slots_R.tolist())) == 1
    if not alike:
        return _inside(_kinds(problem), kept_RR)
    domain_R = np.zeros_like(ranks)
    if problem.group_E is not None or not problem.loads_evenly or (problem.serves_nearest and not exchange.partitions):
        domain_R = problem.node_R
    elif exchange.partitions:
        domain_R = exchange.partitions[0]
    sizes = np.bincount(domain_R)
    if len(exchange.partitions) > 1 or (sizes != sizes[0]).any():
        return _inside(domain_R, kept_RR)
    return _by_domain(domain_R, kept_RR)


def _kinds(problem: LayerProblem) -> Ints:
    """Ranks of one number may change names among themselves: same node, GPUs, slots and links."""
    kinds = list(
        zip(
            problem.node_R.tolist(),
            problem.moe.class_R.tolist(),
            problem.slots_R.tolist(),
            problem.moe.exchange.row_s_R.tolist(),
            strict=True,
        )
    )
    known = {kind: number for number, kind in enumerate(dict.fromkeys(kinds))}
    return np.array([known[kind] for kind in kinds], dtype=np.int64)


def _inside(domain_R: Ints, kept_RR: Ints) -> Ints:
    """New names inside each domain, every domain keeping its own."""
    old_R = np.arange(len(domain_R))
    for domain in np.unique(domain_R):
        ranks = np.flatnonzero(domain_R == domain)
        old_R[ranks] = ranks[_assigned(kept_RR[np.ix_(ranks, ranks)])[0]]
    return old_R


def _by_domain(domain_R: Ints, kept_RR: Ints) -> Ints:
    """New names for whole domains of equal size, and inside them."""
    count = int(domain_R.max()) + 1
    members = [np.flatnonzero(domain_R == domain) for domain in range(count)]
    inner = {
        (new, old): _assigned(kept_RR[np.ix_(members[new], members[old])])
        for new in range(count)
        for old in range(count)
    }
    kept_DD = np.array([[inner[new, old][1] for old in range(count)] for new in range(count)])
    old_D, _ = _assigned(kept_DD)
    old_R = np.empty(len(domain_R), dtype=np.int64)
    for new, old in enumerate(old_D.tolist()):
        old_R[members[new]] = members[old][inner[new, old][0]]
    return old_R


def _assigned(kept: Ints) -> tuple[Ints, int]:
    """For each row its column so that the sum is largest, and the sum; of equals, rows keep their places."""
    size = len(kept)
    if size == 1:
        return np.zeros(1, dtype=np.int64), int(kept[0, 0])
    from ortools.graph.python.linear_sum_assignment import SimpleLinearSumAssignment  # noqa: PLC0415  # slow to load

    worth = kept * (size + 1) + np.eye(size, dtype=np.int64)
    solver = SimpleLinearSumAssignment()
    row, column = np.divmod(np.arange(size * size), size)
    solver.add_arcs_with_cost(row, column, (worth.max() - worth).ravel())
    status = solver.solve()
    assert status == solver.OPTIMAL, "a full table always has an assignment"
    columns = np.array([solver.right_mate(number) for number in range(size)], dtype=np.int64)
    return columns, int(kept[np.arange(size), columns].sum())
