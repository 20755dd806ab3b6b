"""Finding a good placement fast: local search over all windows at once.

Every copy of an expert has one weight per window (`weights.py`), so a rank's load is a sum of weights.
Two objectives are used:

- smooth: sum over windows and ranks of (load / mean load)**8. All ranks pull, not only the fullest,
  so the search does not get stuck on plateaus; and with few windows these are spread further
  apart first (`weights.Stretch`), so that the plan does not cling to those few.
- sharp: sum over windows of the fullest rank, which is what the layer's time follows.

Moves: swap two experts between ranks; replace a copy of a replicated expert by a copy of another.
A move of the sharp objective can only help if it touches the fullest rank of some window, so only
those ranks are tried. Everything is evaluated for all partners of a rank in one numpy expression,
in single precision, which takes half the time; double precision then decides about the best swap.

Ranks may differ: the weights are those of the first class of ranks, and a rank's load is multiplied
by how slow it is, so that the same objectives give faster ranks more.

Legend: S windows, E experts, R ranks, P slots (filled), Q slots of one rank, k copies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.solve.held import Held
from planner.solve.problem import LayerProblem

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_POWER_IS_8 = 3  # squarings
_TINY = 1e-9


@dataclass
class Search:
    """A placement of one layer being improved, and what moves cost."""

    held: Held
    weight_kSE: Floats
    """Seconds that one copy of an expert adds to its rank when the expert has k + 1 copies."""
    smooth_kSE: Floats
    """The same in the units and windows of the smooth objective: mean rank load 1."""
    evaluations: int = 0

    @property
    def problem(self) -> LayerProblem:
        """The layer."""
        return self.held.problem

    # --- the two objectives -----------------------------------------------------------------------

    def unit_weights(self, table_kSE: Floats) -> Floats:
        """Weight [S, E] of one copy of each expert at its present number of copies."""
        unit_SE: Floats = np.take_along_axis(table_kSE, (self.held.copies_E - 1)[None, None, :], axis=0)[0]
        return unit_SE

    def loads(self, table_kSE: Floats) -> Floats:
        """Load of each rank [S, R]."""
        unit_SE = self.unit_weights(table_kSE)
        return np.stack([self._load(unit_SE, rank) for rank in range(self.problem.num_ranks)], axis=1)

    def _load(self, unit_SE: Floats, rank: int) -> Floats:
        """Load of one rank [S]: its copies' weights, times how slow it is."""
        load_S: Floats = unit_SE[:, self.held.of_rank[rank]].sum(axis=1) * self.problem.slow_R[rank]
        return load_S

    # --- swaps ------------------------------------------------------------------------------------

    def improve_smooth(self) -> None:
        """Swaps and replacements until none lowers the smooth objective."""
        self._swaps_smooth()
        while self._replace_smooth():
            self._swaps_smooth()

    def improve_sharp(self) -> None:
        """Swaps until none lowers the sum of the fullest ranks."""
        table = self.weight_kSE
        load_SR = self.loads(table)
        unit_SE = self.unit_weights(table)
        while True:
            for rank in _by_excess(load_SR):
                if self._swap_sharp(rank, load_SR, unit_SE):
                    break
            else:
                return

    def _swaps_smooth(self) -> None:
        unit_SE = self.unit_weights(self.smooth_kSE)
        load_SR = self.loads(self.smooth_kSE)
        power_R = _power(load_SR).sum(axis=0)
        while True:
            for rank in np.argsort(-power_R, kind="stable").tolist():
                if self._swap_smooth(rank, load_SR, power_R, unit_SE):
                    break
            else:
                return

    def _swap_smooth(self, rank: int, load_SR: Floats, power_R: Floats, unit_SE: Floats) -> bool:
        expert_P, rank_P = self.held.slots()
        mine = np.asarray(self.held.of_rank[rank])
        unit, load = unit_SE.astype(np.float32), load_SR.astype(np.float32)
        delta_SQP = unit[:, None, expert_P] - unit[:, mine][:, :, None]
        slow_R = self.problem.slow_R.astype(np.float32)
        after_QP = _power(load[:, rank][:, None, None] + delta_SQP * slow_R[rank]).sum(axis=0)
        np.multiply(delta_SQP, slow_R[rank_P], out=delta_SQP)
        np.subtract(load[:, rank_P][:, None, :], delta_SQP, out=delta_SQP)
        after_QP += _power(delta_SQP).sum(axis=0)
        change_QP = after_QP - (power_R[rank] + power_R[rank_P])[None, :]
        change_QP[self.held.forbidden(rank, expert_P, rank_P)] = np.inf
        self.evaluations += change_QP.size
        best = int(np.argmin(change_QP))
        slot, partner = divmod(best, len(expert_P))
        delta_S = unit_SE[:, expert_P[partner]] - unit_SE[:, mine[slot]]
        slow, slow_partner = self.problem.slow_R[rank], self.problem.slow_R[rank_P[partner]]
        pair_SR = np.stack([load_SR[:, rank] + delta_S * slow, load_SR[:, rank_P[partner]] - delta_S * slow_partner])
        change = _power(pair_SR).sum() - power_R[rank] - power_R[rank_P[partner]]
        if not (np.isfinite(change_QP.flat[best]) and change < -_TINY * power_R.sum()):
            return False
        _, _, other = self.held.swap(rank, slot, partner, rank_P)
        for changed in (rank, other):
            load_SR[:, changed] = self._load(unit_SE, changed)
            power_R[changed] = _power(load_SR[:, changed]).sum()
        return True

    def _swap_sharp(self, rank: int, load_SR: Floats, unit_SE: Floats) -> bool:
        expert_P, rank_P = self.held.slots()
        mine = np.asarray(self.held.of_rank[rank])
        rest_SP = fullest_without(load_SR, rank, rank_P)
        unit, load, rest = (array.astype(np.float32) for array in (unit_SE, load_SR, rest_SP))
        delta_SQP = unit[:, None, expert_P] - unit[:, mine][:, :, None]
        slow_R = self.problem.slow_R.astype(np.float32)
        top_SQP = load[:, rank][:, None, None] + delta_SQP * slow_R[rank]
        np.multiply(delta_SQP, slow_R[rank_P], out=delta_SQP)
        np.subtract(load[:, rank_P][:, None, :], delta_SQP, out=delta_SQP)
        np.maximum(top_SQP, delta_SQP, out=top_SQP)
        np.maximum(top_SQP, rest[:, None, :], out=top_SQP)
        after_QP = top_SQP.sum(axis=0)
        after_QP[self.held.forbidden(rank, expert_P, rank_P)] = np.inf
        self.evaluations += after_QP.size
        best = int(np.argmin(after_QP))
        slot, partner = divmod(best, len(expert_P))
        delta_S = unit_SE[:, expert_P[partner]] - unit_SE[:, mine[slot]]
        slow, slow_partner = self.problem.slow_R[rank], self.problem.slow_R[rank_P[partner]]
        pair_S = np.maximum(load_SR[:, rank] + delta_S * slow, load_SR[:, rank_P[partner]] - delta_S * slow_partner)
        after = np.maximum(pair_S, rest_SP[:, partner]).sum()
        if not (np.isfinite(after_QP.flat[best]) and after < load_SR.max(axis=1).sum() * (1 - _TINY)):
            return False
        _, _, other = self.held.swap(rank, slot, partner, rank_P)
        for changed in (rank, other):
            load_SR[:, changed] = self._load(unit_SE, changed)
        return True

    # --- copies -----------------------------------------------------------------------------------

    def _replace_smooth(self) -> bool:
        """The best replacement of one copy by a copy of another expert, if any helps."""
        table = self.smooth_kSE
        if (self.held.copies_E < 2).all():
            return False
        load_SR = self.loads(table)
        before = float(_power(load_SR).sum())
        best, choice = -_TINY * before, None
        unit_SE = self.unit_weights(table)
        more_SE = np.take_along_axis(table, np.minimum(self.held.copies_E, len(table) - 1)[None, None, :], axis=0)[0]
        for rank, members in enumerate(self.held.of_rank):
            for slot, expert in enumerate(members):
                if self.held.copies_E[expert] < 2:
                    continue
                change_E = self._replacement(rank, expert, load_SR, unit_SE, more_SE) - before
                wanted = int(np.argmin(change_E))
                if change_E[wanted] < best:
                    best, choice = float(change_E[wanted]), (rank, slot, wanted)
        if choice is None:
            return False
        rank, slot, wanted = choice
        self.held.replace(rank, slot, wanted)
        return True

    def _replacement(self, rank: int, expert: int, load_SR: Floats, unit_SE: Floats, more_SE: Floats) -> Floats:
        """Smooth objective [E] after a copy of `expert` on `rank` gives way to each other expert."""
        fewer_S = self.smooth_kSE[self.held.copies_E[expert] - 2, :, expert]
        slow_R = self.problem.slow_R
        kept_SR = load_SR.copy()
        kept_SR[:, rank] -= unit_SE[:, expert] * slow_R[rank]
        others = self.held.member_ER[expert].copy()
        others[rank] = False
        kept_SR[:, others] += (fewer_S - unit_SE[:, expert])[:, None] * slow_R[others]
        change_SE = more_SE - unit_SE
        after_SER = kept_SR[:, None, :] + change_SE[:, :, None] * (self.held.member_ER[None] * slow_R)
        after_SER[:, :, rank] = kept_SR[:, rank][:, None] + more_SE * slow_R[rank]
        value_E = np.asarray(_power(after_SER).sum(axis=(0, 2)))
        impossible = self.held.member_ER[:, rank] | (self.held.copies_E >= len(self.smooth_kSE))
        impossible[expert] = True
        if self.problem.group_E is not None:
            impossible |= ~self.held.lives_with(rank)
        value_E[impossible] = np.inf
        self.evaluations += value_E.size
        return value_E


