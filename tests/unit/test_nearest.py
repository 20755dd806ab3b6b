"""Copies that serve by nearness: who serves whom, what that spares, and placements against all there are."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray

from planner.cost.sharing import Sharing
from planner.cost.step import split_cost
from planner.inputs.workload import CopyRule, Dedup
from planner.plan.placement import from_ranks
from planner.plan.split import Split
from planner.solve.bounds import layer_bound
from planner.solve.nearest import NearestSearch
from planner.solve.place import LayerJob, place_layer
from planner.solve.problem import LayerProblem, layer_problem
from planner.solve.relabel import relabelled
from tests import building
from tests.oracle.plain_cost import all_placements

Ints = NDArray[np.int64]


def served_by_hand(expert_P: Ints, node_R: Ints) -> NDArray[np.float64]:
    """Part of each slot [P, home], one home and expert at a time."""
    ranks, slots = len(node_R), len(expert_P) // len(node_R)
    part_PR = np.zeros((len(expert_P), ranks))
    for expert, home in product(sorted(set(expert_P[expert_P >= 0].tolist())), range(ranks)):
        pool = [slot for slot, held in enumerate(expert_P.tolist()) if held == expert]
        own = [slot for slot in pool if slot // slots == home]
        near = [slot for slot in pool if node_R[slot // slots] == node_R[home]]
        pool = own or near or pool
        part_PR[pool, home] = 1 / len(pool)
    return part_PR


def test_parts_are_those_counted_home_by_home() -> None:
    for seed in range(200):
        rng = np.random.default_rng(seed)
        ranks, slots = int(rng.integers(1, 7)), int(rng.integers(1, 4))
        node_R = np.sort(rng.integers(0, 3, ranks))
        node_R = np.unique(node_R, return_inverse=True)[1]
        expert_P = rng.integers(-1, 5, ranks * slots)  # some twice on a rank, as in maps of others
        if (expert_P < 0).all():
            continue
        sharing = Sharing("nearest", node_R)
        expected = served_by_hand(expert_P, node_R)
        np.testing.assert_allclose(sharing.part_PR(expert_P), expected, atol=1e-12)
        np.testing.assert_allclose(sharing.part_P(expert_P), expected.mean(axis=1), atol=1e-12)


def test_parts_of_sets_of_ranks_are_those_of_slots() -> None:
    for seed in range(50):
        rng = np.random.default_rng(seed)
        node_R = np.sort(rng.integers(0, 3, int(rng.integers(1, 7))))
        node_R = np.unique(node_R, return_inverse=True)[1]
        member_R = rng.random(len(node_R)) < 0.5
        member_R[rng.integers(len(node_R))] = True
        sharing = Sharing("nearest", node_R)
        found = sharing.part_BRH(member_R[None])[0]
        np.testing.assert_allclose(found, sharing.part_PR(np.where(member_R, 0, -1)), atol=1e-12)


def test_a_copy_alone_on_its_node_serves_more() -> None:
    """Copies of expert 0 on ranks 0, 1 and 2 of two nodes of two: node 1 has one copy for half of the homes."""
    expert_P = from_ranks([[0], [0], [0], [1]], 1)
    assert Sharing("nearest", np.array([0, 0, 1, 1])).part_P(expert_P).tolist() == [0.25, 0.25, 0.5, 1.0]
    one_node = Sharing("nearest", np.zeros(4, dtype=np.int64)).part_P(expert_P)
    assert one_node == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1.0])


def layer(seed: int, dedup: Dedup, copies: CopyRule = "nearest") -> LayerProblem:
    """A layer of 3 to 5 experts with 1 to 3 copies on 2 to 4 ranks of one to three nodes."""
    rng = np.random.default_rng(seed)
    nodes, per_node = ((2, 2), (3, 1), (2, 1), (1, 4), (1, 3))[rng.integers(5)]
    ranks, experts = nodes * per_node, int(rng.integers(3, 6))
    spare = int(rng.integers(1, min(4, experts * (ranks - 1) + 1)))
    model = building.model(experts=experts, top_k=2, layers=1, hidden=int(64 * rng.integers(1, 4)))
    machine = building.topology(
        nodes, per_node, inner=f"{rng.integers(1, 40)} GB/s", outer=f"{rng.integers(1, 10)} GB/s"
    )
    if rng.random() < 0.5:
        windows = building.random_sets(rng, model, 2, 20)
    else:
        windows = building.random_windows(rng, model, int(rng.integers(1, 4)), int(rng.integers(5, 400)))
    using = building.constants(dedup, hides=rng.choice(["none", "two_batch"]), overlap="60%", copies=copies)
    made = building.instance(model, machine, tokens=int(rng.integers(1, 3000)), windows=windows, using=using)
    stage = split_cost(made, Split(tp=1, dp=ranks, pp=1, ep=ranks), spare).stages[0]
    return layer_problem(stage, made.loads[0], model.moe, building.space().limits)


def least(problem: LayerProblem) -> float:
    """Of all placements."""
    slots = problem.slots_R.tolist()
    every = all_placements(problem.num_experts, slots)
    return min(problem.seconds(from_ranks([sorted(held) for held in one], max(slots))) for one in every)


@pytest.mark.parametrize("dedup", ["expert", "gpu", "node"])
def test_no_placement_beats_the_bound_and_the_search_comes_close(dedup: Dedup) -> None:
    over = []
    for seed in range(20):
        problem = layer(seed, dedup)
        if problem.slots_R.max() > problem.num_experts:
            continue
        best, placed = least(problem), place_layer(LayerJob(problem, 1e6, 0, 0.0))
        assert layer_bound(problem) <= best * (1 + 1e-9), seed
        assert placed.bound <= best * (1 + 1e-9), seed
        assert placed.seconds == pytest.approx(problem.seconds(placed.expert_P))
        over.append(placed.seconds / best - 1)
    assert max(over) < (1e-6 if dedup == "expert" else 0.06)  # without de-duplication the integer program closes it
    assert np.mean(over) < 0.004


def on_two_nodes(counts: list[int], ranks: int) -> LayerProblem:
    """Two copies more than experts, one window, on two nodes."""
    model = building.model(experts=len(counts), top_k=2, layers=1)
    machine = building.topology(2, ranks // 2, inner="40 GB/s", outer="1 GB/s")
    windows = building.counted(np.array([[counts]]), [0], 2)
    made = building.instance(model, machine, windows=windows, using=building.constants(copies="nearest"))
    stage = split_cost(made, Split(tp=1, dp=ranks, pp=1, ep=ranks), 2).stages[0]
    return layer_problem(stage, made.loads[0], model.moe, building.space().limits)


def test_ranks_change_names_until_copies_lie_apart() -> None:
    """Two nodes of four: ranks 0 and 1 hold expert 0, ranks 2 and 3 expert 1. Apart, no copy has to travel."""
    problem = on_two_nodes([900, 900, *[10] * 12], 8)
    together = from_ranks([[0, 2], [0, 3], [1, 4], [1, 5], [6, 7], [8, 9], [10, 11], [12, 13]], 2)
    search = NearestSearch(problem, together)
    search.improve()
    for expert in (0, 1):
        nodes = np.flatnonzero((search.best_P == expert).reshape(8, -1).any(axis=1)) // 4
        assert sorted(nodes.tolist()) == [0, 1]
    before_S, after_S = (
        problem.moe.volume_S(problem.load, placed_P, problem.moe.rank_load(problem.load, placed_P)[0])
        for placed_P in (together, search.best_P)
    )
    assert after_S < 0.2 * before_S
    assert search.best < problem.seconds(together)


def test_identical_ranks_change_names_inside_their_nodes_or_with_them() -> None:
    """Swapping names across nodes would change who is near; swapping the nodes does not."""
    problem = on_two_nodes([90, 80, 30, 20, 10, 5], 4)
    placed_P = place_layer(LayerJob(problem, 0.0, 0, 0.0)).expert_P
    by_node = placed_P.reshape(problem.num_ranks, -1)[::-1].reshape(-1)
    assert relabelled(problem, placed_P, by_node).tolist() == placed_P.tolist()
