"""Few moves: against every placement there is, names of ranks, shared budgets, and what travels."""

from __future__ import annotations

from itertools import combinations, pairwise, product

import numpy as np
import pytest
from numpy.typing import NDArray

from planner.capacity.migration import migration
from planner.cost.step import split_cost
from planner.plan.placement import Placement, linear, slots_of_ranks
from planner.plan.split import Split
from planner.solve.held import Held
from planner.solve.moves import Moved, MoveJob, few_moves, spread
from planner.solve.problem import LayerProblem, plain_load_problem
from planner.solve.relabel import relabelled
from tests import building

Ints = NDArray[np.int64]
EXPERTS, RANKS = 5, 3


def moves_between(problem: LayerProblem, before_P: Ints, after_P: Ints) -> int:
    """Experts that ranks hold in one placement and did not in another."""
    before, after = (Held.of(problem, placed_P).member_ER for placed_P in (before_P, after_P))
    return int((after & ~before).sum())


def small(seed: int) -> tuple[LayerProblem, Ints]:
    """A layer of random load with one copy to spare, and a placement in force."""
    rng = np.random.default_rng(seed)
    slots_R = np.full(RANKS, 2)
    load_SE = rng.integers(1, 60, (3, EXPERTS)).astype(float)
    return plain_load_problem(load_SE, slots_R), building.random_placement(rng, EXPERTS, slots_R)


def least_seconds(problem: LayerProblem, before_P: Ints) -> dict[int, float]:
    """For each number of moves the fastest of all placements, counted and priced one by one."""
    sets = list(combinations(range(EXPERTS), 2))
    before = [set(held) for held in before_P.reshape(RANKS, -1).tolist()]
    best: dict[int, float] = {}
    for held in product(sets, repeat=RANKS):
        if len(set(sum(held, ()))) < EXPERTS:
            continue
        moves = sum(len(set(new) - old) for new, old in zip(held, before, strict=True))
        best[moves] = min(best.get(moves, np.inf), problem.seconds(np.array(sum(held, ()))))
    return best


def test_never_better_than_all_placements_and_seldom_worse() -> None:
    reached, looked = 0, 0
    for seed in range(8):
        problem, before_P = small(seed)
        least, found = least_seconds(problem, before_P), few_moves(MoveJob(problem, before_P, 6))
        best = np.inf
        for moves in range(7):
            best = min(best, least.get(moves, np.inf))
            mine = min(one.seconds for one in found if one.moves <= moves)
            assert mine >= best * (1 - 1e-12)
            assert mine <= best * 1.25
            reached, looked = reached + (mine <= best * (1 + 1e-9)), looked + 1
    assert reached >= 0.8 * looked


@pytest.mark.parametrize("seed", range(6))
def test_more_moves_never_take_longer(seed: int) -> None:
    problem = building.random_layer(seed, "expert")
    before_P = linear(problem.num_experts, problem.slots_R)
    found = few_moves(MoveJob(problem, before_P, 6))
    assert found[0].moves == 0
    assert [one.moves for one in found] == sorted({one.moves for one in found})
    assert all(one.seconds > other.seconds for one, other in pairwise(found))
    for one in found:
        assert one.moves <= 6
        assert moves_between(problem, before_P, one.expert_P) == one.moves
        assert problem.seconds(one.expert_P) == one.seconds
        assert set(range(problem.num_experts)) <= set(one.expert_P.tolist())


@pytest.mark.parametrize("dedup", ["expert", "gpu", "node"])
def test_alike_ranks_with_other_names_are_no_moves(dedup: str) -> None:
    of = building.model(experts=8, top_k=2, layers=1)
    made = building.instance(of, building.topology(2, 4), using=building.constants(dedup))  # type: ignore[arg-type]
    cost = split_cost(made, Split(1, 8, 1, 8), 8)
    problem = LayerProblem(cost.stages[0].moe, made.loads[0], cost.stages[0].slots_R)
    rng = np.random.default_rng(3)
    before_P = building.random_placement(rng, 8, problem.slots_R)
    swapped = np.array([5, 4, 7, 6, 2, 3, 0, 1])  # the nodes change places, and ranks inside them
    other_P = before_P.reshape(8, -1)[swapped].reshape(-1)
    assert moves_between(problem, before_P, other_P) > 0
    assert moves_between(problem, before_P, relabelled(problem, before_P, other_P)) == 0


