"""Local search on the layer's time itself: balance and traffic in one objective, in seconds.

Where a token travels once to a rank or a node, which experts sit together decides how much travels.
So swaps are judged by the time of section 8: the slowest rank's experts (by their tangents) and the
slowest port's copies (exactly, `visits.py`), with their overlap, on every window. There is no weight
between the two to tune: links and kernels say what each costs.

As in `smooth.py` a smooth objective goes first, in which all ranks and ports pull: power means in
place of the two maxima, of a low power (far-sighted), then a higher; at last the maxima themselves.

Legend: S windows, E experts, R ranks, P slots (filled), Q slots of one rank, X ranks or domains visited, U ports,
uplinks or pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from planner.cost.traffic import unit_of_rank
from planner.solve.held import Held
from planner.solve.problem import LayerProblem
from planner.solve.sharp import fullest_without
from planner.solve.smooth import raised
from planner.solve.visits import SetVisits, ShareVisits, Swap
from planner.solve.weights import weight_table

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Loads = list[tuple[Ints, Floats]]
Visits = list[tuple[Floats, NDArray[Any]]]

FAR_SIGHTED: Final = 4
SHARPER: Final = 8
"""Powers of the means that stand for the maxima, one after the other."""
LIMIT: Final = 5e8
"""Windows x swaps x units looked at in one layer, some seconds of work."""
_IDLE: Final = 0.6
"""Ports that are less busy than this part of the busiest in every window are left out."""
_TINY: Final = 1e-6


class JointSearch:
    """A placement of one layer, and the time that its swaps would give.

    Args:
        held: changed in place.
    """

    def __init__(self, held: Held) -> None:
        self.held, problem = held, held.problem
        self.evaluations = 0.0
        self.weight_kSE = weight_table(problem, traffic=False)
        self.slow_R = problem.busy_R / problem.busy_R[problem.moe.class_R == 0].mean()
        base_C, slot_C = np.array([(k.base_s, k.per_expert_s) for k in problem.moe.kernels_C]).T
        self.base_R = base_C[problem.moe.class_R] + slot_C[problem.moe.class_R] * problem.slots_R
        self.visits, self._table_XU = self._traffic()
        self._busy = self._busy_units()

    def _traffic(self) -> tuple[list[SetVisits | ShareVisits], Floats]:
        """Who is visited, and what a visit costs each unit [X, U], in seconds per byte."""
        problem, exchange = self.held.problem, self.held.problem.moe.exchange
        kind = ShareVisits if problem.load.sets is None else SetVisits
        keys, table_XU = exchange.unit_table()
        visits = [kind(problem.load, self.held, unit_of_rank(exchange, key)) for key in keys]
        return visits, table_XU * (problem.moe.tokens / problem.moe.etp)

    def improve(self, power: int | None) -> None:
        """Swaps until none lowers the mean time, with power means in place of maxima (None: maxima)."""
        while True:
            self._descend(power)
            busy_U = self._busy | self._busy_units()
            if (busy_U == self._busy).all() or self.evaluations >= LIMIT:
                return
            self._busy = busy_U  # ports that were idle before the swaps

    def _busy_units(self) -> NDArray[np.bool_]:
        """Units [U] that are nearly as busy as the busiest, in some window."""
        seconds_SU = np.einsum("sx,xu->su", self._visits_SX(), self._table_XU)
        return np.asarray((seconds_SU >= _IDLE * seconds_SU.max(axis=1, keepdims=True)).any(axis=0))

    def _descend(self, power: int | None) -> None:
        unit_SE = self.held.unit_weights(self.weight_kSE)
        now, rank, idle = self.seconds(power), 0, 0
        while idle < len(self.slow_R) and self.evaluations < LIMIT:
            found = self._best_swap(rank, unit_SE, power)
            if found is not None and found[0] < now * (1 - _TINY):
                slot, (other, partner) = found[1], self.held.at(found[2])
                self._exchange(rank, slot, other, partner)
                after = self.seconds(power)  # in double precision
                if after < now * (1 - _TINY):
                    now, idle = after, 0
                    continue
                self._exchange(rank, slot, other, partner)
            rank, idle = (rank + 1) % len(self.slow_R), idle + 1

    def _exchange(self, rank: int, slot: int, other: int, partner: int) -> None:
        """Let two experts change places; once more, and all is as it was."""
        experts = self.held.exchange(rank, slot, other, partner)
        for visits in self.visits:
            visits.moved(experts, (rank, other))

    def turn(self, places: Sequence[int]) -> None:
        """Let the expert of each place take the next one; turned in reverse, and all is as it was."""
        experts, ranks = self.held.rotate(places)
        for visits in self.visits:
            visits.moved(experts, ranks)

    # --- seconds ----------------------------------------------------------------------------------

    def loads(self, unit_SE: Floats) -> Floats:
        """Expert seconds of each rank [S, R]."""
        load_SR = np.stack([self.held.load(unit_SE, rank) for rank in range(len(self.slow_R))], axis=1)
        return np.asarray(load_SR * self.slow_R + self.base_R)

    def _visits_SX(self) -> Floats:
        return np.concatenate([visits.visits_SX() for visits in self.visits], axis=1)

    def _units(self) -> Floats:
        """Seconds per byte on each busy unit [S, U]."""
        return np.asarray(np.einsum("sx,xu->su", self._visits_SX(), self._table_XU[:, self._busy]))

    def seconds(self, power: int | None) -> float:
        """The objective: mean over windows, with power means in place of maxima (None: maxima)."""
        unit_SE = self.held.unit_weights(self.weight_kSE)
        return float(self._total(peak(self.loads(unit_SE), power), peak(self._units(), power)).mean())

    def after(self, load_SR: Floats, loads: Loads, visits: Visits, power: int | None) -> Floats:
        """The objective [Q, P] after each of so many changes.

        Args:
            load_SR: expert seconds before.
            loads: expert seconds of the ranks that change: these ranks, and their seconds [S, Q, P] after.
            visits: changes of visits [S, Q, P], and what a visit costs the busy units there.
            power: as in `seconds`.
        """
        return np.asarray(self._total(_experts(load_SR, loads, power), self._per_byte(visits, power)).mean(axis=0))

    def _total(self, expert: Floats, per_byte: Floats) -> Floats:
        return self.held.problem.moe.times(expert, per_byte).total_S

    def _best_swap(self, rank: int, unit_SE: Floats, power: int | None) -> tuple[float, int, int] | None:
        """The swap of a slot of this rank that gives the least time: seconds, slot, place of the other."""
        held = self.held
        swap = Swap(rank, np.asarray(held.of_rank[rank]), held.expert_P, held.rank_P)
        bad_QP = held.forbidden(rank)
        if bad_QP.all():
            return None
        load_SR = self.loads(unit_SE)
        seconds_QP = self.after(load_SR, self._swapped(swap, load_SR, unit_SE), self._travels(swap, bad_QP), power)
        self.evaluations += len(load_SR) * bad_QP.size * int(self._busy.sum())
        seconds_QP[bad_QP] = np.inf
        best = int(np.argmin(seconds_QP))
        slot, partner = divmod(best, len(held.expert_P))
        return float(seconds_QP.flat[best]), slot, partner

    def tables(self) -> list[Floats]:
        """What a visit costs the busy units [X, U], for each kind of unit visited."""
        ends = np.cumsum([int(visits.unit_R.max()) + 1 for visits in self.visits])
        return np.split(self._table_XU[:, self._busy].astype(np.float32), ends[:-1])

    def _travels(self, swap: Swap, bad_QP: NDArray[np.bool_]) -> Visits:
        """What each swap changes in the visits."""
        changes: Visits = []
        for visits, table_XU in zip(self.visits, self.tables(), strict=True):
            at_here, at_there = visits.changes(swap)
            here, there_P = visits.unit_R[swap.rank], visits.unit_R[swap.rank_P]
            for change, table in ((at_here, table_XU[here][None]), (at_there, table_XU[there_P])):
                change[:, bad_QP] = 0.0  # nothing is meant by what a rule forbids
                changes.append((change, table))
        return changes

    def _per_byte(self, visits: Visits, power: int | None) -> Floats:
        """Peak of the units' seconds per byte [S, Q, P] after each change, in single precision."""
        units_SU = self._units()
        scale = float(units_SU.max()) or 1.0  # one for all windows: in some nothing may travel yet
        before_SU = (units_SU / scale).astype(np.float32)
        changes = [((change / scale).astype(np.float32), table) for change, table in visits]
        peak = np.zeros(visits[0][0].shape, dtype=np.float32)
        for unit in range(units_SU.shape[1]):  # one at a time: they stay in the cache
            after = np.broadcast_to(before_SU[:, unit, None, None], peak.shape)
            for scaled, table in changes:
                if table[:, unit].any():
                    after = after + scaled * table[:, unit]
            if power is None:
                np.maximum(peak, after, out=peak)
            else:
                peak += raised(after, power)
        return np.asarray(peak * scale if power is None else root(peak / units_SU.shape[1], power) * scale)

    def _swapped(self, swap: Swap, load_SR: Floats, unit_SE: Floats) -> Loads:
        """Expert seconds of both ranks after each swap."""
        rank, rank_P = swap.rank, swap.rank_P
        delta = unit_SE[:, None, swap.expert_P] - unit_SE[:, swap.mine_Q][:, :, None]
        mine = load_SR[:, rank][:, None, None] + delta * self.slow_R[rank]
        theirs = load_SR[:, rank_P][:, None, :] - delta * self.slow_R[rank_P]
        return [(np.full_like(rank_P, rank)[None], mine), (rank_P[None], theirs)]


