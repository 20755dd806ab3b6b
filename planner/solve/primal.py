"""Finding a good placement fast: local search over all windows at once.

The expert time of a rank is replaced by its tangent at the balanced point, so that every copy of an
expert has one weight per window and a rank's load is a sum of weights. Two objectives are used:

- smooth: sum over windows and ranks of (load / mean load)**8. All ranks pull, not only the fullest,
  so the search does not get stuck on plateaus; and with few windows these are spread further
  apart first, so that the plan does not cling to those few (`Stretch`).
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

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.plan.placement import from_ranks
from planner.solve.problem import LayerProblem, mean_tangent

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_POWER_IS_8 = 3  # squarings
_TINY = 1e-9
_FEW_WINDOWS, _MANY_WINDOWS = 8, 16


@dataclass(frozen=True)
class Stretch:
    """How windows are spread before the smooth objective sees them.

    What a handful of windows did not show lies mostly along the directions in which they differ,
    but not in proportion: the directions that differ least among those few are underrated most.
    So each principal direction of their differences is taken at least `floor` times as wide as
    the widest, and then all `factor` times as wide.
    """

    factor: float = 1.0
    floor: float = 0.0

    @property
    def is_none(self) -> bool:
        """Whether windows stay as they are."""
        return self.factor == 1.0 and self.floor == 0.0

    def matrix(self, window_SE: Floats) -> Floats:
        """Weights [S, S] that make each stretched window from the recorded ones; rows sum to 1."""
        windows = len(window_SE)
        centre = np.eye(windows) - 1 / windows
        centred_SE = np.einsum("st,te->se", centre, window_SE)  # no BLAS: the same on any number of cores
        variance_D, direction_SD = np.linalg.eigh(np.einsum("se,te->st", centred_SE, centred_SE))
        width_D = np.sqrt(np.maximum(variance_D, 0.0))
        is_real_D = width_D > _NO_WIDTH * width_D[-1]
        wanted_D = self.factor * np.maximum(width_D, self.floor * width_D[-1])
        gain_D = np.divide(wanted_D, width_D, out=np.ones(windows), where=is_real_D)
        spread = np.einsum("sd,d,td,tu->su", direction_SD, gain_D, direction_SD, centre)
        return np.asarray(spread + 1 / windows)


_NO_WIDTH = 0.01
"""Directions narrower than this part of the widest are noise, and stay as they are."""


def stretch_of(num_windows: int) -> Stretch:
    """The stretch in use for so many windows.

    Measured on recorded routing, held-out windows; from 16 windows on none helps
    (`python -m benchmarks generalisation`).
    """
    if num_windows == 1 or num_windows >= _MANY_WINDOWS:
        return Stretch()
    return Stretch(1.5, 0.35) if num_windows < _FEW_WINDOWS else Stretch(1.5)


@dataclass
class Search:
    """A placement of one layer being improved, and what moves cost."""

    problem: LayerProblem
    weight_kSE: Floats
    """Seconds that one copy of an expert adds to its rank when the expert has k + 1 copies."""
    smooth_kSE: Floats
    """The same in the units and windows of the smooth objective: mean rank load 1."""
    held: list[list[int]]
    """Experts of each rank."""
    evaluations: int = 0
    copies_E: Ints = field(init=False)
    member_ER: Bools = field(init=False)

    def __post_init__(self) -> None:
        self.refresh()

    def refresh(self) -> None:
        """Recompute what follows from `held`."""
        experts, ranks = self.problem.num_experts, self.problem.num_ranks
        self.member_ER = np.zeros((experts, ranks), dtype=bool)
        for rank, members in enumerate(self.held):
            self.member_ER[members, rank] = True
        self.copies_E = self.member_ER.sum(axis=1)

    # --- the two objectives -----------------------------------------------------------------------

    def unit_weights(self, table_kSE: Floats) -> Floats:
        """Weight [S, E] of one copy of each expert at its present number of copies."""
        unit_SE: Floats = np.take_along_axis(table_kSE, (self.copies_E - 1)[None, None, :], axis=0)[0]
        return unit_SE

    def loads(self, table_kSE: Floats) -> Floats:
        """Load of each rank [S, R]."""
        unit_SE = self.unit_weights(table_kSE)
        return np.stack([self._load(unit_SE, rank) for rank in range(len(self.held))], axis=1)

    def _load(self, unit_SE: Floats, rank: int) -> Floats:
        """Load of one rank [S]: its copies' weights, times how slow it is."""
        load_S: Floats = unit_SE[:, self.held[rank]].sum(axis=1) * self.problem.slow_R[rank]
        return load_S

    def placement(self) -> Ints:
        """Slots in canonical order."""
        return from_ranks(self.held, int(self.problem.slots_R.max()))

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

    def _slots(self) -> tuple[Ints, Ints]:
        """Expert and rank of every filled slot."""
        expert_P = np.concatenate([np.asarray(members, dtype=np.int64) for members in self.held])
        rank_P = np.repeat(np.arange(len(self.held)), [len(members) for members in self.held])
        return expert_P, rank_P

    def _forbidden(self, rank: int, expert_P: Ints, rank_P: Ints) -> Bools:
        """Swaps [Q, P] of a slot of `rank` with any slot that would break a rule."""
        mine = self.held[rank]
        bad = (rank_P == rank)[None, :] | self.member_ER[expert_P, rank][None, :]
        bad = bad | self.member_ER[mine][:, rank_P]
        if self.problem.group_E is not None:
            node_R = self.problem.node_R
            bad = bad | (node_R[rank_P] != node_R[rank])[None, :]
        return np.asarray(bad)

    def _swap(self, rank: int, mine: int, partner: int, rank_P: Ints) -> tuple[int, int, int]:
        """Exchange slot `mine` of `rank` with slot `partner` of all; the experts and the other rank."""
        other = int(rank_P[partner])
        theirs = partner - int(np.searchsorted(rank_P, other))
        first, second = self.held[rank][mine], self.held[other][theirs]
        self.held[rank][mine], self.held[other][theirs] = second, first
        self.member_ER[[first, second], rank] = [False, True]
        self.member_ER[[first, second], other] = [True, False]
        return first, second, other

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
        expert_P, rank_P = self._slots()
        mine = np.asarray(self.held[rank])
        unit, load = unit_SE.astype(np.float32), load_SR.astype(np.float32)
        delta_SQP = unit[:, None, expert_P] - unit[:, mine][:, :, None]
        slow_R = self.problem.slow_R.astype(np.float32)
        after_QP = _power(load[:, rank][:, None, None] + delta_SQP * slow_R[rank]).sum(axis=0)
        np.multiply(delta_SQP, slow_R[rank_P], out=delta_SQP)
        np.subtract(load[:, rank_P][:, None, :], delta_SQP, out=delta_SQP)
        after_QP += _power(delta_SQP).sum(axis=0)
        change_QP = after_QP - (power_R[rank] + power_R[rank_P])[None, :]
        change_QP[self._forbidden(rank, expert_P, rank_P)] = np.inf
        self.evaluations += change_QP.size
        best = int(np.argmin(change_QP))
        slot, partner = divmod(best, len(expert_P))
        delta_S = unit_SE[:, expert_P[partner]] - unit_SE[:, mine[slot]]
        slow, slow_partner = self.problem.slow_R[rank], self.problem.slow_R[rank_P[partner]]
        pair_SR = np.stack([load_SR[:, rank] + delta_S * slow, load_SR[:, rank_P[partner]] - delta_S * slow_partner])
        change = _power(pair_SR).sum() - power_R[rank] - power_R[rank_P[partner]]
        if not (np.isfinite(change_QP.flat[best]) and change < -_TINY * power_R.sum()):
            return False
        _, _, other = self._swap(rank, slot, partner, rank_P)
        for changed in (rank, other):
            load_SR[:, changed] = self._load(unit_SE, changed)
            power_R[changed] = _power(load_SR[:, changed]).sum()
        return True

    def _swap_sharp(self, rank: int, load_SR: Floats, unit_SE: Floats) -> bool:
        expert_P, rank_P = self._slots()
        mine = np.asarray(self.held[rank])
        rest_SP = _fullest_without(load_SR, rank, rank_P)
        unit, load, rest = (array.astype(np.float32) for array in (unit_SE, load_SR, rest_SP))
        delta_SQP = unit[:, None, expert_P] - unit[:, mine][:, :, None]
        slow_R = self.problem.slow_R.astype(np.float32)
        top_SQP = load[:, rank][:, None, None] + delta_SQP * slow_R[rank]
        np.multiply(delta_SQP, slow_R[rank_P], out=delta_SQP)
        np.subtract(load[:, rank_P][:, None, :], delta_SQP, out=delta_SQP)
        np.maximum(top_SQP, delta_SQP, out=top_SQP)
        np.maximum(top_SQP, rest[:, None, :], out=top_SQP)
        after_QP = top_SQP.sum(axis=0)
        after_QP[self._forbidden(rank, expert_P, rank_P)] = np.inf
        self.evaluations += after_QP.size
        best = int(np.argmin(after_QP))
        slot, partner = divmod(best, len(expert_P))
        delta_S = unit_SE[:, expert_P[partner]] - unit_SE[:, mine[slot]]
        slow, slow_partner = self.problem.slow_R[rank], self.problem.slow_R[rank_P[partner]]
        pair_S = np.maximum(load_SR[:, rank] + delta_S * slow, load_SR[:, rank_P[partner]] - delta_S * slow_partner)
        after = np.maximum(pair_S, rest_SP[:, partner]).sum()
        if not (np.isfinite(after_QP.flat[best]) and after < load_SR.max(axis=1).sum() * (1 - _TINY)):
            return False
        _, _, other = self._swap(rank, slot, partner, rank_P)
        for changed in (rank, other):
            load_SR[:, changed] = self._load(unit_SE, changed)
        return True

    # --- copies -----------------------------------------------------------------------------------

    def _replace_smooth(self) -> bool:
        """The best replacement of one copy by a copy of another expert, if any helps."""
        table = self.smooth_kSE
        if (self.copies_E < 2).all():
            return False
        load_SR = self.loads(table)
        before = float(_power(load_SR).sum())
        best, choice = -_TINY * before, None
        unit_SE = self.unit_weights(table)
        more_SE = np.take_along_axis(table, np.minimum(self.copies_E, len(table) - 1)[None, None, :], axis=0)[0]
        for rank, members in enumerate(self.held):
            for slot, expert in enumerate(members):
                if self.copies_E[expert] < 2:
                    continue
                change_E = self._replacement(rank, expert, load_SR, unit_SE, more_SE) - before
                wanted = int(np.argmin(change_E))
                if change_E[wanted] < best:
                    best, choice = float(change_E[wanted]), (rank, slot, wanted)
        if choice is None:
            return False
        rank, slot, wanted = choice
        self.held[rank][slot] = wanted
        self.refresh()
        return True

    def _replacement(self, rank: int, expert: int, load_SR: Floats, unit_SE: Floats, more_SE: Floats) -> Floats:
        """Smooth objective [E] after a copy of `expert` on `rank` gives way to each other expert."""
        fewer_S = self.smooth_kSE[self.copies_E[expert] - 2, :, expert]
        slow_R = self.problem.slow_R
        kept_SR = load_SR.copy()
        kept_SR[:, rank] -= unit_SE[:, expert] * slow_R[rank]
        others = self.member_ER[expert].copy()
        others[rank] = False
        kept_SR[:, others] += (fewer_S - unit_SE[:, expert])[:, None] * slow_R[others]
        change_SE = more_SE - unit_SE
        after_SER = kept_SR[:, None, :] + change_SE[:, :, None] * (self.member_ER[None] * slow_R)
        after_SER[:, :, rank] = kept_SR[:, rank][:, None] + more_SE * slow_R[rank]
        value_E = np.asarray(_power(after_SER).sum(axis=(0, 2)))
        impossible = self.member_ER[:, rank] | (self.copies_E >= len(self.smooth_kSE))
        impossible[expert] = True
        if self.problem.group_E is not None:
            impossible |= ~self._lives_with(rank)
        value_E[impossible] = np.inf
        self.evaluations += value_E.size
        return value_E

    def _lives_with(self, rank: int) -> Bools:
        """Experts [E] whose routing group is on the rank's node."""
        node_R = self.problem.node_R
        return np.asarray(self.member_ER[:, node_R == node_R[rank]].any(axis=1))


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


