"""Verdicts on traces whose truth is known, and their arithmetic."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from planner.capacity.placing import Place, Ranks, eplb_place, linear_place, ranks_for, search_place
from planner.capacity.verdict import Criteria, Trial, Verdict, peak_S, rank_loads, trial
from planner.capacity.verdict import verdict as judge
from planner.errors import UsageError
from planner.solve.workers import Workers
from planner.trace.windows import Windows, subset
from tests import building

EXPERTS, LAYERS, TOP_K = 64, 4, 8
GROUP = Ranks(8, 72)
Floats = NDArray[np.float64]
Judge = Callable[[Windows], Verdict]


@pytest.fixture(params=["eplb", "search"])
def verdict(request: pytest.FixtureRequest) -> Judge:
    """The verdict with either way of placing: on clear cases they agree."""
    place = eplb_place(GROUP) if request.param == "eplb" else search_place(GROUP, Workers(cores=1))
    return lambda windows: judge(windows, TOP_K, GROUP, place)


def drawn(share_SLE: Floats, tokens: int = 4096, seed: int = 0) -> Windows:
    """Windows drawn from the experts' shares."""
    counts = np.random.default_rng(seed).multinomial(tokens * TOP_K, share_SLE)
    return building.counted(counts, list(range(share_SLE.shape[1])), TOP_K)


def skewed(windows: int) -> Floats:
    """The same skewed load in every window."""
    share_LE = np.random.default_rng(3).dirichlet(np.full(EXPERTS, 1.0), LAYERS)
    return np.tile(share_LE, (windows, 1, 1))


def moving_hot_expert(windows: int) -> Floats:
    """Even but for one expert with a tenth of the choices, another one in each window."""
    share = np.full((windows, LAYERS, EXPERTS), 0.9 / (EXPERTS - 1))
    hot = np.random.default_rng(5).permuted(np.tile(np.arange(EXPERTS), (LAYERS, 1)), axis=1)
    for window in range(windows):
        share[window, np.arange(LAYERS), hot[:, window]] = 0.1
    return share


def test_stationary_skew_is_worth_it_and_a_static_plan_holds(verdict: Judge) -> None:
    found = verdict(drawn(skewed(16)))
    assert (found.answer, found.static_holds, found.net_benefit) == ("recommended", "yes", "unknown")
    assert found.static is not None
    assert found.static.seen == tuple(range(8))
    assert found.static.judged == tuple(range(8, 16))


def test_uniform_routing_is_not_worth_it(verdict: Judge) -> None:
    found = verdict(drawn(np.full((16, LAYERS, EXPERTS), 1 / EXPERTS)))
    assert (found.answer, found.static_holds) == ("not_worth_it", "unknown")


def test_a_hot_expert_that_moves_every_window_is_not_worth_it(verdict: Judge) -> None:
    windows = drawn(moving_hot_expert(16))
    linear = peak_S(windows, linear_place(EXPERTS, LAYERS, 8), 8)
    mean = windows.counts_SLE.sum(axis=(1, 2)) / 8
    assert (linear / mean > 1.5).all()  # each window is imbalanced, and yet:
    assert verdict(windows).answer == "not_worth_it"


def test_one_window_is_no_evidence(verdict: Judge) -> None:
    found = verdict(drawn(skewed(1)))
    assert (found.answer, found.static_holds, found.static) == ("insufficient_evidence", "unknown", None)
    assert "1 window:" in found.reasons[0]
    assert verdict(drawn(skewed(2))).answer == "insufficient_evidence"
    assert verdict(drawn(skewed(3))).answer == "recommended"


def test_skew_that_turns_over_is_worth_it_but_no_static_plan_holds(verdict: Judge) -> None:
    """The load of the second half has nothing to do with that of the first, but is steady within it."""
    other = np.random.default_rng(9).dirichlet(np.full(EXPERTS, 1.0), LAYERS)
    share = skewed(16)
    share[8:] = other
    found = verdict(drawn(share))
    assert (found.answer, found.static_holds) == ("recommended", "no")


def test_a_load_that_turns_late_goes_stale_though_the_mean_holds(verdict: Judge) -> None:
    """A quarter of the load changes for the last two of eight eighths: in the last a fresh placement knows of it."""
    other = np.random.default_rng(9).dirichlet(np.full(EXPERTS, 1.0), LAYERS)
    share = skewed(32)
    share[24:] = (3 * share[24:] + other) / 4
    windows = drawn(share)
    found = verdict(windows)
    assert found.static is not None
    assert found.fresh is not None
    of_fresh = dict(zip(found.fresh.judged, found.fresh.saved, strict=True))
    best = np.mean([of_fresh[window] for window in found.static.judged])
    assert found.static.mean_saved >= Criteria().kept * best
    assert (found.answer, found.static_holds, found.how) == ("recommended", "partly", "periodic")
    assert "in windows 28 to 31 it saves" in found.static_reason
    mixed = verdict(subset(windows, np.random.default_rng(0).permutation(32).tolist()))
    assert (mixed.answer, mixed.static_holds, mixed.how) == ("recommended", "yes", "static")


@pytest.mark.parametrize("seed", range(6))
def test_steady_skew_never_looks_stale(seed: int) -> None:
    found = judge(drawn(skewed(24), tokens=1024, seed=seed), TOP_K, GROUP, eplb_place(GROUP))
    assert (found.answer, found.static_holds) == ("recommended", "yes")


