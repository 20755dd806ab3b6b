"""How many tokens visit each rank, or each scale-up domain, and what a swap of two experts changes.

A token visits unit x with probability 1 - prod over its experts e of (1 - q[e, x]), q[e, x] being the
share of e's copies on x (docs/model.md, section 7). That is linear in each q by itself, so with
w[e, x] = sum over tokens that chose e of the product over their *other* experts, and w[a, b, x] the
same over tokens that chose both and without both,

    change of visits = w[a, x] dq[a] + w[b, x] dq[b] - w[a, b, x] dq[a] dq[b]

is exact for a change of two experts. `SetVisits` keeps w for the tokens recorded; `ShareVisits` takes
experts to be chosen independently, where only shares are known.

Legend: S windows, N sampled tokens, K choices, E experts, R ranks, X units, P slots, Q slots of one rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from planner.cost.instance import LayerLoad
from planner.solve.held import Held

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_MOST_NUMBERS: Final = 1 << 25
"""Tokens times choices times units that a search keeps: 256 MiB. It looks at fewer tokens where there are more."""
_LEAST_MISSED: Final = 1e-12


@dataclass(frozen=True)
class Swap:
    """Slots of one rank, and every slot they may change places with."""

    rank: int
    mine_Q: Ints
    """Experts of the rank."""
    expert_P: Ints
    rank_P: Ints


@dataclass
class _Shares:
    """Share of each expert's copies on each unit."""

    unit_R: Ints
    copies_E: Ints
    part_EX: Floats

    @staticmethod
    def of(held: Held, unit_R: Ints) -> _Shares:
        in_unit_RX = np.asarray(np.arange(unit_R.max() + 1) == unit_R[:, None], dtype=float)
        number_EX = np.einsum("er,rx->ex", held.member_ER.astype(float), in_unit_RX)
        return _Shares(unit_R, held.copies_E, number_EX / held.copies_E[:, None])

    def moved(self, held: Held, experts: Sequence[int], units: Sequence[int]) -> None:
        """Count the copies of some experts on some units anew."""
        for expert in experts:
            for unit in units:
                number = int(held.member_ER[expert, self.unit_R == unit].sum())
                self.part_EX[expert, unit] = number / self.copies_E[expert]


class ShareVisits:
    """Visits where each expert is chosen independently, with its share of the window."""

    def __init__(self, load: LayerLoad, held: Held, unit_R: Ints) -> None:
        self.shares = _Shares.of(held, unit_R)
        self.held, self.unit_R = held, unit_R
        self.chosen_SE = load.chosen_SE
        self._refresh(slice(None))

    def _missed(self, experts: Ints, units: Ints, change: Floats | float) -> Floats:
        """Probability [S, ...] that a token misses an expert on a unit, after a change of its share there."""
        part = self.shares.part_EX[experts, units] + change
        return np.asarray(np.maximum(1.0 - self.chosen_SE[:, experts] * part, _LEAST_MISSED))

    def _refresh(self, units: slice | list[int]) -> None:
        missed_SEX = np.maximum(1.0 - self.chosen_SE[:, :, None] * self.shares.part_EX[None, :, units], _LEAST_MISSED)
        product_SX = missed_SEX.prod(axis=1)
        if isinstance(units, slice):
            self.missed_SX = product_SX
        else:
            self.missed_SX[:, units] = product_SX

    def visits_SX(self) -> Floats:
        """Visits as a part of all tokens."""
        return np.asarray(1.0 - self.missed_SX)

    def changes(self, swap: Swap) -> tuple[Floats, Floats]:
        """Change of visits [S, Q, P] at the rank's unit, and at the partner's; see `SetVisits`."""
        here, there_P = int(self.unit_R[swap.rank]), self.unit_R[swap.rank_P]
        leave_Q, come_P = 1.0 / self.held.copies_E[swap.mine_Q], 1.0 / self.held.copies_E[swap.expert_P]
        mine_Q1 = swap.mine_Q[:, None]
        gone_SP = self._missed(swap.expert_P, there_P, -come_P) / self._missed(swap.expert_P, there_P, 0.0)
        there_QP = np.broadcast_to(there_P, (len(swap.mine_Q), len(there_P)))
        mine_QP = np.broadcast_to(mine_Q1, there_QP.shape)
        new_SQP = self._missed(mine_QP, there_QP, leave_Q[:, None]) / self._missed(mine_QP, there_QP, 0.0)
        second = self.missed_SX[:, there_P][:, None, :] * (1.0 - gone_SP[:, None, :] * new_SQP)
        return self.here(swap), second * (there_P != here)

    def here(self, swap: Swap) -> Floats:
        """Change of visits [S, Q, P] at the rank's unit; see `SetVisits`."""
        here, there_P = int(self.unit_R[swap.rank]), self.unit_R[swap.rank_P]
        leave_Q, come_P = 1.0 / self.held.copies_E[swap.mine_Q], 1.0 / self.held.copies_E[swap.expert_P]
        here_Q, here_P = np.full_like(swap.mine_Q, here), np.full_like(there_P, here)
        left_SQ = self._missed(swap.mine_Q, here_Q, -leave_Q) / self._missed(swap.mine_Q, here_Q, 0.0)
        came_SP = self._missed(swap.expert_P, here_P, come_P) / self._missed(swap.expert_P, here_P, 0.0)
        first = self.missed_SX[:, here][:, None, None] * (1.0 - left_SQ[:, :, None] * came_SP[:, None, :])
        return np.asarray(first * (there_P != here))

    def moved(self, experts: Sequence[int], ranks: Sequence[int]) -> None:
        """Experts have changed places among ranks."""
        units = sorted({int(self.unit_R[rank]) for rank in ranks})
        if len(units) > 1:
            self.shares.moved(self.held, experts, units)
            self._refresh(units)


