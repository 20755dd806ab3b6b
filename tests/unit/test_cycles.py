"""Cycles of three ranks, against all of them carried out one by one on small layers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from planner.inputs.workload import Dedup
from planner.plan.placement import linear
from planner.solve import cycles
from planner.solve.groups import assign_groups
from planner.solve.held import Held
from planner.solve.joint import JointSearch
from planner.solve.problem import LayerProblem, plain_load_problem
from planner.solve.sharp import SharpSearch
from planner.solve.start import start
from planner.solve.weights import weight_table
from tests.unit.test_joint import EXPERTS, problem

Floats = NDArray[np.float64]

SHAPES = {
    "no copies": (10, [2] * 5, 1),
    "copies": (9, [3] * 4, 1),
    "many copies": (5, [3] * 4, 1),
    "unequal ranks": (9, [1, 4, 3, 4], 1),
    "an empty rank": (7, [3, 0, 3, 3], 1),
    "three ranks": (6, [3] * 3, 1),
    "groups on nodes": (12, [3] * 6, 2),
    "one rank": (4, [4], 1),
}


def layer(name: str, seed: int) -> LayerProblem:
    """Windows unlike each other; ranks on nodes of three where groups must stay together."""
    experts, slots, groups = SHAPES[name]
    load_SE = np.exp(0.8 * np.random.default_rng(seed).standard_normal((1 + seed % 4, experts)))
    group_E = np.arange(experts) // (experts // groups) if groups > 1 else None
    return plain_load_problem(load_SE, np.array(slots), np.arange(len(slots)) // 3, group_E)


def begun(of: LayerProblem) -> Held:
    return Held(of, start(of, weight_table(of), assign_groups(of)))


def all_cycles(held: Held) -> Iterator[tuple[tuple[int, ...], list[list[int]]]]:
    """Three places, the first the least, and the experts of each rank after their cycle, where no rule is broken."""
    of = held.problem
    for places in itertools.permutations(range(len(held.expert_P)), 3):
        slots = [held.at(place) for place in places]
        ranks = [rank for rank, _ in slots]
        if places[0] != min(places) or len(set(ranks)) < 3:
            continue
        if of.group_E is not None and len(set(of.node_R[ranks].tolist())) > 1:
            continue
        after = [list(members) for members in held.of_rank]
        comes = [int(held.expert_P[places[number - 1]]) for number in range(3)]
        if any(expert in held.of_rank[rank] for expert, rank in zip(comes, ranks, strict=True)):
            continue
        for expert, (rank, slot) in zip(comes, slots, strict=True):
            after[rank][slot] = expert
        yield places, after


def fullest(of: LayerProblem, of_rank: list[list[int]]) -> float:
    """Sum over windows of the fullest rank, copies sharing their expert's load."""
    copies_E = np.bincount([expert for members in of_rank for expert in members], minlength=of.num_experts)
    load_SE = of.rows_SE / copies_E
    return float(np.max([load_SE[:, members].sum(axis=1) for members in of_rank], axis=0).sum())


@pytest.mark.parametrize("name", SHAPES)
def test_a_cycle_and_its_reverse(name: str) -> None:
    held = begun(layer(name, 0))
    before = [list(members) for members in held.of_rank]
    found = cycles.cycles_of(held.arcs())
    assert sorted(map(tuple, found.T.tolist())) == sorted(places for places, _ in all_cycles(held))
    for places, after in list(all_cycles(held))[::7]:
        held.rotate(places)
        assert held.of_rank == after
        anew = Held(held.problem, after)
        np.testing.assert_array_equal(held.member_ER, anew.member_ER)
        np.testing.assert_array_equal(held.expert_P, anew.expert_P)
        np.testing.assert_array_equal(held.copies_E, anew.copies_E)
        held.rotate(places[::-1])
        assert held.of_rank == before


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", SHAPES)
def test_the_best_cycle_through_a_rank_is_found(name: str, seed: int) -> None:
    of = layer(name, seed)
    search = SharpSearch(begun(of), weight_table(of))
    if seed % 2:
        search.improve()
    now = fullest(of, search.held.of_rank)
    for rank in range(of.num_ranks):
        through = [
            (fullest(of, after), places)
            for places, after in all_cycles(search.held)
            if rank in search.held.rank_P[list(places)]
        ]
        found = cycles.best_through(search, rank, search.held.arcs())
        best = min(through, default=(np.inf, ()))[0]
        if found is None:
            assert best >= now * (1 - 2e-6)
        else:
            search.held.rotate(found)
            assert fullest(of, search.held.of_rank) == pytest.approx(best, rel=1e-6)
            search.held.rotate(found[::-1])


