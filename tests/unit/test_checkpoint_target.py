"""Plans for a permuted checkpoint: no copies, equal ranks, routing groups moved as a whole."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import pytest

from planner.check import check
from planner.cost.instance import Instance
from planner.plan.plan import Plan
from planner.rules import group_blocks
from planner.rules.grid import SearchSpace
from planner.solve.solution import Options
from planner.solve.solver import Solved, solve
from planner.solve.watch import NoWatch
from planner.solve.workers import Workers
from tests import building

EFFORT = 2.0


def space(**pins: int) -> SearchSpace:
    """Everything that a permuted checkpoint allows."""
    free = building.space(None, **pins)
    return replace(free, limits=replace(free.limits, for_checkpoint=True))


def made(seed: int, experts: int, groups: int, gpus: int = 4, layers: int = 2) -> Instance:
    rng = np.random.default_rng(seed)
    model = building.model(experts=experts, layers=layers, groups=groups, dense_layers=1)
    return building.instance(model, building.topology(2, gpus // 2), windows=building.random_windows(rng, model, 3))


def solved(instance: Instance, of: SearchSpace) -> Solved:
    inputs = building.inputs_of(instance, of, gap=0.0)
    with Workers(cores=1) as workers:
        return solve(instance, of, Options(gap=0.0, effort=EFFORT), inputs, workers, NoWatch())


def plan_of(instance: Instance, **pins: int) -> Plan:
    found = solved(instance, space(**pins))
    assert found.plan is not None
    return found.plan


def groups_of(plan: Plan) -> Any:
    """Old group of the expert at each position, by layer and new group."""
    moe = plan.inputs.model.moe
    per_group = moe.num_experts // moe.num_groups
    return (np.array(plan.placement.physical_to_logical) // per_group).reshape(-1, moe.num_groups, per_group)


@pytest.mark.parametrize(
    ("experts", "groups", "ep"), [(8, 1, 4), (8, 2, 4), (8, 4, 4), (8, 4, 2), (16, 2, 2), (16, 8, 4)]
)
def test_plans_are_permutations_that_keep_groups_whole(experts: int, groups: int, ep: int) -> None:
    instance = made(experts + groups, experts, groups)
    plan = plan_of(instance, ep=ep)
    assert plan.placement.redundant_experts == 0
    assert check(plan, instance) == []
    for row in plan.placement.physical_to_logical:
        assert sorted(row) == list(range(experts))
    group = groups_of(plan)
    assert (group == group[:, :, :1]).all()


def test_groups_limit_what_the_placement_reaches() -> None:
    """The same routing is placed better where groups may be torn apart, and never worse."""
    instance = made(1, 8, 2)
    kept = plan_of(instance, ep=4)
    free = made(1, 8, 1)
    assert plan_of(free, ep=4).predicted.step_s <= kept.predicted.step_s * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("groups", "ep"), [(1, 2), (2, 2), (2, 4), (3, 3)])
def test_no_permutation_is_better_than_the_bound(seed: int, groups: int, ep: int) -> None:
    experts = 4 if ep != 3 else 6
    gpus = ep if ep != 2 else 4
    rng = np.random.default_rng(seed)
    model = building.model(experts=experts, layers=1, groups=groups)
    on = building.topology(1, gpus)
    instance = building.instance(model, on, windows=building.random_windows(rng, model, 2))
    found = solved(instance, space(ep=ep, pp=1, tp=1, etp=1))
    assert found.plan is not None
    cost = found.solution.best
    assert cost is not None
    assert cost.candidate.cost is not None
    stage = cost.candidate.cost.stages[0]
    per_group, load = experts // groups, instance.loads[0]
    best = min(
        float(stage.moe.layer(load, np.array(order)).total_S.mean())
        for order in permutations(range(experts))
        if all(len({e // per_group for e in order[i : i + per_group]}) == 1 for i in range(0, experts, per_group))
    )
    chosen = np.array(found.plan.placement.physical_to_logical[0])
    reached = float(stage.moe.layer(load, chosen).total_S.mean())
    assert reached == pytest.approx(best, rel=1e-6)
    assert found.plan.solver.bound_s <= found.plan.predicted.step_s * (1 + 1e-12)


def test_the_checker_notices_a_torn_group() -> None:
    instance = made(3, 8, 2)
    plan = plan_of(instance, ep=4)
    row = list(plan.placement.physical_to_logical[0])
    row[0], row[-1] = row[-1], row[0]
    by_rank = np.sort(np.array(row).reshape(4, -1), axis=1).reshape(-1).tolist()
    rows = (tuple(by_rank), *plan.placement.physical_to_logical[1:])
    torn = plan.model_copy(update={"placement": plan.placement.model_copy(update={"physical_to_logical": rows})})
    assert "checkpoint groups" in {finding.rule for finding in check(torn, instance)}
    engine = torn.inputs.model_copy(update={"target": None})
    rules = {finding.rule for finding in check(torn.model_copy(update={"inputs": engine}), instance)}
    assert "checkpoint groups" not in rules


def test_what_cannot_be_a_checkpoint_is_rejected_by_name() -> None:
    instance = made(0, 12, 4, gpus=6)
    copies = replace(space(ep=6), redundant_experts=6)
    told = {str(reason) for one in solved(instance, copies).solution.candidates for reason in one.reasons}
    assert "checkpoint copies: a checkpoint holds each expert once" in told
    assert any(reason.startswith("checkpoint groups: ep 6 neither divides 4 routing groups") for reason in told)
    uneven = {str(reason) for one in solved(made(0, 10, 1), space(ep=4)).solution.candidates for reason in one.reasons}
    assert "checkpoint ranks: 10 mod ep 4 = 2" in uneven


def test_blocks_of_ranks() -> None:
    assert group_blocks(4, 8).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert group_blocks(4, 4).tolist() == [0, 1, 2, 3]
    assert group_blocks(4, 2).tolist() == [0, 1]


def test_groups_on_nodes_too() -> None:
    """With `keep_groups: node` the ranks that share a group must be on one node."""
    instance = made(2, 8, 2)
    both = space(ep=4)
    both = replace(both, limits=replace(both.limits, keep_groups=True))
    found = solved(instance, both)
    assert found.plan is not None
    assert check(found.plan, instance) == []
    three = building.instance(building.model(experts=12, groups=2), building.topology(3, 2))
    wide = replace(both, pins={"ep": 6})
    refused = solved(three, wide)
    assert refused.plan is None
    reasons = {reason.rule for one in refused.solution.candidates for reason in one.reasons}
    assert "checkpoint groups on nodes" in reasons