def test_uniform_routing_seen_too_briefly_is_no_evidence(verdict: Judge) -> None:
    even = np.full((16, LAYERS, EXPERTS), 1 / EXPERTS)
    found = verdict(drawn(even, tokens=20))
    assert found.answer == "insufficient_evidence"
    assert "too few" in found.reasons[1]


def test_loads_of_ranks_by_hand() -> None:
    counts = np.array([[[6, 4, 2, 0]], [[0, 0, 8, 4]]])
    # Rank 0: experts 0, 1; rank 1: 0, 2; rank 2: 2, 3. Experts 0 and 2 have two copies.
    placed = np.array([[0, 1, 0, 2, 2, 3]])
    loads = rank_loads(counts, placed, 3)
    assert loads[:, 0].tolist() == [[3 + 4, 3 + 1, 1 + 0], [0, 4, 4 + 4]]
    assert rank_loads(counts, np.array([[0, 1, 2, -1, 3, -1]]), 3)[0, 0].tolist() == [10, 2, 0]


def test_a_trial_by_hand() -> None:
    # Linear on two ranks: 9 against 3; with experts 0 and 3 on one rank 6 against 6; window 2 the other way round.
    counts = np.array([[[6, 3, 3, 0]], [[6, 3, 3, 0]], [[6, 0, 3, 3]]])
    windows = building.counted(counts, [0], 1)

    def place(seen: Windows) -> NDArray[np.int64]:
        assert seen.num_windows == 1
        return np.array([[0, 3, 1, 2]])

    found = trial(windows, [0], [1, 2], Ranks(2, 4), place)
    assert found.saved == pytest.approx((1 - 6 / 9, 1 - 9 / 6))
    assert found.better_part == 0.5
    assert not found.passes(Criteria())
    assert Trial((0,), (1, 2), (0.06, 0.05)).passes(Criteria())
    assert not Trial((0,), (1, 2), (0.06, 0.03)).passes(Criteria())


@pytest.mark.parametrize("place", [eplb_place(GROUP), search_place(GROUP, Workers(cores=1))])
def test_placements_fill_all_slots(place: Place) -> None:
    placed = place(drawn(skewed(2)))
    assert placed.shape == (LAYERS, 72)
    assert all(set(row.tolist()) == set(range(EXPERTS)) for row in placed)


def test_groups_that_do_not_fit() -> None:
    assert ranks_for(60, None, None) == Ranks(8, 72)  # 60 + 12: the least that divides with one spare slot a rank
    assert ranks_for(6, None, None) == Ranks(6, 12)
    assert ranks_for(16, 1, None) == Ranks(1, 16)  # the only rank holds all experts: no copies
    assert ranks_for(1, None, None) == Ranks(1, 1)
    assert ranks_for(64, 16, 0) == Ranks(16, 64)
    with pytest.raises(UsageError, match="9 ranks for 8 experts"):
        ranks_for(8, 9, None)
    with pytest.raises(UsageError, match="do not divide"):
        ranks_for(60, 8, 0)
    with pytest.raises(UsageError, match="slots per rank"):
        ranks_for(8, 8, 64)


def test_the_search_holds_better_than_eplb_on_windows_not_seen() -> None:
    """EPLB sees the sum of the windows; where their skew differs, that is not what the fullest rank is made of."""
    share = np.random.default_rng(11).dirichlet(np.full(EXPERTS, 1.0), (2, LAYERS))
    windows = drawn(share[np.arange(16) % 2])  # two kinds of windows by turns
    first, last = range(8), range(8, 16)
    own = trial(windows, first, last, GROUP, search_place(GROUP, Workers(cores=1)))
    assert own.mean_saved > trial(windows, first, last, GROUP, eplb_place(GROUP)).mean_saved + 0.02


def test_how_often_to_place_anew(verdict: Judge) -> None:
    """Once where the load stays; again and again where it turns into another half-way."""
    stays = verdict(drawn(skewed(16)))
    assert (stays.how, stays.every) == ("static", None)
    other = np.roll(skewed(32), 17, axis=2)
    turns = verdict(drawn(np.concatenate([skewed(32)[:16], other[16:]])))
    assert (turns.answer, turns.how) == ("recommended", "periodic")
    assert [(schedule.eighths, schedule.windows) for schedule in turns.schedules] == [(1, 4), (2, 8), (4, 16)]
    assert turns.every == turns.schedules[-1]  # placing anew every 16 windows meets the turn
    moves = verdict(drawn(moving_hot_expert(16)))
    assert (moves.how, moves.every) == ("none", None)


def test_a_schedule_places_from_the_eighth_just_passed() -> None:
    """Counted by hand: which windows each placement has seen."""
    seen: list[tuple[str, ...]] = []

    def place(windows: Windows) -> NDArray[np.int64]:
        seen.append(windows.names_S)
        return linear_place(EXPERTS, LAYERS, GROUP.ranks)

    found = judge(drawn(skewed(16)), TOP_K, GROUP, place)
    halves, eighths = seen[0], seen[1:]
    assert halves == tuple(f"window {number}" for number in range(8))
    assert eighths == [(f"window {2 * n}", f"window {2 * n + 1}") for n in range(7)]
    assert all(schedule.trial.judged == tuple(range(2, 16)) for schedule in found.schedules)
    assert all(schedule.trial.mean_saved == 0 for schedule in found.schedules)