def _fullest_without(load_SR: Floats, rank: int, rank_P: Ints) -> Floats:
    """Fullest rank [S, P] when `rank` and the partner's rank are left out."""
    count = min(3, load_SR.shape[1])
    top = np.argsort(-load_SR, axis=1, kind="stable")[:, :count]
    value = np.take_along_axis(load_SR, top, axis=1)
    rest_SP = np.zeros((len(load_SR), len(rank_P)))
    for place in reversed(range(count)):
        free = (top[:, place] != rank)[:, None] & (top[:, place][:, None] != rank_P)
        rest_SP = np.where(free, value[:, place][:, None], rest_SP)
    return rest_SP


def weight_table(problem: LayerProblem) -> Floats:
    """Seconds [k, S, E] that one of k + 1 copies adds to its rank, by the balanced tangent.

    Expert time and what the rank's rows cost in traffic (receiving, and gathering if etp > 1).
    """
    moe, tangent = problem.moe, mean_tangent(problem)
    per_row_S = tangent.per_row_CS[0] + (moe.dispatch_bytes + moe.combine_bytes) * _traffic_s_per_row(problem)
    rows_SE = problem.rows_SE
    table = []
    for copies in range(1, problem.most_copies + 1):
        touched_SE = problem.touched_SE(float(copies))
        table.append(per_row_S[:, None] * rows_SE / copies + tangent.per_touched_CS[0][:, None] * touched_SE)
    return np.stack(table)


