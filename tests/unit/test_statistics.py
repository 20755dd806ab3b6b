"""Skew of routing and its noise floor, against plain Python and simulation."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.trace.statistics import gini, layer_statistics, noise_floor
from tests import building


def plain_gini(loads: list[int]) -> float:
    """Mean absolute difference of all pairs over twice the mean."""
    differences = sum(abs(one - other) for one in loads for other in loads)
    return differences / (2 * len(loads) * sum(loads))


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=40).filter(any))
def test_gini_is_the_mean_difference_of_pairs(loads: list[int]) -> None:
    assert gini(np.array(loads, dtype=float)) == pytest.approx(plain_gini(loads), abs=1e-12)


def test_gini_at_its_ends() -> None:
    assert gini(np.full(8, 5.0)) == 0
    assert gini(np.array([0.0, 0, 0, 9])) == pytest.approx(3 / 4)  # (n - 1) / n
    assert gini(np.zeros(4)) == 0


def simulated_floor(tokens: int, experts: int, top_k: int, ranks: int, rounds: int) -> float:
    """Max/mean of ranks when every token draws top_k different experts, all alike; plain Python."""
    rng = random.Random(5)
    total = 0.0
    for _ in range(rounds):
        rows = [0] * ranks
        for _ in range(tokens):
            for expert in rng.sample(range(experts), top_k):
                rows[expert * ranks // experts] += 1
        total += max(rows) * ranks / (tokens * top_k)
    return total / rounds


@pytest.mark.parametrize(
    ("tokens", "experts", "top_k", "ranks"), [(200, 32, 4, 8), (100, 8, 2, 4), (300, 16, 8, 16), (150, 16, 1, 2)]
)
def test_noise_floor_is_what_uniform_routing_shows(tokens: int, experts: int, top_k: int, ranks: int) -> None:
    seen = simulated_floor(tokens, experts, top_k, ranks, 1600 // ranks)
    # The excess over 1 agrees within some per cent of itself: the law, and chance.
    assert noise_floor(tokens, experts, top_k, ranks) - 1 == pytest.approx(seen - 1, rel=0.12)


def test_noise_floor_of_two_ranks_by_hand() -> None:
    # 100 tokens, top-1, all alike: the rows of one rank are binomial with mean 50 and deviation 5, the
    # other has the rest, so the larger is 50 + |deviation|: on average 50 + 5 * sqrt(2 / pi).
    expected = 1 + 5 * math.sqrt(2 / math.pi) / 50
    assert noise_floor(100, 16, 1, 2) - 1 == pytest.approx(expected - 1, rel=0.07)


def test_noise_floor_without_chance() -> None:
    assert noise_floor(100, 8, 2, 1) == 1  # one rank takes everything
    assert noise_floor(100, 8, 8, 4) == 1  # every token chooses every expert


def test_noise_floor_falls_with_the_root_of_the_tokens() -> None:
    few, many = noise_floor(100, 64, 8, 8) - 1, noise_floor(10_000, 64, 8, 8) - 1
    assert few / many == pytest.approx(10)


def test_statistics_of_layers_by_hand() -> None:
    counts = np.array([[[6, 2, 0, 0], [2, 2, 2, 2]], [[4, 0, 4, 0], [2, 2, 2, 2]]])
    skewed, even = layer_statistics(building.counted(counts, [3, 5], top_k=2))
    # Window 0: 6 over a mean of 2; window 1: 4 over 2.
    assert (skewed.layer, skewed.max_over_mean, skewed.never_chosen) == (3, (3 + 2) / 2, 1)
    # Together 10, 2, 4, 0 of 16.
    assert (skewed.hottest, skewed.hottest_share) == ((0, 2, 1, 3), 10 / 16)
    assert skewed.pooled_max_over_mean == 10 / 4
    assert skewed.pooled_gini == pytest.approx(plain_gini([10, 2, 4, 0]))
    assert skewed.gini == pytest.approx((plain_gini([6, 2, 0, 0]) + plain_gini([4, 0, 4, 0])) / 2)
    assert (even.layer, even.max_over_mean, even.gini, even.never_chosen) == (5, 1, 0, 0)