@pytest.mark.parametrize("name", SHAPES)
def test_where_swaps_and_cycles_end_no_cycle_helps(name: str) -> None:
    gained = []
    for seed in range(8):
        of = layer(name, seed)
        swaps, both = (SharpSearch(begun(of), weight_table(of)) for _ in range(2))
        swaps.improve()
        cycles.relieve(both)
        best = fullest(of, both.held.of_rank)
        assert best <= fullest(of, swaps.held.of_rank) * (1 + 1e-9)
        assert min((fullest(of, after) for _, after in all_cycles(both.held)), default=np.inf) >= best * (1 - 2e-6)
        gained.append(best < fullest(of, swaps.held.of_rank) * (1 - 1e-6))
    assert any(gained) or name not in {"no copies", "copies"}


@pytest.mark.parametrize("power", [4, 8, None])
@pytest.mark.parametrize(("dedup", "nodes"), [("gpu", 2), ("node", 2), ("node", 4)])
@pytest.mark.parametrize("recorded", [True, False])
def test_what_a_cycle_is_said_to_take_is_what_it_takes(
    power: int | None, dedup: Dedup, nodes: int, recorded: bool
) -> None:
    of = problem(dedup=dedup, nodes=nodes)
    if not recorded:
        of = replace(of, load=replace(of.load, sets=None))
    joint = JointSearch(Held.of(of, linear(EXPERTS, of.slots_R)))
    joint.improve(power)
    place_3C = cycles.cycles_of(joint.held.arcs())
    told = dict(zip(map(tuple, place_3C.T.tolist()), cycles.seconds_after(joint, place_3C, power), strict=True))
    tried = list(all_cycles(joint.held))
    assert len(tried) == len(told)
    for places, after in tried[:: max(1, len(tried) // 60)]:
        anew = JointSearch(Held(of, after))
        anew._busy = joint._busy  # the units that a peak is taken over
        assert told[places] == pytest.approx(anew.seconds(power), rel=1e-6)


@pytest.mark.parametrize("copies", [0, 4])
def test_no_cycle_is_left_that_would_help_the_layer(copies: int) -> None:
    of = problem(copies=copies, nodes=4)
    swaps, both = (JointSearch(Held.of(of, linear(EXPERTS, of.slots_R))) for _ in range(2))
    swaps.improve(None)
    cycles.improve(both, None)
    best = both.seconds(None)
    assert best <= swaps.seconds(None) * (1 + 1e-9)
    assert JointSearch(Held.of(of, both.held.placement())).seconds(None) == pytest.approx(best, rel=1e-9)
    after = [JointSearch(Held(of, members)).seconds(None) for _, members in list(all_cycles(both.held))[::5]]
    assert min(after) >= best * (1 - 2e-6)


def test_a_large_layer_rests_on_swaps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cycles, "_MOST", 0.0)
    of = layer("no copies", 1)
    swaps, both = (SharpSearch(begun(of), weight_table(of)) for _ in range(2))
    swaps.improve()
    cycles.relieve(both)
    assert both.held.of_rank == swaps.held.of_rank
    there = problem(copies=0)
    joint, other = (JointSearch(Held.of(there, linear(EXPERTS, there.slots_R))) for _ in range(2))
    joint.improve(8)
    cycles.improve(other, 8)
    assert other.held.of_rank == joint.held.of_rank