def test_ranks_that_differ_keep_their_names() -> None:
    for seed in range(20):
        problem = building.random_layer(seed, "expert", unequal=True)
        before_P = linear(problem.num_experts, problem.slots_R)
        rng = np.random.default_rng(seed)
        after_P = building.random_placement(rng, problem.num_experts, problem.slots_R)
        named_P = relabelled(problem, before_P, after_P)
        assert problem.seconds(named_P) <= problem.seconds(after_P) * (1 + 1e-9)


def test_a_budget_is_shared_out_as_well_as_can_be() -> None:
    """Against all combinations of three layers' options."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        layers = []
        for _ in range(3):
            moves = sorted(rng.choice(np.arange(1, 6), 3, replace=False).tolist())
            seconds = sorted(rng.random(4).tolist(), reverse=True)
            layers.append([Moved(m, s, np.zeros(0, int)) for m, s in zip([0, *moves], seconds, strict=True)])
        shares = spread(layers, 8)
        for budget, (total_s, chosen) in enumerate(shares):
            every = [c for c in product(*layers) if sum(one.moves for one in c) <= budget]
            assert total_s == pytest.approx(min(sum(one.seconds for one in c) for c in every))
            picked = [options[number] for options, number in zip(layers, chosen, strict=True)]
            assert sum(one.moves for one in picked) <= budget
            assert sum(one.seconds for one in picked) == pytest.approx(total_s)


def test_what_travels_and_how_long() -> None:
    """By hand: one expert within a node and one between nodes; sharded over two GPUs, in two copies of the grid."""
    of = building.model(experts=4, layers=1, hidden=64, width=32)
    made = building.instance(of, building.topology(2, 4, inner="10 GB/s", outer="1 GB/s"))
    split = Split(tp=1, dp=8, pp=1, ep=2, etp=2, edp=2)
    cost = split_cost(made, split, 2)
    before = Placement((0,), 3, np.array([[0, 1, 2, 1, 2, 3]]))
    after = Placement((0,), 3, np.array([[0, 1, 3, 0, 2, 3]]))
    moved = migration(cost, (range(1),), before, after)
    assert [(one.expert, one.source, one.target) for one in moved.layers[0].transfers] == [(3, 1, 0), (0, 0, 1)]
    part = 3 * 64 * 16 * 2  # gate, up and down, half of the width, bf16
    assert moved.bytes_by_level == {"node": 2 * 2 * 2 * part}
    assert moved.received_bytes == part
    assert moved.moves == 2
    reach = made.constants.collectives.collective_reach.scale_up
    assert made.constants.collectives.collective is not None
    fixed = made.constants.collectives.collective.value.launch + 3e-6
    assert moved.seconds == pytest.approx(fixed + part / (10e9 * reach))


def test_over_the_slow_link() -> None:
    of = building.model(experts=4, layers=1, hidden=64, width=32)
    made = building.instance(of, building.topology(2, 1, outer="1 GB/s"))
    cost = split_cost(made, Split(1, 2, 1, 2), 0)
    before, after = (Placement((0,), 2, np.array([row])) for row in ([0, 1, 2, 3], [0, 2, 1, 3]))
    moved = migration(cost, (range(1),), before, after)
    whole = 3 * 64 * 32 * 2
    assert moved.bytes_by_level == {"cluster": 2 * whole}
    reach = made.constants.collectives.collective_reach.scale_out
    assert made.constants.collectives.collective is not None
    fixed = made.constants.collectives.collective.value.launch + 10e-6
    assert moved.seconds == pytest.approx(fixed + whole / (1e9 * reach))


def test_nothing_moves() -> None:
    made = building.instance(building.model(experts=4, layers=1))
    cost = split_cost(made, Split(1, 4, 1, 4), 0)
    same = Placement((0,), 1, np.array([linear(4, slots_of_ranks(4, 4))]))
    assert migration(cost, (range(1),), same, same).layers == ()
