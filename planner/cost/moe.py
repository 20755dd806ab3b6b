"""Time of one MoE layer: dispatch, experts, combine. The truth that solver and checker share.

For a placement, the rows of a rank are the choices of its experts, each shared evenly by the
expert's copies, or by nearness (`sharing.py`). Experts touched in a step follow from the shares: an
expert with share p of the choices is touched with probability 1 - (1-p)**choices, however long the window was.

Ranks may differ: those whose GPUs are of the same kinds form a class, which has one kernel. Where there are
several kernels a layer runs the one that is done first on all its ranks, on the mean of windows.

Tokens reach the experts by an all-to-all, whose bytes follow from the placement, or every rank gets
all of them (`Instance.gathers`): then traffic is the same for all placements.

Legend: S windows, R EP ranks, E experts, P slots, C classes of ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from planner.cost.blocks import RANKS
from planner.cost.instance import LayerLoad, some_windows
from planner.cost.roofline import Kernel
from planner.cost.sharing import Sharing
from planner.cost.term import Term
from planner.cost.traffic import Exchange, unit_of_rank, visits, visits_by_home
from planner.plan.placement import copies_E

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class LayerTimes:
    """Seconds of one MoE layer in each window [S], for one micro-batch."""

    expert_S: Floats
    dispatch_S: Floats
    combine_S: Floats
    total_S: Floats
    """Overlap taken into account."""
    kernel: Kernel
    """Of the experts, on the first class of ranks."""


def rows_of(load: LayerLoad, tokens: float) -> Floats:
    """Expert choices [S, E] that a step with so many tokens makes."""
    return load.share_SE * (load.choices_S * tokens)[:, None]


def touched_of(load: LayerLoad, tokens: float, copies: Floats | float) -> Floats:
    """Probability [S, E] that one copy of each expert serves at least one row of the step."""
    return touched_of_shares(load, tokens, load.share_SE / copies)


def touched_of_shares(load: LayerLoad, tokens: float, share_SX: Floats) -> Floats:
    """Probability [S, ...] that what has these shares of the choices [S, ...] serves a row of the step."""
    choices_S1 = (load.choices_S * tokens).reshape(-1, *[1] * (share_SX.ndim - 1))
    with np.errstate(divide="ignore"):
        missed = choices_S1 * np.log1p(-np.minimum(share_SX, 1.0))
    return np.asarray(-np.expm1(missed))


def per_rank(value_SP: Floats, slots_per_rank: int) -> Floats:
    """Sum of slots over each rank [S, R]."""
    total: Floats = value_SP.reshape(len(value_SP), -1, slots_per_rank).sum(axis=2)
    return total


@dataclass(frozen=True)
class MoeCost:
    """The MoE layers of one stage under one split: plain numbers that turn a placement into seconds."""

    num_ranks: int
    """R, EP ranks."""
    etp: int
    """GPUs that share the experts of a rank."""
    tokens: float
    """Tokens of one micro-batch in one copy of the expert grid."""
    kernels_C: tuple[Kernel, ...]
    """Of each class of ranks: the fastest where ranks are balanced."""
    class_R: Ints
    flop_per_row: float
    weight_bytes: float
    """Bytes of one expert on one GPU."""
    moved_bytes_per_row: float
    exchange: Exchange
    sharing: Sharing
    """How copies of an expert share its tokens."""
    dispatch_bytes: float
    """Of a copy on its way to an expert."""
    combine_bytes: float
    """Of a copy on its way back, times what its bytes take longer than those of a dispatch."""
    combine_light_bytes: float
    """The bytes alone."""
    dispatch_fixed: Term
    """What a dispatch takes whatever the placement: launches and latencies, or the whole all-gather."""
    combine_fixed: Term
    """The same of a combine."""
    gather_s_per_row_byte: float
    """All-gather of a rank's rows among the GPUs that share its experts (etp > 1), and back."""
    overlap: float
    """Part of what can hide that does."""
    experts_hide: bool
    """Whether expert time hides traffic, or traffic it (two micro-batches in turn)."""
    beside_s: float
    """Further work of the layer that traffic can hide behind."""
    other_kernels: tuple[tuple[Kernel, ...], ...] = ()
    """Those that a layer may run instead, of each class of ranks."""

    @cached_property
    def ways(self) -> tuple[MoeCost, ...]:
        """The same layers by one kernel alone, for each that there is; first the fastest where ranks are balanced."""
        every = (self.kernels_C, *self.other_kernels)
        return tuple(replace(self, kernels_C=kernels_C, other_kernels=()) for kernels_C in every)

    # --- experts ---------------------------------------------------------------------------------

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.kernels_C)

    def expert_s(self, rows_SR: Floats, touched_SR: Floats, slots_R: Floats) -> Floats:
        """Seconds [S, R] of ranks that serve so many rows with so many experts touched, of so many slots."""
        if self.num_classes == 1:
            return self.class_s(0, rows_SR, touched_SR, slots_R)
        seconds_SR = np.empty(rows_SR.shape)
        for number in range(self.num_classes):
            mine = self.class_R == number
            seconds_SR[:, mine] = self.class_s(number, rows_SR[:, mine], touched_SR[:, mine], slots_R[mine])
        return seconds_SR

    def class_s(self, number: int, rows: Floats, touched: Floats, slots: Floats | float) -> Floats:
        """Seconds of ranks of one class."""
        k = self.kernels_C[number]
        moved = rows * self.moved_bytes_per_row
        return np.asarray(k.seconds(rows * self.flop_per_row, touched * self.weight_bytes, moved, slots))

    def expert_light_s(self, rows_SR: Floats, touched_SR: Floats) -> Floats:
        """Speed of light of the same work."""
        flop_R = np.array([k.light_s_per_flop for k in self.kernels_C])[self.class_R]
        byte_R = np.array([k.light_s_per_byte for k in self.kernels_C])[self.class_R]
        flop_s = rows_SR * (self.flop_per_row * flop_R)
        bytes_s = (touched_SR * self.weight_bytes) * byte_R
        return np.asarray(np.maximum(flop_s, bytes_s))

    # --- traffic ---------------------------------------------------------------------------------

    @cached_property
    def has_exchange(self) -> bool:
        """Whether traffic depends on the placement."""
        return bool(self.exchange.blocks)

    def volume_S(self, load: LayerLoad, expert_P: Ints, rows_SR: Floats, *, light: bool = False) -> Floats:
        """Seconds per byte of a copy on the slowest unit of any level [S]."""
        if not self.has_exchange:
            return np.zeros(len(rows_SR))
        shard = 1.0 / self.etp  # each of the etp groups carries its part of the tokens
        parts = [(load, rows_SR)] if self.sharing.is_even(expert_P) else self._few_at_once(load, rows_SR)
        worst = []
        for some, some_SR in parts:
            volumes = {key: volume * shard for key, volume in self.copies(some, expert_P, some_SR).items()}
            worst.append(self.exchange.unit_seconds_SU(volumes, light=light).max(axis=1))
        return np.concatenate(worst)

    def _few_at_once(self, load: LayerLoad, rows_SR: Floats) -> Iterator[tuple[LayerLoad, Floats]]:
        """Windows whose copies between all pairs of ranks fit into memory."""
        count = max(1, _PAIRS_AT_ONCE // self.num_ranks**2)
        for first in range(0, len(rows_SR), count):
            some = slice(first, first + count)
            yield some_windows(load, some), rows_SR[some]

    def copies(self, load: LayerLoad, expert_P: Ints, rows_SR: Floats) -> dict[int, Floats]:
        """Copies that reach each rank [S, R] and each domain [S, D], as `Exchange.unit_seconds_SU` takes them.

        Where copies of experts serve by nearness, each from each home rank [S, R, R], [S, D, R].
        """
        if not self.sharing.is_even(expert_P):
            return self._copies_by_home(load, expert_P)
        if self.exchange.ranks_share_volume:
            return {RANKS: rows_SR}
        return self._visited(load, self.part_on_ranks(load, expert_P), self.tokens)

    def _visited(self, load: LayerLoad, part_ER: Floats, tokens: float) -> dict[int, Floats]:
        """Tokens that visit each rank and domain, of so many."""
        volumes = {RANKS: visits(load, part_ER) * tokens}
        for number in range(len(self.exchange.partitions)):
            part_ED = np.einsum("er,rd->ed", part_ER, self.exchange.in_domain_RD(number))
            volumes[number] = visits(load, part_ED) * tokens
        return volumes

    def _copies_by_home(self, load: LayerLoad, expert_P: Ints) -> dict[int, Floats]:
        part_PR = self.sharing.part_PR(expert_P)
        ranks, at_home = self.num_ranks, self.tokens / self.num_ranks
        if self.exchange.ranks_share_volume:
            rows_SP = rows_of(load, at_home)[:, expert_P]  # an empty slot's part is 0
            rows_SRQ, part_RQH = rows_SP.reshape(len(rows_SP), ranks, -1), part_PR.reshape(ranks, -1, ranks)
            return {RANKS: np.einsum("srq,rqh->srh", rows_SRQ, part_RQH)}
        filled = np.flatnonzero(expert_P >= 0)
        held, rank, part_PH = expert_P[filled], filled // (len(expert_P) // ranks), part_PR[filled]
        if load.sets is None:
            numbers = (RANKS, *range(len(self.exchange.partitions)))
            return {key: self._visited_by_home(load, held, rank, part_PH, key) * at_home for key in numbers}
        kinds_PK, kind_H = np.unique(part_PH, axis=1, return_inverse=True)  # many homes see the same copies
        found = []
        for part_P in kinds_PK.T:
            part_ER = np.zeros((load.share_SE.shape[1], ranks))
            np.add.at(part_ER, (held, rank), part_P)
            found.append(self._visited(load, part_ER, at_home))
        return {key: np.stack([one[key] for one in found], axis=2)[:, :, kind_H] for key in found[0]}

    def _visited_by_home(self, load: LayerLoad, expert_P: Ints, rank_P: Ints, part_PH: Floats, key: int) -> Floats:
        unit_R = unit_of_rank(self.exchange, key)
        return visits_by_home(load, expert_P, unit_R[rank_P], int(unit_R.max()) + 1, part_PH)

    def part_on_ranks(self, load: LayerLoad, expert_P: Ints) -> Floats:
        """Share of each expert's copies on each rank [E, R]."""
        num_experts = load.share_SE.shape[1]
        slots = len(expert_P) // self.num_ranks
        filled = np.flatnonzero(expert_P >= 0)
        count_ER = np.zeros((num_experts, self.num_ranks))
        np.add.at(count_ER, (expert_P[filled], filled // slots), 1.0)
        return np.asarray(count_ER / np.maximum(count_ER.sum(axis=1, keepdims=True), 1.0))

    @property
    def fixed_traffic_s(self) -> float:
        """Seconds of dispatch and combine that no placement changes."""
        return self.dispatch_fixed.seconds + self.combine_fixed.seconds

    @property
    def besides_placement(self) -> bytes:
        """Equal where a layer takes equally long besides what its ranks serve and exchange."""
        fixed = self.dispatch_fixed.seconds, self.combine_fixed.seconds
        return np.array([*fixed, self.gather_s_per_row_byte, self.beside_s]).tobytes()

    # --- the layer -------------------------------------------------------------------------------

    def rank_load(self, load: LayerLoad, expert_P: Ints) -> tuple[Floats, Floats, Ints]:
        """Rows [S, R], experts touched [S, R] and filled slots [R] of each rank."""
        num_experts = load.share_SE.shape[1]
        slots = len(expert_P) // self.num_ranks
        filled_R = (expert_P >= 0).reshape(self.num_ranks, slots).sum(axis=1)
        if not self.sharing.is_even(expert_P):
            part_P = self.sharing.part_P(expert_P)
            rows_SP = rows_of(load, self.tokens)[:, expert_P] * part_P
            touched_SP = touched_of_shares(load, self.tokens, load.share_SE[:, expert_P] * part_P)
            return per_rank(rows_SP, slots), per_rank(touched_SP, slots), filled_R
        copies = np.maximum(copies_E(expert_P, num_experts), 1).astype(float)
        rows_SE = rows_of(load, self.tokens) / copies
        touched_SE = touched_of(load, self.tokens, copies)
        empty = expert_P < 0
        rows_SP = np.where(empty, 0.0, rows_SE[:, expert_P])
        touched_SP = np.where(empty, 0.0, touched_SE[:, expert_P])
        return per_rank(rows_SP, slots), per_rank(touched_SP, slots), filled_R

    def rank_rows(self, load: LayerLoad, expert_P: Ints) -> Floats:
        """Rows of each rank [S, R]."""
        return self.rank_load(load, expert_P)[0]

    def layer(self, load: LayerLoad, expert_P: Ints) -> LayerTimes:
        """Times of a layer with this placement, by the kernel that is done first on the mean of windows."""
        rows_SR, touched_SR, filled_R = self.rank_load(load, expert_P)
        volume_S = self.volume_S(load, expert_P, rows_SR)
        gather_S = rows_SR.max(axis=1) * self.gather_s_per_row_byte
        per_byte_S = volume_S + gather_S
        served = rows_SR, touched_SR, filled_R.astype(float)
        found = (way.times(way.expert_s(*served).max(axis=1), per_byte_S) for way in self.ways)
        return min(found, key=lambda times: float(times.total_S.mean()))

    def times(self, expert_S: Floats, per_byte_S: Floats) -> LayerTimes:
        """Put expert time and the slowest unit's seconds per byte together."""
        dispatch_S = self.dispatch_fixed.seconds + per_byte_S * self.dispatch_bytes
        combine_S = self.combine_fixed.seconds + per_byte_S * self.combine_bytes
        traffic_S = dispatch_S + combine_S
        hiding_S = expert_S + self.beside_s if self.experts_hide else np.full_like(expert_S, self.beside_s)
        hidden_S = self.overlap * np.minimum(hiding_S, traffic_S)
        return LayerTimes(expert_S, dispatch_S, combine_S, expert_S + traffic_S - hidden_S, self.kernels_C[0])


_PAIRS_AT_ONCE: Final = 1 << 22
"""Windows x ranks x ranks: 32 MiB of copies."""
