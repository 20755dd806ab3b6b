"""Swaps priced exactly where the nearest copy serves and every chosen expert takes a copy of the token.

Then what ranks and ports have to do is a sum over experts, and what an expert adds depends on the set of ranks that
hold it, and on nothing else. So a swap changes two terms of that sum: all swaps of a rank, and all replacements of
its copies, are priced in one numpy expression. Only the expert time is taken by its tangents, as in `weights.py`.

Legend: S windows, E experts, R ranks, H home ranks, X ranks and then units of the exchange, B sets of ranks,
P slots (filled), Q slots of one rank, C copies on it that others hold, too.
"""

from __future__ import annotations

import itertools
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from planner.cost.blocks import RANKS
from planner.cost.moe import touched_of_shares
from planner.solve.held import Held
from planner.solve.joint import peak
from planner.solve.problem import mean_tangent

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_IDLE: Final = 0.7
"""Ranks and units that are less busy than this part of the busiest in every window are left out."""
_KNOWN: Final = 1 << 15
"""Sets of ranks that are remembered."""
_LARGE: Final = 1 << 26
_AT_ONCE: Final = 1 << 23
"""Numbers worked on at once: 32 MiB in single precision."""


Step = tuple[int, int, int, int | None]
"""Rank and slot; for a swap the place of the other expert, for a replacement the expert that comes."""