def _traffic_s_per_row(problem: LayerProblem) -> float:
    """Seconds per byte that one more row costs the rank that receives it, at its slowest level."""
    moe = problem.moe
    worst = float(moe.exchange.row_s_R.max()) if moe.has_exchange else 0.0
    return worst / moe.etp + moe.gather_s_per_row_byte


def smooth_table(weight_kSE: Floats, ranks: int, stretch: Stretch | None = None) -> Floats:
    """The table in units of the mean rank load, with windows stretched.

    Args:
        weight_kSE: as from `weight_table`.
        ranks: EP ranks.
        stretch: of the windows; default: `stretch_of` their number.
    """
    mean_S = weight_kSE[0].sum(axis=1) / ranks
    relative_kSE = weight_kSE / mean_S[None, :, None]
    stretch = stretch or stretch_of(relative_kSE.shape[1])
    if stretch.is_none:
        return np.asarray(relative_kSE)
    stretched_kSE = np.einsum("st,kte->kse", stretch.matrix(relative_kSE[0]), relative_kSE)
    return np.asarray(np.maximum(stretched_kSE, 0.0))


def spread_copies(smooth_kSE: Floats, num_slots: int) -> Ints:
    """Copies of each expert: spare slots one by one to the expert whose copy is largest on average."""
    most, _, experts = smooth_kSE.shape
    mean_kE = smooth_kSE.mean(axis=1)
    copies_E = np.ones(experts, dtype=np.int64)
    for _ in range(num_slots - experts):
        largest_E = mean_kE[copies_E - 1, np.arange(experts)]
        largest_E[copies_E >= most] = -np.inf
        copies_E[int(np.argmax(largest_E))] += 1
    return copies_E


