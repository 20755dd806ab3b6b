"""Which experts each rank holds while a search improves a layer, and the swaps that no rule forbids.

Legend: E experts, R ranks, P slots (filled), Q slots of one rank.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from planner.plan.placement import from_ranks
from planner.solve.problem import LayerProblem

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass
class Held:
    """A placement of one layer that keeps (C1) to (C3) and (C6)."""

    problem: LayerProblem
    of_rank: list[list[int]]
    """Experts of each rank."""
    copies_E: Ints = field(init=False)
    member_ER: Bools = field(init=False)

    def __post_init__(self) -> None:
        self.refresh()

    @staticmethod
    def of(problem: LayerProblem, expert_P: Ints) -> Held:
        """A placement given as slots."""
        return Held(problem, [row[row >= 0].tolist() for row in expert_P.reshape(problem.num_ranks, -1)])

    def refresh(self) -> None:
        """Recompute what follows from `of_rank`."""
        experts, ranks = self.problem.num_experts, self.problem.num_ranks
        self.member_ER = np.zeros((experts, ranks), dtype=bool)
        for rank, members in enumerate(self.of_rank):
            self.member_ER[members, rank] = True
        self.copies_E = self.member_ER.sum(axis=1)

    def placement(self) -> Ints:
        """Slots in canonical order."""
        return from_ranks(self.of_rank, int(self.problem.slots_R.max()))

    def slots(self) -> tuple[Ints, Ints]:
        """Expert and rank of every filled slot."""
        expert_P = np.concatenate([np.asarray(members, dtype=np.int64) for members in self.of_rank])
        rank_P = np.repeat(np.arange(len(self.of_rank)), [len(members) for members in self.of_rank])
        return expert_P, rank_P

    def forbidden(self, rank: int, expert_P: Ints, rank_P: Ints) -> Bools:
        """Swaps [Q, P] of a slot of `rank` with any slot that would break a rule."""
        mine = self.of_rank[rank]
        bad = (rank_P == rank)[None, :] | self.member_ER[expert_P, rank][None, :]
        bad = bad | self.member_ER[mine][:, rank_P]
        if self.problem.group_E is not None:
            node_R = self.problem.node_R
            bad = bad | (node_R[rank_P] != node_R[rank])[None, :]
        return np.asarray(bad)

    def swap(self, rank: int, mine: int, partner: int, rank_P: Ints) -> tuple[int, int, int]:
        """Exchange slot `mine` of `rank` with slot `partner` of all; the experts and the other rank."""
        other = int(rank_P[partner])
        theirs = partner - int(np.searchsorted(rank_P, other))
        first, second = self.of_rank[rank][mine], self.of_rank[other][theirs]
        self.of_rank[rank][mine], self.of_rank[other][theirs] = second, first
        self.member_ER[[first, second], rank] = [False, True]
        self.member_ER[[first, second], other] = [True, False]
        return first, second, other

    def replace(self, rank: int, slot: int, expert: int) -> None:
        """Put a copy of another expert into a slot."""
        self.of_rank[rank][slot] = expert
        self.refresh()

    def lives_with(self, rank: int) -> Bools:
        """Experts [E] that have a copy on the rank's node."""
        node_R = self.problem.node_R
        return np.asarray(self.member_ER[:, node_R == node_R[rank]].any(axis=1))
