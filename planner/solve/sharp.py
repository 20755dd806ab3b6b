"""The last polish: swaps until the fullest ranks cannot be relieved.

The objective is the sum over windows of the fullest rank, which is what the layer's time follows. A swap
can only help if it touches the fullest rank of some window, so only those ranks are tried, each with all
slots in one numpy expression, in single precision; double precision then decides about the best.

Legend: S windows, E experts, R ranks, P slots (filled), Q slots of one rank, k copies.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from planner.solve.held import Held

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_TINY: Final = 1e-9


class SharpSearch:
    """A placement of one layer being improved.

    Args:
        held: changed in place.
        weight_kSE: seconds that one copy of an expert adds to its rank when the expert has k + 1 copies.
    """

    def __init__(self, held: Held, weight_kSE: Floats) -> None:
        self.held, self.problem = held, held.problem
        self.slow_R = held.problem.slow_R
        self.evaluations = 0
        self.unit_SE = held.unit_weights(weight_kSE)  # swaps leave the number of copies as it is
        self.load_SR = np.stack([self.load(rank) for rank in range(self.problem.num_ranks)], axis=1)

    def load(self, rank: int) -> Floats:
        """Load of one rank [S]: its copies' weights, times how slow it is."""
        return np.asarray(self.held.load(self.unit_SE, rank) * self.slow_R[rank])

    def improve(self) -> None:
        """Swaps until none lowers the sum of the fullest ranks."""
        while True:
            for rank in by_excess(self.load_SR):
                if self._swap(rank):
                    break
            else:
                return

    def _swap(self, rank: int) -> bool:
        expert_P, rank_P = self.held.expert_P, self.held.rank_P
        mine = np.asarray(self.held.of_rank[rank])
        rest_SP = fullest_without(self.load_SR, np.full_like(rank_P, rank), rank_P)
        unit, load, rest = (array.astype(np.float32) for array in (self.unit_SE, self.load_SR, rest_SP))
        delta_SQP = unit[:, None, expert_P] - unit[:, mine][:, :, None]
        slow_R = self.slow_R.astype(np.float32)
        top_SQP = load[:, rank][:, None, None] + delta_SQP * slow_R[rank]
        np.multiply(delta_SQP, slow_R[rank_P], out=delta_SQP)
        np.subtract(load[:, rank_P][:, None, :], delta_SQP, out=delta_SQP)
        np.maximum(top_SQP, delta_SQP, out=top_SQP)
        np.maximum(top_SQP, rest[:, None, :], out=top_SQP)
        after_QP = top_SQP.sum(axis=0)
        after_QP[self.held.forbidden(rank)] = np.inf
        self.evaluations += after_QP.size
        best = int(np.argmin(after_QP))
        slot, partner = divmod(best, len(expert_P))
        other, at = self.held.at(partner)
        delta_S = self.unit_SE[:, expert_P[partner]] - self.unit_SE[:, mine[slot]]
        here_S = self.load_SR[:, rank] + delta_S * self.slow_R[rank]
        there_S = self.load_SR[:, other] - delta_S * self.slow_R[other]
        after = np.maximum(np.maximum(here_S, there_S), rest_SP[:, partner]).sum()
        if not (np.isfinite(after_QP.flat[best]) and after < self.load_SR.max(axis=1).sum() * (1 - _TINY)):
            return False
        self.held.exchange(rank, slot, other, at)
        for changed in (rank, other):
            self.load_SR[:, changed] = self.load(changed)
        return True


def by_excess(load_SR: Floats) -> list[int]:
    """Ranks that are fullest in some window, those that stand out most first."""
    top = np.argsort(-load_SR, axis=1, kind="stable")[:, :2]
    value = np.take_along_axis(load_SR, top, axis=1)
    lead_S = value[:, 0] - value[:, -1] + _TINY * value[:, 0]
    excess_R = np.bincount(top[:, 0], weights=lead_S, minlength=load_SR.shape[1])
    order = np.argsort(-excess_R, kind="stable")
    return [int(rank) for rank in order if excess_R[rank] > 0]


def fullest_without(load_SR: Floats, *ranks: Ints) -> Floats:
    """Fullest rank [S, ...] when some ranks are left out, each given by an array; broadcast together."""
    ranks = np.broadcast_arrays(*ranks)
    count = min(len(ranks) + 1, load_SR.shape[1])
    top = np.argsort(-load_SR, axis=1, kind="stable")[:, :count]
    value = np.take_along_axis(load_SR, top, axis=1)
    axes = (slice(None), *(None,) * ranks[0].ndim)
    rest = np.zeros((len(load_SR), *ranks[0].shape))
    for place in reversed(range(count)):
        free = np.logical_and.reduce([top[:, place][axes] != rank for rank in ranks])
        rest = np.where(free, value[:, place][axes], rest)
    return rest
