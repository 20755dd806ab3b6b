"""Drift, domains and affinity of traces, against hand arithmetic and plain Python."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from planner.errors import InputError
from planner.trace.affinity import (
    chosen_NE,
    co_activation,
    distinct_units,
    distinct_units_by_chance,
    next_layer,
)
from planner.trace.aggregate import counts_of, pairs_of
from planner.trace.domains import domain_loads, domains_of
from planner.trace.drift import correlation, distance, drift_of
from planner.trace.native import read_trace
from planner.trace.trace import TokenTrace
from planner.trace.windows import TokenSets
from tests import building


def test_distance_is_the_part_that_moves() -> None:
    assert distance(np.array([0.5, 0.5, 0]), np.array([0.25, 0.5, 0.25])) == 0.25
    assert distance(np.array([1.0, 0]), np.array([0, 1.0])) == 1


def test_correlation_as_numpy_has_it() -> None:
    rng = np.random.default_rng(1)
    one, other = rng.random((5, 7)), rng.random((5, 7))
    assert correlation(one, other) == pytest.approx([np.corrcoef(a, b)[0, 1] for a, b in zip(one, other, strict=True)])
    assert correlation(np.ones(4), np.arange(4.0)) == 1  # an even load differs in no direction


def test_drift_by_hand() -> None:
    # Four windows of one layer: expert 0 is hot in the first two, expert 3 in the last two.
    counts = np.array([[[7, 1, 1, 1]], [[7, 1, 1, 1]], [[1, 1, 1, 7]], [[1, 1, 1, 7]]])
    drift = drift_of(building.counted(counts, [0], top_k=1))
    assert drift is not None
    assert drift.halves_distance == pytest.approx(0.6)  # 0.7 against 0.1
    assert drift.chance_distance == pytest.approx(0)  # even and odd windows hold the same
    assert drift.moved == pytest.approx(0.6)
    assert drift.hot_kept == pytest.approx(2 / 3)  # of three steps from window to window one changes
    # (7,1,1,1) against (1,1,1,7): deviations (4.5,-1.5,-1.5,-1.5) and reversed; product -9 over 27.
    assert drift.halves_correlation == pytest.approx(-1 / 3)
    assert drift.lag_correlation == pytest.approx({1: (1 - 1 / 3 + 1) / 3, 2: -1 / 3})
    assert drift_of(building.counted(counts[:1], [0], top_k=1)) is None


def sets_of(experts_NLK: list[list[list[int]]]) -> TokenSets:
    experts = np.array(experts_NLK, dtype=np.int32)
    return TokenSets(np.zeros(len(experts), dtype=np.int32), experts)


def counted(experts_NLK: list[list[list[int]]], num_experts: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs and popularity."""
    ids = np.array(experts_NLK)
    return pairs_of(ids, num_experts), counts_of(ids, np.zeros(len(ids), dtype=int), 1, num_experts)[0]


def test_choices_as_marks() -> None:
    marks = chosen_NE(np.array([[0, 2], [1, -1]], dtype=np.int32), 3)
    assert marks.tolist() == [[1, 0, 1], [0, 1, 0]]


def test_experts_that_always_come_together() -> None:
    """Eight experts in four fixed pairs, all alike: 4 of 28 possible pairs hold everything."""
    tokens = [[[2 * (token % 4), 2 * (token % 4) + 1]] for token in range(400)]
    (pairs,) = co_activation(*counted(tokens, 8))
    # Popularity alone: each of 28 pairs as often, so a lift of 7 for those four and 0 for the others.
    assert pairs.median_lift == 0
    assert pairs.p99_lift == pytest.approx(7)
    assert pairs.top_pairs_mass == pytest.approx(3 / 4)  # a tenth of 28 pairs is 3
    assert pairs.chance_mass == pytest.approx(3 / 28)


