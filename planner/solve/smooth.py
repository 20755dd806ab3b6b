"""Finding a good placement fast: local search over all windows at once, in which every rank pulls.

Every copy of an expert has one weight per window (`weights.py`), so a rank's load is a sum of weights.
The objective is the sum over windows and ranks of (load / mean load)**8. All ranks count, not only the
fullest, so the search does not get stuck on plateaus; and with few windows these are spread further
apart first (`weights.Stretch`), so that the plan does not cling to those few.

Moves: swap two experts between ranks; replace a copy of a replicated expert by a copy of another.
What a swap changes depends on its two ranks alone. So the best swap of every pair of ranks is kept,
the best of all is taken, and only pairs with one of those two ranks are looked at again. Swaps are
evaluated in single precision, which takes half the time; double precision then decides.

Ranks may differ: the weights are those of the first class of ranks, and a rank's load is multiplied
by how slow it is, so that the same objective gives faster ranks more.

Legend: S windows, E experts, R ranks, P slots (filled), Q slots of one rank, k copies, C slots of
experts that have several copies.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from planner.solve.held import Held

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

POWER: Final = 8
_TINY: Final = 1e-9
_AT_ONCE: Final = 1 << 21
"""Numbers of a replacement table that are worked on at once: 8 MiB."""


class SmoothSearch:
    """A placement of one layer being improved.

    Args:
        held: changed in place.
        weight_kSE: what one copy of an expert adds to its rank when the expert has k + 1 copies, in
            units of the mean rank's load (`weights.smooth_table`).
    """

    def __init__(self, held: Held, weight_kSE: Floats) -> None:
        self.held, self.problem, self.weight_kSE = held, held.problem, weight_kSE
        self.slow_R = held.problem.slow_R
        self.evaluations = 0
        ranks = self.problem.num_ranks
        self.change_RR = np.full((ranks, ranks), np.inf)
        """Change of the objective by the best swap of two ranks."""
        self.choice_RR = np.zeros((ranks, ranks), dtype=np.int64)
        """That swap: slot of the first rank times `_wide` plus slot of the second."""
        self._wide = int(self.problem.slots_R.max())
        self.load_SR = np.empty((weight_kSE.shape[1], ranks))
        self.power_R = np.empty(ranks)
        self.unit_SE = held.unit_weights(weight_kSE)
        self._weigh(range(ranks))

    def improve(self) -> None:
        """Swaps and replacements until none lowers the objective."""
        self._look(range(self.problem.num_ranks))
        self._swap_all()
        while (touched := self._replace()) is not None:
            self._weigh(touched)
            self._look(touched)
            self._swap_all()

    def _weigh(self, ranks: Iterable[int]) -> None:
        """Loads of ranks whose experts, or their copies elsewhere, have changed."""
        for rank in ranks:
            self.load_SR[:, rank] = self.held.load(self.unit_SE, rank) * self.slow_R[rank]
            self.power_R[rank] = _power(self.load_SR[:, rank]).sum()

    # --- swaps ------------------------------------------------------------------------------------

    def _swap_all(self) -> None:
        least = _TINY * self.power_R.sum()
        while True:
            best = int(np.argmin(self.change_RR))
            if self.change_RR.flat[best] >= -least:
                return
            rank, other = divmod(best, self.problem.num_ranks)
            slot, partner = divmod(int(self.choice_RR[rank, other]), self._wide)
            if self._change(rank, slot, other, partner) >= -least:
                self.change_RR[rank, other] = self.change_RR[other, rank] = 0.0  # only single precision liked it
                continue
            self.held.exchange(rank, slot, other, partner)
            self._weigh((rank, other))
            self._look((rank, other))

    def _change(self, rank: int, slot: int, other: int, partner: int) -> float:
        """What a swap changes, in double precision."""
        one, two = self.held.of_rank[rank][slot], self.held.of_rank[other][partner]
        delta_S = self.unit_SE[:, two] - self.unit_SE[:, one]
        after = _power(self.load_SR[:, rank] + delta_S * self.slow_R[rank])
        after = after + _power(self.load_SR[:, other] - delta_S * self.slow_R[other])
        return float(after.sum() - self.power_R[rank] - self.power_R[other])

    def _look(self, ranks: Iterable[int]) -> None:
        """The best swap of each of these ranks with every other."""
        unit, load = self.unit_SE.astype(np.float32), self.load_SR.astype(np.float32)
        rank_P, starts = self.held.rank_P, self.held.first_R
        filled = np.flatnonzero(np.diff(np.append(starts, len(rank_P))))
        place_P = np.arange(len(rank_P)) - starts[rank_P]
        slow_R = self.slow_R.astype(np.float32)
        for rank in ranks:
            if not self.held.of_rank[rank]:
                continue
            change_QP = self._changes(rank, unit, load, slow_R)
            slot_P = change_QP.argmin(axis=0)
            best_P = change_QP[slot_P, np.arange(len(rank_P))]
            best_R = np.full(self.problem.num_ranks, np.inf)
            best_R[filled] = np.minimum.reduceat(best_P, starts[filled])
            is_best = np.flatnonzero(best_P == best_R[rank_P])[::-1]
            at_R = np.zeros(self.problem.num_ranks, dtype=np.int64)
            at_R[rank_P[is_best]] = is_best  # backwards: the first of equals stays
            slot_R, partner_R = slot_P[at_R], place_P[at_R]
            self.change_RR[rank] = self.change_RR[:, rank] = best_R
            self.choice_RR[rank] = slot_R * self._wide + partner_R
            self.choice_RR[:, rank] = partner_R * self._wide + slot_R

    def _changes(self, rank: int, unit: NDArray[Any], load: NDArray[Any], slow_R: NDArray[Any]) -> NDArray[Any]:
        """What each swap of a slot of this rank with any slot changes [Q, P]; infinite where a rule forbids it."""
        expert_P, rank_P = self.held.expert_P, self.held.rank_P
        mine = np.asarray(self.held.of_rank[rank])
        delta_SQP = unit[:, None, expert_P] - unit[:, mine][:, :, None]
        after_QP = _power(load[:, rank][:, None, None] + delta_SQP * slow_R[rank]).sum(axis=0)
        np.multiply(delta_SQP, slow_R[rank_P], out=delta_SQP)
        np.subtract(load[:, rank_P][:, None, :], delta_SQP, out=delta_SQP)
        after_QP += _power(delta_SQP).sum(axis=0)
        change_QP = after_QP - (self.power_R[rank] + self.power_R[rank_P])[None, :]
        change_QP[self.held.forbidden(rank)] = np.inf
        self.evaluations += change_QP.size
        return np.asarray(change_QP)

    # --- copies -----------------------------------------------------------------------------------

    def _replace(self) -> list[int] | None:
        """Make the best replacement of one copy by a copy of another expert; the ranks whose load that changes.

        Of the replaced expert the copies left weigh more, of the other one less. Each rank counts by
        itself, so what a replacement changes is a sum: of the ranks that hold the first expert, of
        those that hold the second, a correction where a rank holds both, and of the rank itself.
        """
        copies_E = self.held.copies_E
        expert_P, rank_P = self.held.expert_P, self.held.rank_P
        slot_C = np.flatnonzero(copies_E[expert_P] > 1)
        if len(slot_C) == 0:
            return None
        fewer_SE = (self.held.unit_weights(self.weight_kSE, -1) - self.unit_SE).astype(np.float32)
        joined_SE = self.held.unit_weights(self.weight_kSE, 1)
        more_SE = (joined_SE - self.unit_SE).astype(np.float32)
        lost_P = self._at_holders(fewer_SE)
        lost_E = np.bincount(expert_P, weights=lost_P, minlength=len(copies_E))
        won_E = np.bincount(expert_P, weights=self._at_holders(more_SE), minlength=len(copies_E))
        change_CE = lost_E[expert_P[slot_C]][:, None] - lost_P[slot_C][:, None] + won_E[None, :]
        change_CE += self._where_both(fewer_SE, more_SE)[expert_P[slot_C]]
        change_CE += self._at_itself(slot_C, joined_SE.astype(np.float32))
        change_CE[self._cannot_come(rank_P[slot_C])] = np.inf
        self.evaluations += change_CE.size
        best = int(np.argmin(change_CE))
        if change_CE.flat[best] >= -_TINY * self.power_R.sum():
            return None
        place, wanted = divmod(best, len(copies_E))
        return self._replaced(int(slot_C[place]), wanted)

    def _replaced(self, place: int, wanted: int) -> list[int] | None:
        """Replace, unless only single precision likes it."""
        rank, slot = self.held.at(place)
        expert, before = int(self.held.expert_P[place]), self.power_R.sum()
        touched = np.flatnonzero(self.held.member_ER[expert] | self.held.member_ER[wanted]).tolist()
        self._put(rank, slot, wanted, touched)
        if self.power_R.sum() < before * (1 - _TINY):
            return touched
        self._put(rank, slot, expert, touched)
        return None

    def _put(self, rank: int, slot: int, expert: int, touched: Iterable[int]) -> None:
        """Put a copy of an expert into a slot; the ranks touched hold it, or what was there."""
        self.held.replace(rank, slot, expert)
        self.unit_SE = self.held.unit_weights(self.weight_kSE)
        self._weigh(touched)

    def _at_holders(self, change_SE: NDArray[Any]) -> Floats:
        """What changes at each slot's rank [P] if the expert in it weighs so much more."""
        expert_P, rank_P = self.held.expert_P, self.held.rank_P
        load_SP = self.load_SR.astype(np.float32)[:, rank_P]
        after_SP = load_SP + change_SE[:, expert_P] * self.slow_R.astype(np.float32)[rank_P]
        return np.asarray(_power(after_SP).sum(axis=0) - self.power_R[rank_P])

    def _where_both(self, fewer_SE: NDArray[Any], more_SE: NDArray[Any]) -> Floats:
        """What ranks that hold both experts change beside the sum of what each changes alone [E, E]."""
        held = self.held
        experts = fewer_SE.shape[1]
        total_EE = np.zeros((experts, experts))
        load, slow = self.load_SR.astype(np.float32), self.slow_R.astype(np.float32)
        sizes = np.diff(np.append(held.first_R, len(held.expert_P)))
        for size in np.unique(sizes[sizes > 1]).tolist():
            ranks = np.flatnonzero(sizes == size)
            for part in np.array_split(ranks, -(-load.shape[0] * len(ranks) * size * size // _AT_ONCE)):
                member_RQ = held.expert_P[held.first_R[part][:, None] + np.arange(size)]
                here = load[:, part][:, :, None]
                less, more = (change[:, member_RQ] * slow[part][:, None] for change in (fewer_SE, more_SE))
                both = _power((here + less)[:, :, :, None] + more[:, :, None, :]).sum(axis=0)
                both -= _power(here + less).sum(axis=0)[:, :, None]
                both -= _power(here + more).sum(axis=0)[:, None, :]
                cells = member_RQ[:, :, None] * experts + member_RQ[:, None, :]
                value = (both + self.power_R[part][:, None, None]).ravel()
                total_EE += np.bincount(cells.ravel(), weights=value, minlength=experts**2).reshape(total_EE.shape)
        return total_EE

    def _at_itself(self, slot_C: Ints, more: NDArray[Any]) -> Floats:
        """What the rank of each such slot changes if another expert, which weighs so much then, comes in [C, E]."""
        unit, load = self.unit_SE.astype(np.float32), self.load_SR.astype(np.float32)
        slow = self.slow_R.astype(np.float32)
        parts = []
        for part in np.array_split(slot_C, -(-len(slot_C) * more.size // _AT_ONCE)):
            expert, rank = self.held.expert_P[part], self.held.rank_P[part]
            without_SC = load[:, rank] - unit[:, expert] * slow[rank]
            after_SCE = without_SC[:, :, None] + more[:, None, :] * slow[rank][:, None]
            parts.append(_power(after_SCE).sum(axis=0) - self.power_R[rank][:, None])
        return np.concatenate(parts)

    def _cannot_come(self, rank_C: Ints) -> NDArray[np.bool_]:
        """Experts [C, E] that no slot of these ranks may take."""
        impossible = self.held.member_ER[:, rank_C].T | (self.held.copies_E >= len(self.weight_kSE))
        if self.problem.group_E is not None:
            impossible |= np.stack([~self.held.lives_with(rank) for rank in rank_C.tolist()])
        return np.asarray(impossible)


def _power(load: NDArray[Any]) -> NDArray[Any]:
    return raised(load, POWER)


def raised(values: NDArray[Any], power: int) -> NDArray[Any]:
    """values**power, for a power of two from 2 on."""
    found = values * values
    for _ in range(power.bit_length() - 2):
        np.multiply(found, found, out=found)
    return np.asarray(found)
