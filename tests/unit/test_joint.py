"""The search on the layer's time: never worse, exact in what it foretells, and moved by links."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from planner.cost.step import split_cost
from planner.cost.traffic import visits
from planner.inputs.workload import Dedup
from planner.plan.placement import linear
from planner.plan.split import Split
from planner.solve.held import Held
from planner.solve.joint import JointSearch, is_joint
from planner.solve.place import searched
from planner.solve.problem import LayerProblem
from planner.solve.smooth import SmoothSearch
from planner.solve.start import start
from planner.solve.weights import smooth_table, weight_table
from tests import building

Ints = NDArray[np.int64]

EXPERTS, TOP_K, RANKS = 16, 4, 4


def problem(outer: str = "1 GB/s", dedup: Dedup = "node", *, nodes: int = 2, copies: int = 4) -> LayerProblem:
    """Tokens choose among neighbours in a hidden order, so that a good layout keeps neighbours together."""
    rng = np.random.default_rng(3)
    order = rng.permutation(EXPERTS)
    first_T = rng.integers(0, 4, 1600) * 4 + (rng.random(1600) < 0.3)
    experts_TLK = np.stack([order[(first + rng.permutation(5)[:TOP_K]) % EXPERTS] for first in first_T])[:, None]
    window_T = np.repeat(np.arange(4, dtype=np.int32), 400)
    made = building.model(experts=EXPERTS, top_k=TOP_K, layers=1, hidden=1024, width=256)
    whole = building.instance(
        made,
        building.topology(nodes, RANKS // nodes, inner="200 GB/s", outer=outer),
        phase="prefill",
        tokens=4096,
        windows=building.routed(experts_TLK, window_T, [0], EXPERTS),
        using=building.constants(dedup),
    )
    stage = split_cost(whole, Split(1, RANKS, 1, RANKS), copies).stages[0]
    return LayerProblem(stage.moe, whole.loads[0], stage.slots_R)


def visited(of: LayerProblem, expert_P: Ints) -> float:
    """Nodes that a token visits, on average."""
    part_ER = of.moe.part_on_ranks(of.load, expert_P)
    node_R = of.moe.exchange.node_R
    return float(visits(of.load, part_ER @ (np.arange(node_R.max() + 1) == node_R[:, None])).sum(axis=1).mean())


def placed(of: LayerProblem) -> tuple[Ints, float]:
    first_P = linear(EXPERTS, of.slots_R)
    expert_P, seconds, _ = searched(of, first_P, of.seconds(first_P))
    assert seconds == pytest.approx(of.seconds(expert_P))
    return expert_P, seconds


def balanced(of: LayerProblem) -> Ints:
    """What a search that sees no traffic finds."""
    weights = weight_table(of)
    held = Held(of, start(of, weights, None))
    SmoothSearch(held, smooth_table(weights, RANKS)).improve()
    return held.placement()


def test_neighbours_come_together_where_tokens_travel_once_to_a_node() -> None:
    of = problem()
    expert_P, seconds = placed(of)
    blind_P = balanced(of)
    assert visited(of, expert_P) < 0.85 * visited(of, blind_P)
    assert seconds < of.seconds(blind_P)


def test_a_slow_fabric_is_spared_and_a_fast_one_used_for_balance() -> None:
    def rows(of: LayerProblem, expert_P: Ints) -> float:
        rows_SR = of.moe.rank_load(of.load, expert_P)[0]
        return float((rows_SR.max(axis=1) / rows_SR.mean(axis=1)).mean())

    slow_P, fast_P = placed(problem("0.2 GB/s"))[0], placed(problem("1000 GB/s"))[0]
    assert visited(problem(), slow_P) < visited(problem(), fast_P)
    assert rows(problem(), slow_P) > rows(problem(), fast_P)


def test_without_copies_of_tokens_nothing_sits_together() -> None:
    assert not is_joint(problem(dedup="expert"))
    assert is_joint(problem(dedup="gpu"))
    assert is_joint(problem())


@pytest.mark.parametrize("power", [4, 8, None])
@pytest.mark.parametrize("dedup", ["gpu", "node"])
@pytest.mark.parametrize("recorded", [True, False])
def test_what_a_swap_is_said_to_give_is_what_it_gives(power: int | None, dedup: Dedup, recorded: bool) -> None:
    of = problem(dedup=dedup)
    if not recorded:
        of = replace(of, load=replace(of.load, sets=None))
    search = JointSearch(Held.of(of, linear(EXPERTS, of.slots_R)))
    before = search.seconds(power)
    search.improve(power)
    told = search.seconds(power)
    anew = JointSearch(Held.of(of, search.held.placement()))
    assert told < before
    assert anew.seconds(power) == pytest.approx(told, rel=1e-9)
    if power is None:  # the truth, but for the tangents of expert time
        assert told == pytest.approx(of.seconds(search.held.placement()), rel=0.02)


def test_no_swap_is_left_that_would_help() -> None:
    of = problem(copies=0)
    search = JointSearch(Held.of(of, linear(EXPERTS, of.slots_R)))
    search.improve(None)
    best = search.seconds(None)
    members = search.held.of_rank
    for one, two in itertools.combinations(range(RANKS), 2):
        for first, second in itertools.product(range(len(members[one])), range(len(members[two]))):
            other = [list(held) for held in members]
            other[one][first], other[two][second] = members[two][second], members[one][first]
            assert JointSearch(Held(of, other)).seconds(None) >= best * (1 - 1e-6)


def test_groups_stay_on_their_nodes() -> None:
    of = replace(problem(copies=0), group_E=np.arange(EXPERTS) // 4)
    expert_P, _ = placed(of)
    node_P = np.repeat(of.moe.exchange.node_R, len(expert_P) // RANKS)
    for group in range(4):
        assert len(set(node_P[np.isin(expert_P, np.flatnonzero(of.group_E == group))])) == 1