def test_lift_against_plain_counting() -> None:
    rng = np.random.default_rng(4)
    chosen = np.array([rng.choice(6, 3, replace=False, p=[0.4, 0.2, 0.1, 0.1, 0.1, 0.1]) for _ in range(900)])
    (pairs,) = co_activation(*counted(chosen[:, None].tolist(), 6))
    often = {pair: sum({*pair} <= set(token) for token in chosen.tolist()) for pair in combinations(range(6), 2)}
    popular = [int((chosen == expert).sum()) for expert in range(6)]
    expected = {(a, b): popular[a] * popular[b] for a, b in often}
    scale = sum(often.values()) / sum(expected.values())
    lifts = [often[pair] / (expected[pair] * scale) for pair in often]
    assert pairs.median_lift == pytest.approx(float(np.median(lifts)))
    assert pairs.top_pairs_mass == pytest.approx(sum(sorted(often.values())[-2:]) / sum(often.values()))


def test_a_next_layer_that_is_decided_by_this_one() -> None:
    """Expert e is always followed by expert e + 1 of ten: two of ten hold everything; by chance two tenths."""
    rng = np.random.default_rng(0)
    first = rng.integers(0, 10, 4000)
    tokens = np.stack([first, (first + 1) % 10], axis=1)[..., None]
    (found,) = next_layer(sets_of(tokens.tolist()), 10)
    assert found.top_successors_mass == 1
    assert found.chance_mass == pytest.approx(0.2, abs=0.05)


def test_distinct_nodes_by_hand_and_by_chance() -> None:
    node_E = np.array([0, 0, 1, 1])
    tokens = [[[0, 1], [0, 2]], [[2, 3], [1, 3]], [[0, 3], [1, -1]]]
    assert distinct_units(sets_of(tokens), node_E) == pytest.approx([(1 + 1 + 2) / 3, (2 + 2 + 1) / 3])
    pairs = list(combinations(range(4), 2))
    expected = sum(len({node_E[a], node_E[b]}) for a, b in pairs) / len(pairs)
    assert distinct_units_by_chance(node_E, 2) == pytest.approx(expected)
    # Published: top-8 of 256 experts touch 5.30, 6.52, 7.27, 7.67 of 8, 16, 32, 64 ranks.
    for ranks, published in ((8, 5.30), (16, 6.52), (32, 7.27), (64, 7.67)):
        assert distinct_units_by_chance(np.arange(256) * ranks // 256, 8) == pytest.approx(published, abs=0.006)


def traced(folder: Path, **arrays: object) -> TokenTrace:
    np.savez(folder / "trace.npz", **{name: np.asarray(values) for name, values in arrays.items()})  # type: ignore[arg-type]
    trace = read_trace(folder / "trace.npz").trace
    assert isinstance(trace, TokenTrace)
    return trace


def test_domains_by_hand(tmp_path: Path) -> None:
    ids = [[[0]], [[0]], [[1]], [[1]], [[1]], [[1]]]
    trace = traced(tmp_path, expert_ids=ids, num_experts=2, domain_id=[0, 0, 0, 0, 5, 5], domain_names=["one", "two"])
    domains = domains_of(trace)
    assert domains is not None
    assert domains.names == ("one", "domain 5")  # no name for 5
    loads = domain_loads(trace, domains)
    assert loads is not None
    assert loads.tokens == (4, 2)
    assert list(loads.max_over_mean) == [1, 2]
    assert loads.farthest == ("one", "domain 5", 0.5)
    assert loads.mean_distance == 0.5


def test_traces_without_domains_and_with_wrong_ones(tmp_path: Path) -> None:
    ids = np.zeros((4, 1, 1), dtype=int)
    nameless = domains_of(traced(tmp_path, expert_ids=ids, num_experts=2))
    assert nameless is None
    single = traced(tmp_path, expert_ids=ids, num_experts=2, domain_id=[3, 3, 3, 3])
    alone = domains_of(single)
    assert alone is not None
    assert domain_loads(single, alone) is None
    with pytest.raises(InputError, match="domain_id"):
        domains_of(traced(tmp_path, expert_ids=ids, num_experts=2, domain_id=[1, 2]))