class Flows:
    """What a placement gives ranks and units to do, and what its swaps would change.

    Args:
        held: the placement; changed from outside, then `refresh` is called.
    """

    def __init__(self, held: Held) -> None:
        self.held, problem = held, held.problem
        self.problem = problem
        moe, tangent = problem.moe, mean_tangent(problem)
        self._row_SR = tangent.per_row_CS[moe.class_R].T
        self._touched_SR = tangent.per_touched_CS[moe.class_R].T
        base_C, slot_C = np.array([(k.base_s, k.per_expert_s) for k in moe.kernels_C]).T
        self._base_R = base_C[moe.class_R] + slot_C[moe.class_R] * problem.slots_R
        self.evaluations = 0.0
        self._known: dict[bytes, tuple[Floats, Floats]] = {}
        self.refresh()

    def refresh(self) -> None:
        """Add up what all experts give to do."""
        member_ER = self.held.member_ER
        added_SX = self._added(np.arange(len(member_ER)), member_ER).sum(axis=1)
        self.now_SX = added_SX
        ranks, moe = self.problem.num_ranks, self.problem.moe
        self.now_SX[:, :ranks] += self._base_R
        gathers = ranks if moe.has_exchange and moe.gather_s_per_row_byte else 0
        self._parts_end = (ranks, ranks + gathers)
        bounds = (0, *self._parts_end, self.now_SX.shape[1])
        kept = [self._busy(first, end) for first, end in itertools.pairwise(bounds)]
        self._kept = np.concatenate(kept)
        self._kept_end = (int(kept[0].sum()), int(kept[0].sum() + kept[1].sum()))

    def _busy(self, first: int, end: int) -> Bools:
        """Ranks or units that are nearly as busy as the busiest, in some window; no swap makes others that busy."""
        part_SX = self.now_SX[:, first:end]
        return np.asarray((part_SX >= _IDLE * part_SX.max(axis=1, keepdims=True, initial=0.0)).any(axis=0))

    def refreshed(self, power: int | None) -> float:
        """The objective after a change of the placement."""
        self.refresh()
        return self.seconds(power)

    # --- what experts add -------------------------------------------------------------------------

    def _added(self, expert_B: Ints, member_BR: Bools, kept: Bools | None = None) -> Floats:
        """What experts give to do if these ranks hold them [S, B, X], or to those that are kept.

        Expert seconds of each rank, then seconds per byte: of gathering its rows, and of each unit.
        """
        problem, moe, ranks = self.problem, self.problem.moe, self.problem.num_ranks
        part_BR, row_s_BX = self._of_sets(member_BR)
        row_SR, touched_SR = self._row_SR, self._touched_SR
        if kept is not None:
            part_BR, row_s_BX = part_BR[:, kept[:ranks]], row_s_BX[:, kept[ranks:]]
            row_SR, touched_SR = row_SR[:, kept[:ranks]], touched_SR[:, kept[:ranks]]
        rows_SB = problem.rows_SE[:, expert_B]
        touched_SBR = touched_of_shares(problem.load, moe.tokens, problem.load.share_SE[:, expert_B, None] * part_BR)
        busy_SBR = row_SR[:, None] * (rows_SB[:, :, None] * part_BR) + touched_SR[:, None] * touched_SBR
        self.evaluations += busy_SBR.size
        return np.concatenate([busy_SBR, rows_SB[:, :, None] * row_s_BX], axis=2)

    def _of_sets(self, member_BR: Bools) -> tuple[Floats, Floats]:
        """For sets of ranks, part of the rows that each rank serves [B, R], and what a row costs [B, X].

        Few sets are new: most experts have one copy, and a step changes two.
        """
        names = [bits.tobytes() for bits in np.packbits(member_BR, axis=1)]
        new = [index for name, index in {name: i for i, name in enumerate(names)}.items() if name not in self._known]
        if self._known and len(self._known) + len(new) > _KNOWN:
            self._known.clear()
            return self._of_sets(member_BR)
        at_once = max(1, _AT_ONCE // self.problem.num_ranks**2)
        for first in range(0, len(new), at_once):
            some = new[first : first + at_once]
            part_BRH = self.problem.moe.sharing.part_BRH(member_BR[some])
            self.evaluations += part_BRH.size
            rows = zip(some, part_BRH.mean(axis=2), self._units(part_BRH), strict=True)
            self._known.update({names[index]: (part_R, unit_X) for index, part_R, unit_X in rows})
        found = [self._known[name] for name in names]
        return np.stack([part_R for part_R, _ in found]), np.stack([unit_X for _, unit_X in found])

    def _units(self, part_BRH: Floats) -> Floats:
        """Seconds per byte that a row of an expert costs: gathering it on each rank, and each unit [B, X]."""
        moe, exchange = self.problem.moe, self.problem.moe.exchange
        if not moe.has_exchange:
            return np.zeros((len(part_BRH), 0))
        copies = [sends.between({RANKS: part_BRH / (moe.num_ranks * moe.etp)}) for sends in exchange.sends]
        found = [block.seconds_SU(copies, light=False) for block in exchange.pair_blocks]
        if moe.gather_s_per_row_byte:
            found.insert(0, part_BRH.mean(axis=2) * moe.gather_s_per_row_byte)
        return np.concatenate(found, axis=1)

    @property
    def is_large(self) -> bool:
        """Whether the tables of a rank's swaps would take hundreds of megabytes."""
        slots = len(self.held.expert_P) + int(self.problem.slots_R.max()) * self.problem.num_ranks
        return bool(self.now_SX.size * slots > _LARGE)

    # --- steps ------------------------------------------------------------------------------------

    def seconds(self, power: int | None) -> float:
        """The objective: mean over windows, with power means in place of maxima (None: maxima)."""
        return float(self._total(self.now_SX, self._parts_end, power).mean())

    def _total(self, value_SX: NDArray[Any], ends: tuple[int, int], power: int | None) -> Floats:
        """Seconds of a layer [S, ...] by what is to be done, and where ranks and gathering end in it."""
        moe = self.problem.moe
        expert = peak(value_SX[..., : ends[0]], power)
        if not moe.has_exchange:
            return np.asarray(moe.times(expert, np.zeros_like(expert)).total_S)
        per_byte = peak(value_SX[..., ends[1] :], power)
        if ends[1] > ends[0]:
            per_byte = per_byte + value_SX[..., ends[0] : ends[1]].max(axis=-1)
        return np.asarray(moe.times(expert, per_byte).total_S)

    def best_step(self, rank: int, power: int | None) -> tuple[float, Step] | None:
        """The step of this rank that gives the least time, and what it changes; None if there is none."""
        steps = [one for one in (self._best_swap(rank, power), self._best_replacement(rank, power)) if one is not None]
        return min(steps, key=lambda one: one[0], default=None)

    def _best_swap(self, rank: int, power: int | None) -> tuple[float, Step] | None:
        held = self.held
        bad_QP = held.forbidden(rank)
        if bad_QP.all():
            return None
        mine_Q, ranks = np.asarray(held.of_rank[rank]), self.problem.num_ranks
        going_QR = np.repeat(held.member_ER[mine_Q][:, None], ranks, axis=1)
        going_QR[:, :, rank] = False
        going_QR[:, np.arange(ranks), np.arange(ranks)] = True
        leave_SQRX = self._change(np.repeat(mine_Q, ranks), going_QR.reshape(-1, ranks))
        leave_SQRX = leave_SQRX.reshape(len(leave_SQRX), len(mine_Q), ranks, -1)
        coming_PR = held.member_ER[held.expert_P].copy()
        coming_PR[np.arange(len(coming_PR)), held.rank_P] = False
        coming_PR[:, rank] = True
        come_SPX = self._change(held.expert_P, coming_PR)
        change_QP = np.full(bad_QP.shape, np.inf)
        now = self.now_SX[:, self._kept].astype(np.float32)
        before = self._total(now, self._kept_end, power).mean()
        for slot in range(len(mine_Q)):
            places = np.flatnonzero(~bad_QP[slot])
            if not len(places):
                continue
            for some in np.array_split(places, -(-len(places) * now.size // _AT_ONCE)):
                after = now[:, None] + leave_SQRX[:, slot][:, held.rank_P[some]] + come_SPX[:, some]
                change_QP[slot, some] = self._total(after, self._kept_end, power).mean(axis=0) - before
                self.evaluations += after.size
        best = int(change_QP.argmin())
        slot, place = divmod(best, len(held.expert_P))
        return float(change_QP.flat[best]), (rank, slot, place, None)

    def _best_replacement(self, rank: int, power: int | None) -> tuple[float, Step] | None:
        held = self.held
        mine_Q = np.asarray(held.of_rank[rank])
        slot_C = np.flatnonzero(held.copies_E[mine_Q] > 1)
        coming = np.flatnonzero(held.may_come(rank))
        if not len(slot_C) or not len(coming):
            return None
        going_CR, coming_ER = held.member_ER[mine_Q[slot_C]].copy(), held.member_ER[coming].copy()
        going_CR[:, rank], coming_ER[:, rank] = False, True
        leave_SCX, come_SEX = self._change(mine_Q[slot_C], going_CR), self._change(coming, coming_ER)
        now = self.now_SX[:, self._kept].astype(np.float32)
        after = now[:, None, None] + leave_SCX[:, :, None] + come_SEX[:, None]
        change_CE = (
            self._total(after, self._kept_end, power).mean(axis=0) - self._total(now, self._kept_end, power).mean()
        )
        self.evaluations += after.size
        best = int(change_CE.argmin())
        copy, expert = divmod(best, len(coming))
        return float(change_CE.flat[best]), (rank, int(slot_C[copy]), 0, int(coming[expert]))

    def _change(self, expert_B: Ints, member_BR: Bools) -> NDArray[Any]:
        """What experts would add more than they do to those that are kept [S, B, X], in single precision."""
        after = self._added(expert_B, member_BR, self._kept)
        experts, place_B = np.unique(expert_B, return_inverse=True)
        before = self._added(experts, self.held.member_ER[experts], self._kept)
        return np.asarray((after - before[:, place_B]).astype(np.float32))