def _power(load: NDArray[Any]) -> NDArray[Any]:
    """load**8."""
    power = load * load
    for _ in range(_POWER_IS_8 - 1):
        np.multiply(power, power, out=power)
    return np.asarray(power)


def _by_excess(load_SR: Floats) -> list[int]:
    """Ranks that are fullest in some window, those that stand out most first."""
    top = np.argsort(-load_SR, axis=1, kind="stable")[:, :2]
    value = np.take_along_axis(load_SR, top, axis=1)
    lead_S = value[:, 0] - value[:, -1] + _TINY * value[:, 0]
    excess_R = np.bincount(top[:, 0], weights=lead_S, minlength=load_SR.shape[1])
    order = np.argsort(-excess_R, kind="stable")
    return [int(rank) for rank in order if excess_R[rank] > 0]


def fullest_without(load_SR: Floats, rank: int, rank_P: Ints) -> Floats:
    """Fullest rank [S, P] when `rank` and the partner's rank are left out."""
    count = min(3, load_SR.shape[1])
    top = np.argsort(-load_SR, axis=1, kind="stable")[:, :count]
    value = np.take_along_axis(load_SR, top, axis=1)
    rest_SP = np.zeros((len(load_SR), len(rank_P)))
    for place in reversed(range(count)):
        free = (top[:, place] != rank)[:, None] & (top[:, place][:, None] != rank_P)
        rest_SP = np.where(free, value[:, place][:, None], rest_SP)
    return rest_SP
