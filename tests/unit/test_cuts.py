"""Pipeline cuts by dynamic programming against every way to cut."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np

from planner.inputs.engines import load_engine
from planner.rules import Limits
from planner.rules.cuts import StageLimits, best_cuts, cuts_of_least_memory, even_layers, least_memory_excess
from planner.rules.grid import SearchSpace
from planner.solve.candidates import Bounder, all_candidates
from tests import building

SEEDS = range(150)


def random_limits(seed: int) -> StageLimits:
    """One to four stages that differ in speed, extra work and memory; sometimes nothing fits."""
    rng = np.random.default_rng(seed)
    layers = int(rng.integers(1, 9))
    stages = int(rng.integers(1, min(4, layers) + 1))
    layer_bytes = rng.integers(1, 20, (stages, layers))
    room = layer_bytes.sum() / stages**2 * rng.uniform(0.8, 2.5)
    return StageLimits(
        layer_s_KL=rng.integers(1, 50, (stages, layers)).astype(float),
        extra_s_K=rng.integers(0, 30, stages).astype(float),
        layer_bytes_KQL=layer_bytes[:, None],
        base_bytes_K=rng.integers(0, 6, stages),
        capacity_KQ=rng.integers(max(1, int(room * 0.7)), int(room * 1.3) + 6, stages)[:, None],
    )


def all_cuts(limits: StageLimits) -> list[list[range]]:
    """Every way to cut the layers into stages of at least one layer each."""
    stages, layers = limits.layer_s_KL.shape
    return [
        [range(first, end) for first, end in pairwise([0, *inner, layers])]
        for inner in combinations(range(1, layers), stages - 1)
    ]


def seconds(limits: StageLimits, cuts: list[range]) -> list[float]:
    """Seconds of each stage."""
    rows, extra = limits.layer_s_KL.tolist(), limits.extra_s_K.tolist()
    return [extra[k] + sum(rows[k][layer] for layer in layers) for k, layers in enumerate(cuts)]


def excess(limits: StageLimits, cuts: list[range]) -> list[int]:
    """Bytes of each stage above its capacity."""
    rows, base, capacity = (
        limits.layer_bytes_KQL[:, 0].tolist(),
        limits.base_bytes_K.tolist(),
        limits.capacity_KQ[:, 0].tolist(),
    )
    return [base[k] + sum(rows[k][layer] for layer in layers) - capacity[k] for k, layers in enumerate(cuts)]


def test_best_cuts_equal_enumeration() -> None:
    solved = 0
    for seed in SEEDS:
        limits = random_limits(seed)
        fitting = [cuts for cuts in all_cuts(limits) if max(excess(limits, cuts)) <= 0]
        found = best_cuts(limits)
        if not fitting:
            assert found is None, seed
            continue
        assert found is not None, seed
        solved += 1
        assert found.slowest_s == min(max(seconds(limits, cuts)) for cuts in fitting), seed
        assert found.least_sum_s == min(sum(seconds(limits, cuts)) for cuts in fitting), seed
        assert list(found.cuts) in fitting, seed
        assert max(seconds(limits, list(found.cuts))) == found.slowest_s, seed
    assert 30 < solved < len(SEEDS) - 30  # both kinds of instances are there


def test_least_memory_equals_enumeration() -> None:
    for seed in SEEDS:
        limits = random_limits(seed)
        least = min(max(excess(limits, cuts)) for cuts in all_cuts(limits))
        cuts = list(cuts_of_least_memory(limits))
        assert cuts in all_cuts(limits), seed
        assert max(excess(limits, cuts)) == least, seed
        over, stage, _ = least_memory_excess(limits)
        assert (over, excess(limits, cuts)[stage]) == (least, least), seed


def test_equal_layers_are_cut_evenly() -> None:
    limits = StageLimits(np.ones((4, 8)), np.zeros(4), np.ones((4, 1, 8), int), np.zeros(4, int), np.full((4, 1), 100))
    found = best_cuts(limits)
    assert found is not None
    assert [len(layers) for layers in found.cuts] == [2, 2, 2, 2]


def test_a_stage_that_is_full_gets_fewer_layers() -> None:
    # Six layers of 1 s and 1 B on two stages of 6 B; the first holds 4 B besides, so 2 layers fit.
    one, room = np.ones((2, 6)), np.array([6, 6])
    found = best_cuts(StageLimits(one, np.zeros(2), one[:, None].astype(int), np.array([4, 0]), room[:, None]))
    assert found is not None
    assert ([len(layers) for layers in found.cuts], found.slowest_s) == ([2, 4], 4)
    free = best_cuts(StageLimits(one, np.zeros(2), one[:, None].astype(int), np.array([0, 0]), room[:, None]))
    assert free is not None
    assert ([len(layers) for layers in free.cuts], free.slowest_s) == ([3, 3], 3)


def test_more_stages_than_layers_do_not_fit() -> None:
    limits = StageLimits(np.ones((3, 2)), np.zeros(3), np.ones((3, 1, 2), int), np.zeros(3, int), np.full((3, 1), 100))
    assert best_cuts(limits) is None


def test_an_engine_may_leave_no_choice() -> None:
    """TensorRT-LLM: 11 layers on 3 stages are 4, 4 and 3, however slow or full these are."""
    assert even_layers(11, 3) == (4, 4, 3)
    fitted = 0
    for seed in SEEDS:
        free = random_limits(seed)
        stages, layers = free.layer_s_KL.shape
        fixed = replace(free, layers_K=even_layers(layers, stages))
        ends = np.cumsum([0, *even_layers(layers, stages)]).tolist()
        only = [range(first, end) for first, end in pairwise(ends)]
        assert list(cuts_of_least_memory(fixed)) == only
        found = best_cuts(fixed)
        assert (found is None) == (max(excess(free, only)) > 0)
        if found is not None:
            fitted += 1
            assert list(found.cuts) == only
            assert found.slowest_s == max(seconds(free, only))
            assert found.least_sum_s == sum(seconds(free, only))
    assert 20 < fitted < len(SEEDS)


def test_plans_for_tensorrt_llm_have_even_stages() -> None:
    """The dense layers first would make the first stage longer."""
    rules = load_engine("tensorrt-llm").rules.model_copy(update={"attention": "any"})
    of = building.model(layers=4, dense_layers=4)
    made = building.instance(of, building.topology(2, 2), phase="prefill", tokens=2048)
    sizes = {}
    for name, these in (("free", building.FREE), ("tensorrt-llm", rules)):
        space = SearchSpace(Limits(these, name, keep_groups=False), {"pp": 2, "tp": 1, "ep": 2}, 0)
        candidate = all_candidates(made, space, Bounder(made))[0]
        assert candidate.is_feasible
        sizes[name] = [len(cut) for cut in candidate.cuts]
    assert sizes["tensorrt-llm"] == [4, 4]
    assert sizes["free"] == [5, 3]
