"""Routing groups kept on nodes: the rule against enumeration, and plans on awkward machines."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from planner.check import check
from planner.plan.placement import Placement, ordered, slots_of_ranks, violations
from planner.rules import groups_fit
from planner.solve.groups import assign_groups
from planner.solve.place import LayerJob, place_layer
from planner.solve.problem import plain_load_problem
from planner.solve.solution import Options
from planner.solve.solver import solve
from planner.solve.watch import NoWatch
from planner.solve.workers import Workers
from tests import building


def can_be_kept(slots: list[int], nodes: list[int], groups: int, per_group: int) -> bool:
    """Whether some division of the groups gives every node neither too few experts nor too few slots."""
    of_node = [[count for count, at in zip(slots, nodes, strict=True) if at == node] for node in range(max(nodes) + 1)]
    return any(
        sum(division) == groups
        and all(max(ranks) <= held * per_group <= sum(ranks) for held, ranks in zip(division, of_node, strict=True))
        for division in product(range(groups + 1), repeat=len(of_node))
    )


def random_case(seed: int) -> tuple[list[int], list[int], int, int]:
    """Slots and node of each rank, groups, and experts per group."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 4, int(rng.integers(2, 4)))
    nodes = np.repeat(np.arange(len(sizes)), sizes)
    groups, per_group = int(rng.integers(2, 6)), int(rng.integers(1, 4))
    total = groups * per_group + int(rng.integers(0, 5))
    slots = slots_of_ranks(max(total, len(nodes)), len(nodes))
    return slots.tolist(), nodes.tolist(), groups, per_group


def test_the_rule_equals_enumeration() -> None:
    answers = []
    for seed in range(300):
        slots, nodes, groups, per_group = random_case(seed)
        answers.append(can_be_kept(slots, nodes, groups, per_group))
        assert groups_fit(groups * per_group, groups, np.array(slots), np.array(nodes)) is answers[-1], seed
    assert 50 < sum(answers) < 250  # both answers occur


def test_layers_are_placed_wherever_the_rule_says_yes() -> None:
    for seed in range(120):
        slots, nodes, groups, per_group = random_case(seed)
        if not can_be_kept(slots, nodes, groups, per_group):
            continue
        experts = groups * per_group
        load_SE = np.random.default_rng(seed).random((2, experts))
        group_E = np.arange(experts) // per_group
        problem = plain_load_problem(load_SE, np.array(slots), np.array(nodes), group_E)
        assigned = assign_groups(problem)
        assert assigned is not None
        assert set(assigned.tolist()) == set(nodes), seed
        found = place_layer(LayerJob(problem, effort=0.0, seed=0, gap=0.0))
        width = max(slots)
        assert violations(Placement((0,), width, found.expert_P[None]), experts) == [], seed
        node_P = np.array(nodes)[np.arange(len(found.expert_P)) // width]
        for group in range(groups):
            held = (found.expert_P >= 0) & (found.expert_P // per_group == group)
            assert len(set(node_P[held].tolist())) == 1, seed


# nodes, GPUs per node, GPUs in service, groups, experts, redundant experts, pipeline stages
AWKWARD = [
    (3, 2, 3, 2, 4, 2, 1),  # a node with one GPU
    (2, 2, 3, 2, 4, 2, 1),
    (2, 2, 3, 4, 8, 1, 1),
    (2, 3, 5, 3, 3, 2, 1),
    (2, 3, 6, 2, 4, 0, 3),
]


@pytest.mark.parametrize(("nodes", "per_node", "gpus", "groups", "experts", "redundant", "pp"), AWKWARD)
@pytest.mark.parametrize("traced", [1, 3])
def test_plans_or_reasons_on_awkward_machines(
    nodes: int, per_node: int, gpus: int, groups: int, experts: int, redundant: int, pp: int, traced: int
) -> None:
    model = building.model(experts=experts, groups=groups, layers=3)
    every = building.random_windows(np.random.default_rng(1), model, 2)
    windows = replace(
        every,
        counts_SLE=every.counts_SLE[:, :traced],
        choices_SL=every.choices_SL[:, :traced],
        layer_ids_L=every.layer_ids_L[:traced],
    )
    instance = building.instance(model, building.topology(nodes, per_node, gpus=gpus), windows=windows)
    space = building.keeping_groups(building.space(redundant, tp=1, pp=pp, ep=gpus // pp))
    inputs = building.inputs_of(instance, space, gap=0.2)
    with Workers(cores=1) as workers:
        found = solve(instance, space, Options(gap=0.2, effort=0.1), inputs, workers, NoWatch())
    if found.plan is None:
        assert {reason.rule for candidate in found.solution.candidates for reason in candidate.reasons} == {
            "keep_groups"
        }
    else:
        assert len(found.plan.placement.physical_to_logical) == 3  # checked inside `solve`, groups included


def test_groups_moved_across_nodes_are_found() -> None:
    model = building.model(experts=8, groups=4, layers=1)
    windows = building.random_windows(np.random.default_rng(0), model, 2)
    instance = building.instance(model, building.topology(2, 2), windows=windows)
    space = building.keeping_groups(building.space(0, ep=4))
    inputs = building.inputs_of(instance, space)
    with Workers(cores=1) as workers:
        found = solve(instance, space, Options(effort=0.5), inputs, workers, NoWatch())
    assert found.plan is not None
    row = list(found.plan.placement.physical_to_logical[0])
    nodes = [{slot // 4 for slot, expert in enumerate(row) if expert // 2 == group} for group in range(4)]
    assert [len(used) for used in nodes] == [1, 1, 1, 1]
    row[0], row[-1] = row[-1], row[0]
    moved = tuple(ordered(np.array(row), 2).tolist())
    placement = found.plan.placement.model_copy(update={"physical_to_logical": (moved,)})
    changed = found.plan.model_copy(update={"placement": placement})
    assert "keep_groups" in [finding.rule for finding in check(changed, instance)]
