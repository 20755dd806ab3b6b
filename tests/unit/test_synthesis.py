"""Synthetic traces show the figures that were stated, or those of the trace that they were fitted to."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from planner.errors import UsageError
from planner.review.describe import Description, describe
from planner.trace.aggregate import count_by
from planner.trace.domains import domains_of
from planner.trace.native import read_trace
from planner.trace.synthesis.fitted import routing_like
from planner.trace.synthesis.routing import bounded, by_topic, draw, write_trace
from planner.trace.synthesis.stated import STRETCHES, TOPICS, Stated, routing_of
from planner.trace.trace import TokenTrace
from tests.building import EXAMPLES

Floats = NDArray[np.float64]


def test_probabilities_with_a_ceiling_by_hand() -> None:
    # 8 : 1 : 1 : 2 for two choices: the first would pass 1, so the others share the second choice.
    assert bounded(np.array([8.0, 1, 1, 2]), 2) == pytest.approx([1, 0.25, 0.25, 0.5])
    # 8 : 7 : 1 for two: after the first is held, the second passes 1 as well.
    assert bounded(np.array([80.0, 7, 1]), 2) == pytest.approx([1, 7 / 8, 1 / 8])
    assert bounded(np.ones(4), 4) == pytest.approx([1, 1, 1, 1])


def test_drawn_experts_are_different_and_as_frequent_as_told() -> None:
    rng = np.random.default_rng(2)
    chance = bounded(rng.lognormal(0, 1, 20), 5)
    drawn = draw(chance, 40_000, 5, rng)
    assert (np.diff(np.sort(drawn, axis=1), axis=1) > 0).all()
    seen = np.bincount(drawn.reshape(-1), minlength=20) / 40_000
    deviation = np.sqrt(chance * (1 - chance) / 40_000)
    assert (np.abs(seen - chance) < 5 * deviation + 1e-9).all()


@pytest.mark.parametrize("choices", [0.0, 0.3, 1.0, 2.6])
def test_mean_choices_need_not_be_a_whole_number(choices: float) -> None:
    """Each token gets the whole number below or above, and every expert still its own probability."""
    rng = np.random.default_rng(4)
    chance = bounded(rng.lognormal(0, 1, 20), choices)
    assert chance.sum() == pytest.approx(choices)
    drawn = draw(chance, 40_000, choices, rng)
    assert drawn.shape == (40_000, np.ceil(choices))
    number_T = (drawn >= 0).sum(axis=1)
    assert set(number_T.tolist()) == {int(np.floor(choices)), int(np.ceil(choices))}
    ordered = np.sort(drawn, axis=1)
    assert (np.diff(ordered, axis=1) > 0).all()
    seen = np.bincount(drawn[drawn >= 0], minlength=20) / 40_000
    deviation = np.sqrt(chance * (1 - chance) / 40_000)
    assert (np.abs(seen - chance) < 5 * deviation + 1e-9).all()


def test_topics_tilt_but_keep_the_load() -> None:
    rng = np.random.default_rng(3)
    load = bounded(rng.lognormal(0, 0.7, (2, 24)), 4)
    tilt = rng.lognormal(0, 0.5, (3, 2, 24))
    weight = np.array([0.5, 0.3, 0.2])
    chance = by_topic(load, tilt, weight, 4)
    assert np.einsum("z,zle->le", weight, chance) == pytest.approx(load, rel=1e-3)
    assert chance.sum(axis=2) == pytest.approx(4)
    assert chance.max() <= 1


def written(stated: Stated, folder: Path, name: str = "trace.npz") -> TokenTrace:
    write_trace(routing_of(stated), folder / name, stated.seed)
    trace = read_trace(folder / name).trace
    assert isinstance(trace, TokenTrace)
    return trace


def domain_shares(trace: TokenTrace) -> Floats:
    domains = domains_of(trace)
    assert domains is not None
    counts = count_by(trace, domains.number_T, len(domains.names)).astype(float)
    shares: Floats = counts / counts.sum(axis=2, keepdims=True)
    return shares


PLAIN = Stated(experts=32, top_k=4, layers=4, tokens=120_000, domains=2, lift=1.0)


@pytest.mark.parametrize("skew", [1.0, 2.0, 5.0])
def test_skew_is_as_stated(skew: float, tmp_path: Path) -> None:
    trace = written(replace(PLAIN, skew=skew, tokens=240_000), tmp_path)
    hottest = domain_shares(trace).max(axis=2) * 32
    # The largest of 32 counts of 15,000 each lies some per mille above its share by chance.
    assert hottest.mean() == pytest.approx(skew, rel=0.02)


@pytest.mark.parametrize("correlation", [0.3, 0.9])
def test_domains_are_as_alike_as_stated(correlation: float, tmp_path: Path) -> None:
    stated = replace(PLAIN, experts=128, layers=6, tokens=60_000, domains=4, domain_correlation=correlation, skew=4.0)
    logs = np.log(domain_shares(written(stated, tmp_path)))
    pairs = [
        np.corrcoef(logs[a, layer], logs[b, layer])[0, 1] for a, b in combinations(range(4), 2) for layer in range(6)
    ]
    assert np.mean(pairs) == pytest.approx(correlation, abs=0.05)


@pytest.mark.parametrize("drift", [0.0, 0.8])
def test_loads_drift_as_stated(drift: float, tmp_path: Path) -> None:
    stated = replace(PLAIN, experts=128, layers=6, domains=1, drift=drift, length=250)
    trace = written(stated, tmp_path)
    part_T = (np.arange(120_000) * STRETCHES // 120_000).astype(np.int32)
    logs = np.log(count_by(trace, part_T, STRETCHES) + 1.0)
    pairs = [np.corrcoef(logs[at, row], logs[at + 1, row])[0, 1] for at in range(STRETCHES - 1) for row in range(6)]
    assert np.mean(pairs) == pytest.approx(drift, abs=0.05)


def test_partners_meet_as_often_as_stated(tmp_path: Path) -> None:
    stated = replace(PLAIN, experts=64, domains=1, skew=2.0, lift=3.0, tokens=60_000)
    routing = routing_of(stated)
    home_LE = routing.tilt_ZLE.argmax(axis=0)
    ids = written(stated, tmp_path).source.whole("expert_ids")
    marks = np.zeros((60_000, 65), dtype=np.float32)
    lifts: list[float] = []
    for row in range(4):
        marks[:] = 0
        np.put_along_axis(marks, ids[:, row].astype(np.int64), 1, axis=1)
        together, popular = marks[:, :64].T @ marks[:, :64], marks[:, :64].mean(axis=0)
        expected = np.outer(popular, popular) * 60_000
        pair = ~np.eye(64, dtype=bool)
        alike = (home_LE[row][:, None] == home_LE[row]) & pair
        # Tokens choose four different experts: pairs are rarer than independence has them by this factor.
        rarer = together[pair].sum() / expected[pair].sum()
        lifts.append(together[alike].sum() / expected[alike].sum() / rarer)
    assert np.mean(lifts) == pytest.approx(3.0, rel=0.03)
    assert len(np.unique(home_LE)) == TOPICS


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    small = replace(PLAIN, tokens=2000)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        written(replace(small, seed=seed), tmp_path, name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()


@pytest.mark.parametrize(("experts", "top_k"), [(1, 1), (2, 1), (3, 3), (8, 2)])
def test_very_few_experts(experts: int, top_k: int, tmp_path: Path) -> None:
    """Without partners any number of experts will do: one alone is chosen by every token."""
    few = replace(PLAIN, experts=experts, top_k=top_k, skew=1.0, tokens=2000)
    ids = written(few, tmp_path).source.whole("expert_ids")
    assert (np.diff(np.sort(ids, axis=2), axis=2) > 0).all()
    assert np.unique(ids).tolist() == list(range(experts))


def test_figures_that_cannot_be() -> None:
    for wrong, message in (
        ({"skew": 9.0}, "skew 9 cannot be"),
        ({"skew": 0.5}, "skew 0.5 cannot be"),
        ({"lift": 12.0}, "lift 12 cannot be"),
        ({"lift": 2.0, "experts": 8, "top_k": 2}, "partners need some experts"),
        ({"top_k": 33}, "top-33 of 32"),
    ):
        with pytest.raises(UsageError, match=message):
            routing_of(replace(PLAIN, **wrong))


def told(path: Path) -> Description:
    return describe([path], phase="decode", step_tokens=1024, node_counts=[4])


def test_a_fitted_trace_shows_what_the_recorded_one_does(tmp_path: Path) -> None:
    """The recorded example has drift and eleven domains; only the affinity between layers is weakened by the fit."""
    recorded = EXAMPLES / "tiny-moe" / "trace.npz"
    write_trace(routing_like(read_trace(recorded).trace), tmp_path / "like.npz", 0)
    real, like = told(recorded), told(tmp_path / "like.npz")
    assert (like.tokens, like.sequences, like.top_k) == (real.tokens, real.sequences, real.top_k)
    gains = [np.mean(one.verdict.static.saved) for one in (real, like) if one.verdict.static is not None]
    assert gains[0] == pytest.approx(gains[1], abs=0.04)  # near 5 %, where the verdict turns
    assert np.mean(like.layer_imbalance) == pytest.approx(np.mean(real.layer_imbalance), rel=0.02)
    assert like.share_LE == pytest.approx(real.share_LE, abs=0.003)
    assert real.drift is not None
    assert like.drift is not None
    assert like.drift.halves_distance == pytest.approx(real.drift.halves_distance, rel=0.1)
    assert real.domains is not None
    assert like.domains is not None
    assert like.domains.names == real.domains.names
    assert like.domains.tokens == real.domains.tokens
    assert like.domains.mean_distance == pytest.approx(real.domains.mean_distance, rel=0.1)
    mass = [np.mean([layer.top_successors_mass for layer in found.successors]) for found in (real, like)]
    chance = np.mean([layer.chance_mass for layer in real.successors])
    assert mass[1] - chance > 0.4 * (mass[0] - chance)


def test_counts_are_not_fitted(tmp_path: Path) -> None:
    np.savez(tmp_path / "counts.npz", counts=np.ones((2, 1, 4), dtype=int), num_experts=4, topk=2)
    with pytest.raises(UsageError, match="holds counts only"):
        routing_like(read_trace(tmp_path / "counts.npz").trace)


def test_choices_of_no_expert_stay_as_many(tmp_path: Path) -> None:
    """In each domain and layer as many choices as recorded; what every token chooses is still chosen by all."""
    rng = np.random.default_rng(0)
    ids = rng.random((8192, 3, 15)).argsort(axis=2)[:, :, :4]
    domain_T = np.arange(8192) // 64 % 2
    left_out = rng.random(ids.shape) < np.where(domain_T == 1, 0.75, 0.5)[:, None, None]
    left_out[:, 2] = False
    ids[left_out] = -1
    ids[:, 0, 0] = 15
    np.savez(tmp_path / "some.npz", expert_ids=ids, num_experts=16, seq_id=np.arange(8192) // 64, domain_id=domain_T)
    trace = read_trace(tmp_path / "some.npz").trace
    write_trace(routing_like(trace), tmp_path / "like.npz", 0)
    like = read_trace(tmp_path / "like.npz").trace
    assert isinstance(trace, TokenTrace)
    assert isinstance(like, TokenTrace)
    parts = domain_T.astype(np.int32)
    counts, drawn = (count_by(one, parts, 2) / 4096 for one in (trace, like))
    assert drawn.sum(axis=2) == pytest.approx(counts.sum(axis=2), abs=0.03)
    assert drawn[:, 0, 15].min() > 0.99
    assert drawn == pytest.approx(counts, abs=0.03)
    assert (like.source.whole("expert_ids")[:, 2] >= 0).all()


def test_no_expert_stays_rare_and_bare_traces_are_fitted(tmp_path: Path) -> None:
    """Choices of no expert, no sequences, no domains: the fit does without them."""
    ids = np.random.default_rng(0).integers(0, 3, (200, 2, 1))
    ids[::50] = -1
    np.savez(tmp_path / "bare.npz", expert_ids=ids, num_experts=4)
    routing = routing_like(read_trace(tmp_path / "bare.npz").trace)
    assert routing.domain_names == ("all",)
    assert routing.length_S.tolist() == [200]
    assert write_trace(routing, tmp_path / "like.npz", 0) == 200
    with np.load(tmp_path / "like.npz") as like:
        assert (like["expert_ids"] == 3).mean() < 0.02
