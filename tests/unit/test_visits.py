"""What a swap changes in the visits of ranks and domains, against counting all tokens anew."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from planner.cost.instance import LayerLoad
from planner.cost.traffic import visits
from planner.solve.held import Held
from planner.solve.problem import plain_load_problem
from planner.solve.start import start
from planner.solve.visits import SetVisits, ShareVisits, Swap
from planner.solve.weights import weight_table
from planner.trace.windows import TokenSets

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

EXPERTS, RANKS, TOP_K, WINDOWS = 12, 6, 3, 2
UNITS = {
    "ranks": np.arange(RANKS),
    "two domains": np.array([0, 0, 0, 1, 1, 1]),
    "uneven": np.array([0, 1, 1, 2, 2, 2]),
}


def load(seed: int, *, recorded: bool) -> LayerLoad:
    """Tokens that like neighbouring experts, some of them with a choice of no expert."""
    rng = np.random.default_rng(seed)
    first_N = rng.integers(0, EXPERTS, 300)
    rows = [(first + rng.permutation(5)[:TOP_K]) % EXPERTS for first in first_N]
    experts_NK = np.stack(rows).astype(np.int32)
    experts_NK[rng.random(experts_NK.shape) < 0.05] = -1
    window_N = np.sort(rng.integers(0, WINDOWS, len(experts_NK))).astype(np.int32)
    counts_SE = np.zeros((WINDOWS, EXPERTS))
    for window, experts in zip(window_N, experts_NK, strict=True):
        np.add.at(counts_SE[window], experts[experts >= 0], 1)
    tokens_S = np.bincount(window_N, minlength=WINDOWS)
    sets = TokenSets(window_N, experts_NK[:, None]) if recorded else None
    return LayerLoad(counts_SE / counts_SE.sum(axis=1, keepdims=True), counts_SE.sum(axis=1) / tokens_S, sets)


def held(of: LayerLoad, slots: int) -> Held:
    problem = plain_load_problem(of.share_SE, np.full(RANKS, slots // RANKS))
    return Held(problem, start(problem, weight_table(problem), None))


def visits_anew(of: LayerLoad, now: Held, unit_R: Ints) -> Floats:
    part_ER = now.member_ER / now.copies_E[:, None]
    return visits(of, part_ER @ (np.arange(unit_R.max() + 1) == unit_R[:, None]))


def legal_swaps(now: Held, rank: int) -> tuple[Swap, NDArray[np.bool_]]:
    swap = Swap(rank, np.asarray(now.of_rank[rank]), now.expert_P.copy(), now.rank_P)
    return swap, ~now.forbidden(rank)


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize("slots", [12, 18, 30])
def test_every_swap_is_foretold_and_then_done(slots: int, units: str, recorded: bool) -> None:
    of, unit_R = load(slots, recorded=recorded), UNITS[units]
    now = held(of, slots)
    model = (SetVisits if recorded else ShareVisits)(of, now, unit_R)
    rng = np.random.default_rng(7)
    np.testing.assert_allclose(model.visits_SX(), visits_anew(of, now, unit_R), rtol=1e-12)
    for rank in (*range(RANKS), *range(RANKS)):
        swap, legal = legal_swaps(now, rank)
        first, second = model.changes(swap)
        before = visits_anew(of, now, unit_R)
        pairs = np.argwhere(legal)
        for slot, partner in pairs[rng.permutation(len(pairs))[:6]]:
            other = int(swap.rank_P[partner])
            after = [list(members) for members in now.of_rank]
            after[rank][slot] = int(swap.expert_P[partner])
            after[other][now.of_rank[other].index(int(swap.expert_P[partner]))] = int(swap.mine_Q[slot])
            change = visits_anew(of, Held(now.problem, after), unit_R) - before
            if unit_R[rank] == unit_R[other]:
                np.testing.assert_allclose(change, 0.0, atol=1e-12)
                assert not first[:, slot, partner].any()
                assert not second[:, slot, partner].any()
                continue
            np.testing.assert_allclose(first[:, slot, partner], change[:, unit_R[rank]], atol=1e-12)
            np.testing.assert_allclose(second[:, slot, partner], change[:, unit_R[other]], atol=1e-12)
        slot, partner = pairs[rng.integers(len(pairs))]
        other = int(swap.rank_P[partner])
        at = now.of_rank[other].index(int(swap.expert_P[partner]))
        one, two = now.exchange(rank, int(slot), other, at)
        model.moved((one, two), (rank, other))
        np.testing.assert_allclose(model.visits_SX(), visits_anew(of, now, unit_R), atol=1e-12)
