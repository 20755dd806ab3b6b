"""The reference placements: EPLB as published, linear and round robin for any number of slots."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from planner.baselines import duplicates, eplb_layer, pack_evenly, place, placements, replicate, round_robin, score
from planner.cost.step import split_cost
from planner.plan.placement import Placement, linear, slots_of_ranks
from planner.plan.split import Split
from tests import building

Ints = NDArray[np.int64]

# The example of deepseek-ai/EPLB's README: two layers, 12 experts, 16 slots, 4 groups, 2 nodes, 8
# GPUs; the placement it prints; and the load of the fullest GPU under it.
README_WEIGHTS = [
    [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
    [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
]
README_PRINTED = [
    [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
    [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
]
README_FULLEST = [156.0, 179.5]


def fullest(weights: list[int], slots: list[int], ranks: int) -> float:
    """Load of the fullest rank if copies share evenly; plain Python."""
    per_rank = len(slots) // ranks
    loads = [
        sum(weights[expert] / slots.count(expert) for expert in slots[rank * per_rank : (rank + 1) * per_rank])
        for rank in range(ranks)
    ]
    return max(loads)


@pytest.mark.parametrize("layer", [0, 1])
def test_eplb_gives_what_its_readme_prints(layer: int) -> None:
    weights = np.array(README_WEIGHTS[layer], dtype=float)
    placed = eplb_layer(weights, num_slots=16, num_groups=4, num_nodes=2, num_ranks=8).tolist()
    assert placed == README_PRINTED[layer]
    assert fullest(README_WEIGHTS[layer], placed, 8) == README_FULLEST[layer]


def test_eplb_is_global_where_groups_do_not_divide_over_nodes() -> None:
    weights = np.array(README_WEIGHTS[0], dtype=float)
    assert eplb_layer(weights, 16, 4, 3, 8).tolist() == eplb_layer(weights, 16, 1, 1, 8).tolist()
    assert eplb_layer(weights, 16, 4, 3, 8).tolist() != README_PRINTED[0]


def test_eplb_of_an_idle_layer_copies_the_first_expert() -> None:
    # A known weakness of the original: with no load every redundant copy goes to expert 0.
    assert replicate(np.zeros(4), 7).tolist() == [0, 1, 2, 3, 0, 0, 0]


def test_spare_slots_go_to_the_most_load_per_copy() -> None:
    # 9, 4, 1: 9 -> 4.5 each, then 9/2 = 4.5 > 4 -> 3 each, then 4 -> 2 each.
    assert replicate(np.array([9.0, 4, 1]), 6).tolist() == [0, 1, 2, 0, 0, 1]


def test_packing_puts_the_heaviest_item_into_the_lightest_bin_with_room() -> None:
    # 8 -> a, 7 -> b, 6 -> b (7 < 8), 5 -> a: b is full after two items.
    assert [items.tolist() for items in pack_evenly(np.array([5.0, 8, 6, 7]), 2)] == [[1, 0], [3, 2]]


@given(
    st.integers(1, 12).flatmap(lambda ranks: st.tuples(st.just(ranks), st.integers(1, 20), st.integers(0, 40))),
)
def test_even_and_uneven_slots_hold_every_expert_and_none_twice(sizes: tuple[int, int, int]) -> None:
    ranks, experts, redundant = sizes
    slots_R = slots_of_ranks(experts + redundant, ranks)
    assert slots_R.sum() == experts + redundant
    assert slots_R.max() - slots_R.min() <= 1
    assert sorted(slots_R.tolist(), reverse=True) == slots_R.tolist()
    assume(slots_R.min() > 0 and slots_R.max() <= experts)  # else refused by the rules of splits
    for layout in (linear(experts, slots_R), round_robin(experts, slots_R)):
        by_rank = [[e for e in rank if e >= 0] for rank in layout.reshape(ranks, -1).tolist()]
        assert [len(held) for held in by_rank] == slots_R.tolist()
        assert all(len(set(held)) == len(held) for held in by_rank)
        assert set().union(*by_rank) == set(range(experts))
        assert all(held == sorted(held) for held in by_rank)


@given(
    experts=st.integers(1, 6),
    groups=st.integers(1, 4),
    nodes=st.integers(1, 4),
    gpus=st.integers(1, 3),
    more=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_eplb_places_every_expert_in_equal_slots(
    experts: int, groups: int, nodes: int, gpus: int, more: int, seed: int
) -> None:
    total, ranks = experts * groups, nodes * gpus
    slots = (-(-total // ranks) + more) * ranks
    weights = np.random.default_rng(seed).random(total)
    placed = eplb_layer(weights, slots, groups, nodes, ranks)
    assert len(placed) == slots
    assert set(placed.tolist()) == set(range(total))


def test_linear_and_round_robin_as_engines_lay_them_out() -> None:
    # vLLM: without EPLB the first E mod R ranks hold one more.
    assert linear(8, slots_of_ranks(8, 3)).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, -1]
    assert linear(4, slots_of_ranks(6, 2)).tolist() == [0, 1, 2, 0, 1, 3]
    # vLLM's round_robin: expert i on rank i mod R.
    assert round_robin(8, slots_of_ranks(8, 3)).tolist() == [0, 3, 6, 1, 4, 7, 2, 5, -1]
    assert round_robin(4, slots_of_ranks(6, 2)).tolist() == [0, 1, 2, 0, 1, 3]


def test_baselines_that_do_not_apply() -> None:
    weights = np.ones((1, 8))
    uneven, even = slots_of_ranks(8, 3), slots_of_ranks(8, 4)
    assert place("eplb", weights, uneven, num_groups=1, num_nodes=1) is None
    assert place("eplb_hierarchical", weights, even, num_groups=3, num_nodes=1) is None
    assert place("eplb", weights, even, num_groups=3, num_nodes=3) is None
    assert place("linear", weights, uneven, num_groups=1, num_nodes=1) is not None


def test_an_expert_twice_on_a_rank_is_counted() -> None:
    rows = np.array([[0, 0, 1, 2], [0, 1, 2, 0], [1, 1, 2, 2]])
    assert duplicates(Placement((0, 1, 2), 2, rows)) == 1 + 0 + 2
    assert duplicates(Placement((0,), 2, np.array([[0, -1, 1, -1]]))) == 0
    assert duplicates(Placement((0,), 3, np.array([[0, -1, -1]]))) == 0


def test_scores_are_those_of_the_placements() -> None:
    model = building.model(experts=8, layers=2, groups=2)
    windows = building.random_windows(np.random.default_rng(0), model, 3)
    instance = building.instance(model, building.topology(2, 2), windows=windows)
    cost = split_cost(instance, Split(tp=1, dp=4, pp=1, ep=4), 4)
    stage_of = dict.fromkeys(range(instance.model.num_layers), cost.stages[0])
    layouts = placements(cost, stage_of, windows.counts_SLE.sum(axis=0).astype(float))
    records = score(cost, (range(2),))
    assert set(records) == set(layouts) == {"linear", "round_robin", "eplb", "eplb_hierarchical"}
    for name, placement in layouts.items():
        by_hand = []
        for row, slots in enumerate(placement.expert_LP.tolist()):
            for window in windows.counts_SLE[:, row].tolist():
                mean = sum(window) / 4
                by_hand.append(fullest(window, slots, 4) / mean)
        assert records[name].imbalance == pytest.approx(np.mean(by_hand))


def test_without_a_trace_only_the_linear_layout_is_scored() -> None:
    cost = split_cost(building.instance(), Split(tp=1, dp=4, pp=1, ep=4), 0)
    (only,) = score(cost, (range(2),)).items()
    assert (only[0], only[1].imbalance, only[1].balancedness) == ("linear", None, None)