def _experts(load_SR: Floats, loads: Loads, power: int | None) -> Floats:
    """Peak of the ranks' expert seconds [S, Q, P] after each change."""
    if power is None:
        peak = fullest_without(load_SR, *(ranks for ranks, _ in loads))
        for _, after in loads:
            peak = np.maximum(peak, after)
        return peak
    scale = load_SR.mean(axis=1)[:, None, None]
    raised_SR = raised(load_SR / scale[:, :, 0], power)
    rest, changed = raised_SR.sum(axis=1)[:, None, None], np.zeros(())
    for ranks, after in loads:
        rest = rest - raised_SR[:, ranks]
        changed = changed + raised(after / scale, power)
    mean = (np.maximum(rest, 0.0) + changed) / load_SR.shape[1]
    return np.asarray(root(mean, power) * scale)


def root(values: NDArray[Any], power: int) -> NDArray[Any]:
    """values**(1 / power), for a power of two."""
    while power > 1:
        values, power = np.sqrt(values), power // 2
    return values


def peak(values: Floats, power: int | None) -> Floats:
    """Maximum along the last axis, or power mean."""
    top = values.max(axis=-1)
    if power is None:
        return np.asarray(top)
    scale = np.maximum(top, np.finfo(top.dtype).tiny)
    return np.asarray(root(raised(values / scale[..., None], power).mean(axis=-1), power) * scale)


def is_joint(problem: LayerProblem) -> bool:
    """Whether it matters which experts sit together."""
    exchange = problem.moe.exchange
    return problem.moe.has_exchange and not exchange.ranks_share_volume
