"""Cycles of three ranks, for when no swap helps: three experts on three ranks take the place of the next.

Each rank gives one expert and gets one, so loads and visits after a cycle are known from tables over pairs of
places, and all cycles are evaluated at once: for the sharp objective those through the fullest ranks, for the
joint objective all of them (docs/model.md, section 12). Layers too large for that rest on swaps.

Legend: S windows, E experts, R ranks, P slots (filled), C cycles, X ranks or domains visited, U ports or uplinks,
M slots that may be the second of a cycle, L those that may be the last.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from planner.solve.held import Bools, Held
from planner.solve.joint import LIMIT, JointSearch, Loads, Visits
from planner.solve.sharp import SharpSearch, by_excess, fullest_without
from planner.solve.visits import Swap

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_MOST: Final = 3e7
"""Windows x cycles (x units) looked at for one turn, at most: some tenths of a second of work."""
_COST: Final = 0.1
"""Work of a cycle of the joint objective as a part of a swap's: one table serves many."""
_AT_ONCE: Final = 1 << 18
"""Numbers of a table over windows and cycles that are worked on at once: 2 MiB."""
_TINY: Final = 1e-6


# --- the sharp objective --------------------------------------------------------------------------


def relieve(search: SharpSearch) -> None:
    """Swaps and cycles until none lowers the sum of the fullest ranks."""
    search.improve()
    while _turn_fullest(search):
        search.improve()


def _turn_fullest(search: SharpSearch) -> bool:
    held = search.held
    if len(search.load_SR) * len(held.expert_P) ** 2 * int(held.problem.slots_R.max()) > _MOST:
        return False
    arc_PP = held.arcs()
    for rank in by_excess(search.load_SR):
        places, before = best_through(search, rank, arc_PP), search.load_SR.max(axis=1).sum()
        if places is None:
            continue
        _turn(search, places)
        if search.load_SR.max(axis=1).sum() < before * (1 - _TINY):
            return True
        _turn(search, places[::-1])  # only single precision liked it
    return False


def _turn(search: SharpSearch, places: tuple[int, ...]) -> None:
    for rank in search.held.rotate(places)[1]:
        search.load_SR[:, rank] = search.load(rank)


def best_through(search: SharpSearch, rank: int, arc_PP: Bools) -> tuple[int, ...] | None:
    """The cycle through a rank that lowers the sum of the fullest ranks most; none if none lowers it.

    Places that leave some rank too full whatever the third rank does are left out beforehand.
    """
    rank_P, ranks = search.held.rank_P, np.arange(search.problem.num_ranks)
    slow_P = search.slow_R[rank_P].astype(np.float32)
    unit_SP = search.unit_SE[:, search.held.expert_P].astype(np.float32)
    load_SP = search.load_SR[:, rank_P].astype(np.float32)
    rest_SRR = fullest_without(search.load_SR, np.full((1, 1), rank), ranks[:, None], ranks).astype(np.float32)
    least_SP = rest_SRR.min(axis=2)[:, rank_P]
    best, found = search.load_SR.max(axis=1).sum() * (1 - _TINY), None
    for first in np.flatnonzero(rank_P == rank).tolist():
        more_SP = unit_SP[:, [first]] - unit_SP
        here_SP, there_SP = load_SP[:, [first]] - more_SP * slow_P[first], load_SP + more_SP * slow_P
        fits_P, takes_P = (np.maximum(after, least_SP).sum(axis=0) < best for after in (here_SP, there_SP))
        second_M, last_L = np.flatnonzero(arc_PP[first] & takes_P), np.flatnonzero(arc_PP[:, first] & fits_P)
        if len(second_M) == 0 or len(last_L) == 0:
            continue
        top_SML = (unit_SP[:, second_M, None] - unit_SP[:, None, last_L]) * slow_P[last_L] + load_SP[:, None, last_L]
        np.maximum(top_SML, here_SP[:, None, last_L], out=top_SML)
        np.maximum(top_SML, there_SP[:, second_M, None], out=top_SML)
        np.maximum(top_SML, rest_SRR[:, rank_P[second_M, None], rank_P[last_L]], out=top_SML)
        after_ML = np.where(arc_PP[second_M[:, None], last_L], top_SML.sum(axis=0), np.inf)
        search.evaluations += after_ML.size
        least = int(np.argmin(after_ML))
        if after_ML.flat[least] < best:
            second, last = divmod(least, len(last_L))
            best, found = after_ML.flat[least], (first, int(second_M[second]), int(last_L[last]))
    return found