def start(problem: LayerProblem, smooth_kSE: Floats, node_of_group: Ints | None) -> list[list[int]]:
    """Experts of each rank: copies by falling mean load, each to the lightest rank that may take it."""
    copies_E = _legal_copies(problem, smooth_kSE, node_of_group)
    mean_E = smooth_kSE.mean(axis=1)[copies_E - 1, np.arange(problem.num_experts)]
    held: list[list[int]] = [[] for _ in range(problem.num_ranks)]
    load_R = np.zeros(problem.num_ranks)
    room_R = problem.slots_R.copy()
    for expert in _packing_order(copies_E, mean_E):
        for _ in range(copies_E[expert]):
            allowed_R = room_R > 0
            allowed_R[[rank for rank, members in enumerate(held) if expert in members]] = False
            if node_of_group is not None and problem.group_E is not None:
                allowed_R &= problem.node_R == node_of_group[problem.group_E[expert]]
            if not allowed_R.any():
                _make_room(expert, held, room_R, load_R, mean_E, problem, node_of_group)
                continue
            rank = int(np.argmin(np.where(allowed_R, load_R, np.inf)))
            held[rank].append(expert)
            load_R[rank] += mean_E[expert] * problem.slow_R[rank]
            room_R[rank] -= 1
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
) -> None:
    """Free slots are only on ranks that hold the expert already: move another expert there.

    Some rank without the expert holds one that the rank with room lacks; it moves, and the expert
    takes its slot. Such a pair exists because no rank has more slots than there are experts.
    """
    node_R = problem.node_R
    for target in np.flatnonzero(room_R > 0).tolist():
        for source in np.argsort(load_R, kind="stable").tolist():
            if expert in held[source] or (node_of_group is not None and node_R[source] != node_R[target]):
                continue
            moved = next((e for e in held[source] if e not in held[target]), None)
            if moved is None:
                continue
            held[source][held[source].index(moved)] = expert
            held[target].append(moved)
            load_R[source] += (mean_E[expert] - mean_E[moved]) * problem.slow_R[source]
            load_R[target] += mean_E[moved] * problem.slow_R[target]
            room_R[target] -= 1
            return
    raise AssertionError("no legal slot for a copy: slots per rank exceed the number of experts")


def _legal_copies(problem: LayerProblem, smooth_kSE: Floats, node_of_group: Ints | None) -> Ints:
    """Copies of each expert; where groups stay on nodes, each node fills its own slots."""
    if node_of_group is None or problem.group_E is None:
        return spread_copies(smooth_kSE, problem.num_slots)
    copies_E = np.ones(problem.num_experts, dtype=np.int64)
    for node in range(int(problem.node_R.max()) + 1):
        ranks = np.flatnonzero(problem.node_R == node)
        members = np.flatnonzero(node_of_group[problem.group_E] == node)
        table = smooth_kSE[: len(ranks)][:, :, members]
        copies_E[members] = spread_copies(table, int(problem.slots_R[ranks].sum()))
    return copies_E