class SetVisits:
    """Visits of tokens whose experts were recorded together."""

    def __init__(self, load: LayerLoad, held: Held, unit_R: Ints) -> None:
        assert load.sets is not None
        self.held, self.unit_R = held, unit_R
        self.num_units = int(unit_R.max()) + 1
        self.num_experts, self.num_windows = load.share_SE.shape[1], load.share_SE.shape[0]
        experts_NK = load.sets.experts_NLK[:, 0]
        most = max(self.num_windows, _MOST_NUMBERS // (experts_NK.shape[1] * self.num_units))
        step = -(-len(experts_NK) // most)
        window_N, experts_NK = load.sets.window_N[::step].astype(np.int64), experts_NK[::step]
        self.experts_NK = np.where(experts_NK < 0, self.num_experts, experts_NK)  # the last: no expert
        self.window_N = window_N
        self.tokens_S = np.maximum(np.bincount(window_N, minlength=self.num_windows), 1)
        self.cell_NK = window_N[:, None] * (self.num_experts + 1) + self.experts_NK
        order = np.argsort(self.experts_NK, axis=None, kind="stable")
        ends = np.cumsum(np.bincount(self.experts_NK.ravel(), minlength=self.num_experts + 1))
        self.choices_of = np.split(order, ends[:-1])
        """Of each expert, where it stands in `experts_NK`, as flat indices."""
        self.shares = _Shares.of(held, unit_R)
        self.others_NKX = np.empty((*self.experts_NK.shape, self.num_units))
        """Probability that a token's other choices all miss a unit."""
        every = np.arange(len(self.experts_NK))
        self.weight_SEX = np.empty((self.num_windows, self.num_experts, self.num_units))
        self.missed_XN = np.empty((self.num_units, len(every)))
        self.missed_SX = np.empty((self.num_windows, self.num_units))
        """Tokens that miss a unit."""
        for unit in range(self.num_units):
            self._refresh(every, unit)
            self.weight_SEX[:, :, unit] = self._by_expert(self.cell_NK, self.others_NKX[:, :, unit])

    def _by_expert(self, cells: Ints, values: Floats) -> Floats:
        """Sum of values over windows and experts [S, E]."""
        size = self.num_windows * (self.num_experts + 1)
        total = np.bincount(cells.ravel(), weights=values.ravel(), minlength=size)
        return np.asarray(total.reshape(self.num_windows, -1)[:, : self.num_experts])

    def _refresh(self, tokens: Ints, unit: int) -> None:
        """Products over the other choices of some tokens, on one unit."""
        part_E = np.append(self.shares.part_EX[:, unit], 0.0)
        missed_NK = 1.0 - part_E[self.experts_NK[tokens]]
        before_NK = np.ones_like(missed_NK)
        np.cumprod(missed_NK[:, :-1], axis=1, out=before_NK[:, 1:])
        after_NK = np.ones_like(missed_NK)
        after_NK[:, :-1] = np.cumprod(missed_NK[:, :0:-1], axis=1)[:, ::-1]
        self.others_NKX[tokens, :, unit] = before_NK * after_NK
        self.missed_XN[unit, tokens] = before_NK[:, -1] * missed_NK[:, -1]
        self.missed_SX[:, unit] = np.bincount(self.window_N, self.missed_XN[unit], minlength=self.num_windows)

    def visits_SX(self) -> Floats:
        """Visits as a part of all tokens."""
        return np.asarray(1.0 - self.missed_SX / self.tokens_S[:, None])

    def changes(self, swap: Swap) -> tuple[Floats, Floats]:
        """Change of visits [S, Q, P], as a part of all tokens, at the rank's unit and at the partner's."""
        here, there_P = int(self.unit_R[swap.rank]), self.unit_R[swap.rank_P]
        leave_Q1, come_P = 1.0 / self.held.copies_E[swap.mine_Q][:, None], 1.0 / self.held.copies_E[swap.expert_P]
        weight, part, mine, theirs = self.weight_SEX, self.shares.part_EX, swap.mine_Q, swap.expert_P
        # Of tokens that chose both, w[a, b] leaves out both: one is divided out, unless it misses for sure.
        free_QP = _free(part[mine][:, there_P])
        second = weight[:, mine][:, :, there_P] * leave_Q1 - weight[:, theirs, there_P][:, None, :] * come_P
        second += self._both_there(swap) * (leave_Q1 * come_P / free_QP)
        share_SP = (there_P != here) / self.tokens_S[:, None]
        return self.here(swap), second * share_SP[:, None, :]

    def here(self, swap: Swap) -> Floats:
        """Change of visits [S, Q, P], as a part of all tokens, at the rank's unit alone."""
        here, there_P = int(self.unit_R[swap.rank]), self.unit_R[swap.rank_P]
        leave_Q1, come_P = 1.0 / self.held.copies_E[swap.mine_Q][:, None], 1.0 / self.held.copies_E[swap.expert_P]
        weight, mine, theirs = self.weight_SEX, swap.mine_Q, swap.expert_P
        first = weight[:, theirs, here][:, None, :] * come_P - weight[:, mine, here][:, :, None] * leave_Q1
        first += self._both_here(swap) * (leave_Q1 * come_P / _free(self.shares.part_EX[theirs, here]))
        share_SP = (there_P != here) / self.tokens_S[:, None]
        return np.asarray(first * share_SP[:, None, :])

    def _both_here(self, swap: Swap) -> Floats:
        """Sums [S, Q, P] over tokens that chose both experts, at the rank's unit without `mine`."""
        here = int(self.unit_R[swap.rank])
        both = np.empty((self.num_windows, len(swap.mine_Q), len(swap.expert_P)))
        for slot, expert in enumerate(swap.mine_Q.tolist()):
            token_M, choice_M = np.divmod(self.choices_of[expert], self.experts_NK.shape[1])
            cells_MK = self.cell_NK[token_M]
            alone_MK = np.broadcast_to(self.others_NKX[token_M, choice_M, here][:, None], cells_MK.shape)
            both[:, slot] = self._by_expert(cells_MK, alone_MK)[:, swap.expert_P]
        return both

    def _both_there(self, swap: Swap) -> Floats:
        """The same at the partner's unit, without the other expert."""
        there_P = self.unit_R[swap.rank_P]
        used_X = np.unique(there_P)
        both = np.empty((self.num_windows, len(swap.mine_Q), len(swap.expert_P)))
        for slot, expert in enumerate(swap.mine_Q.tolist()):
            token_M = self.choices_of[expert] // self.experts_NK.shape[1]
            cells_MK, others_MKX = self.cell_NK[token_M], self.others_NKX[token_M]
            for unit in used_X.tolist():
                at_P = there_P == unit
                both[:, slot, at_P] = self._by_expert(cells_MK, others_MKX[:, :, unit])[:, swap.expert_P[at_P]]
        return both

    def moved(self, experts: Sequence[int], ranks: Sequence[int]) -> None:
        """Experts have changed places among ranks."""
        units = sorted({int(self.unit_R[rank]) for rank in ranks})
        if len(units) == 1:
            return
        self.shares.moved(self.held, experts, units)
        chosen = np.concatenate([self.choices_of[expert] for expert in experts])
        tokens = np.unique(chosen // self.experts_NK.shape[1])
        cells = self.cell_NK[tokens]
        for unit in units:
            before = self._by_expert(cells, self.others_NKX[tokens, :, unit])
            self._refresh(tokens, unit)
            self.weight_SEX[:, :, unit] += self._by_expert(cells, self.others_NKX[tokens, :, unit]) - before


def _free(part: Floats) -> Floats:
    """1 - part, or 1 where that is nothing: the other expert's copies are all there, and it has none to bring."""
    missed = 1.0 - part
    return np.asarray(np.where(missed > 0.0, missed, 1.0))