# --- the joint objective --------------------------------------------------------------------------


def improve(joint: JointSearch, power: int | None) -> None:
    """Swaps and cycles until none lowers the mean time, with power means in place of maxima (None: maxima)."""
    joint.improve(power)
    while _turn_joint(joint, power):
        joint.improve(power)


def _turn_joint(joint: JointSearch, power: int | None) -> bool:
    windows, units, slots = joint.held.problem.num_windows, joint.tables()[0].shape[1], len(joint.held.expert_P)
    if windows * units * slots**3 / 3 > min(_MOST, LIMIT - joint.evaluations):
        return False
    place_3C = cycles_of(joint.held.arcs())
    if place_3C.shape[1] == 0:
        return False
    joint.evaluations += _COST * windows * units * place_3C.shape[1]
    seconds_C, before = seconds_after(joint, place_3C, power), joint.seconds(power)
    best = int(np.argmin(seconds_C))
    if seconds_C[best] >= before * (1 - _TINY):
        return False
    places = place_3C[:, best].tolist()
    joint.turn(places)
    if joint.seconds(power) < before * (1 - _TINY):
        return True
    joint.turn(places[::-1])  # only single precision liked it
    return False


def cycles_of(arc_PP: Bools) -> Ints:
    """All cycles [3, C] of three places: the expert of the first may take the second place, and so on."""
    found = []
    for first in range(len(arc_PP)):
        second = first + 1 + np.flatnonzero(arc_PP[first, first + 1 :])
        last = first + 1 + np.flatnonzero(arc_PP[first + 1 :, first])
        at, to = np.nonzero(arc_PP[np.ix_(second, last)])
        found.append(np.stack([np.full(len(at), first), second[at], last[to]]))
    return np.concatenate(found, axis=1)


def seconds_after(joint: JointSearch, place_3C: Ints, power: int | None) -> Floats:
    """The objective [C] after each cycle."""
    held = joint.held
    unit_SE = held.unit_weights(joint.weight_kSE)
    load_SR, unit_SP = joint.loads(unit_SE), unit_SE[:, held.expert_P]
    change_PP = [_exchanges(held, joint, number) for number in range(len(joint.visits))]
    found = []
    for part_3C in np.array_split(place_3C, -(-place_3C.shape[1] * len(load_SR) // _AT_ONCE), axis=1):
        loads: Loads = []
        visits: Visits = []
        for number in range(3):
            place, after, before = part_3C[number], part_3C[(number + 1) % 3], part_3C[number - 1]
            rank = held.rank_P[place]
            load_SC = load_SR[:, rank] + (unit_SP[:, before] - unit_SP[:, place]) * joint.slow_R[rank]
            loads.append((rank[None], load_SC[:, None]))
            for model, table_XU, change_SPP in zip(joint.visits, joint.tables(), change_PP, strict=True):
                unit_P = model.unit_R[held.rank_P]
                # Who leaves the unit: where the next place is in it too, the expert of that one.
                leaves = np.where(unit_P[place] == unit_P[after], after, place)
                visits.append((change_SPP[:, None, leaves, before], table_XU[unit_P[place]]))
        found.append(joint.after(load_SR, loads, visits, power)[0])
    return np.concatenate(found)


def _exchanges(held: Held, joint: JointSearch, number: int) -> Floats:
    """What visits of a place's unit change [S, P, P] if its expert leaves and another comes from elsewhere."""
    filled = [rank for rank, experts in enumerate(held.of_rank) if experts]
    swaps = (Swap(rank, np.asarray(held.of_rank[rank]), held.expert_P, held.rank_P) for rank in filled)
    return np.concatenate([joint.visits[number].here(swap) for swap in swaps], axis=1)
