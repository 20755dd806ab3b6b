"""Which experts each rank holds while a search improves a layer, and the swaps that no rule forbids.

Legend: S windows, E experts, R ranks, P slots (filled), Q slots of one rank, k copies.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from planner.plan.placement import from_ranks
from planner.solve.problem import LayerProblem

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


class Held:
    """A placement of one layer that keeps (C1) to (C3) and (C6).

    Args:
        problem: the layer.
        of_rank: experts of each rank.
    """

    def __init__(self, problem: LayerProblem, of_rank: Sequence[Sequence[int]]) -> None:
        self.problem = problem
        self.of_rank = [list(members) for members in of_rank]
        sizes = np.array([len(members) for members in self.of_rank], dtype=np.int64)
        self.expert_P = np.array([expert for members in self.of_rank for expert in members], dtype=np.int64)
        self.rank_P = np.repeat(np.arange(len(sizes)), sizes)
        self.first_R: Ints = np.cumsum(sizes) - sizes
        """Place of each rank's first slot."""
        self.member_ER: Bools = np.zeros((problem.num_experts, problem.num_ranks), dtype=bool)
        self.member_ER[self.expert_P, self.rank_P] = True
        self.copies_E: Ints = self.member_ER.sum(axis=1)

    @staticmethod
    def of(problem: LayerProblem, expert_P: Ints) -> Held:
        """A placement given as slots."""
        return Held(problem, [row[row >= 0].tolist() for row in expert_P.reshape(problem.num_ranks, -1)])

    def placement(self) -> Ints:
        """Slots in canonical order."""
        return from_ranks(self.of_rank, int(self.problem.slots_R.max()))

    def forbidden(self, rank: int) -> Bools:
        """Swaps [Q, P] of a slot of `rank` with any slot that would break a rule."""
        bad_P = (self.rank_P == rank) | self.member_ER[self.expert_P, rank]
        if self.problem.group_E is not None:
            node_R = self.problem.node_R
            bad_P |= node_R[self.rank_P] != node_R[rank]
        return np.asarray(bad_P[None, :] | self.member_ER[self.of_rank[rank]][:, self.rank_P])

    def arcs(self) -> Bools:
        """Whether the expert of one place may take another place [P, P], whose expert goes elsewhere."""
        ok_PP = (self.rank_P[:, None] != self.rank_P) & ~self.member_ER[self.expert_P][:, self.rank_P]
        if self.problem.group_E is not None:
            node_P = self.problem.node_R[self.rank_P]
            ok_PP &= node_P[:, None] == node_P
        return np.asarray(ok_PP)

    def rotate(self, places: Sequence[int]) -> tuple[list[int], list[int]]:
        """Let the expert of each place take the next one, the last one's the first; the experts, and the ranks."""
        slots = [self.at(place) for place in places]
        experts = [self.of_rank[rank][slot] for rank, slot in slots]
        ranks = [rank for rank, _ in slots]
        self.member_ER[experts, ranks] = False
        for place, (rank, slot), expert in zip(places, slots, [experts[-1], *experts[:-1]], strict=True):
            self.of_rank[rank][slot] = self.expert_P[place] = expert
            self.member_ER[expert, rank] = True
        return experts, ranks

    def at(self, place: int) -> tuple[int, int]:
        """Rank and slot of a place."""
        rank = int(self.rank_P[place])
        return rank, place - int(self.first_R[rank])

    def exchange(self, rank: int, slot: int, other: int, partner: int) -> tuple[int, int]:
        """Let two experts change places, each given by rank and slot; the experts."""
        first, second = self.of_rank[rank][slot], self.of_rank[other][partner]
        self.of_rank[rank][slot], self.of_rank[other][partner] = second, first
        self.expert_P[[self.first_R[rank] + slot, self.first_R[other] + partner]] = second, first
        self.member_ER[[first, second], rank] = [False, True]
        self.member_ER[[first, second], other] = [True, False]
        return first, second

    def replace(self, rank: int, slot: int, expert: int) -> None:
        """Put a copy of another expert into a slot."""
        gone = self.of_rank[rank][slot]
        self.of_rank[rank][slot] = expert
        self.expert_P[self.first_R[rank] + slot] = expert
        self.member_ER[[gone, expert], rank] = [False, True]
        self.copies_E[gone] -= 1
        self.copies_E[expert] += 1

    def unit_weights(self, table_kSE: Floats, more: int = 0) -> Floats:
        """Weight [S, E] of one copy of each expert, if it had so many copies more than it has.

        Args:
            table_kSE: weight of one copy of an expert that has k + 1 copies.
            more: copies; those beyond the table count as its last, those below one as one.
        """
        row_E = np.clip(self.copies_E + more, 1, len(table_kSE)) - 1
        return np.asarray(np.take_along_axis(table_kSE, row_E[None, None, :], axis=0)[0])

    def load(self, unit_SE: Floats, rank: int) -> Floats:
        """What the copies of a rank weigh together [S]."""
        return np.asarray(unit_SE[:, self.of_rank[rank]].sum(axis=1))

    def may_come(self, rank: int) -> Bools:
        """Experts [E] of which a rank may get a copy."""
        free_E = ~self.member_ER[:, rank]
        return free_E if self.problem.group_E is None else free_E & self.lives_with(rank)

    def lives_with(self, rank: int) -> Bools:
        """Experts [E] that have a copy on the rank's node."""
        node_R = self.problem.node_R
        return np.asarray(self.member_ER[:, node_R == node_R[rank]].any(axis=1))
