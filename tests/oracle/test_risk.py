"""Planning for the slowest windows, held against all placements of all layers together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from planner.check import check
from planner.cost.instance import Instance
from planner.plan.objective import slowest, slowest_mean
from planner.plan.plan import Plan
from planner.rules.grid import SearchSpace
from planner.rules.ruled import all_ruled
from planner.solve.solution import Options
from planner.solve.solver import solve
from planner.solve.watch import NoWatch
from planner.solve.workers import Workers
from tests import building
from tests.oracle.plain_cost import least_slowest
from tests.oracle.test_against_enumeration import random_constants

SEEDS = range(30)
CLOSE = 0.05
"""What the rounds may miss: they look at windows alike, not at the weights that a plan would need."""


def instance_of(seed: int) -> tuple[Instance, SearchSpace, float]:
    """One or two MoE layers on 2 to 4 GPUs, and up to six windows that differ much."""
    rng = np.random.default_rng(3000 + seed)
    experts = int(rng.integers(3, 6))
    made = building.model(experts=experts, top_k=1, layers=int(rng.integers(1, 3)), hidden=128, width=192)
    ranks = int(rng.integers(2, min(4, experts) + 1))
    machine = building.topology(1, ranks, inner=f"{rng.integers(1, 40)} GB/s")
    windows = building.random_windows(rng, made, int(rng.integers(3, 7)), int(rng.integers(50, 400)))
    phase = "decode" if rng.random() < 0.5 else "prefill"
    using, tokens = random_constants(rng), int(rng.integers(100, 3000))
    whole = building.instance(made, machine, phase=phase, tokens=tokens, windows=windows, using=using)  # type: ignore[arg-type]
    space = building.space(int(rng.integers(0, 2)), tp=1, pp=1, ep=ranks)
    return whole, space, float(rng.choice([0.2, 0.35, 0.5, 1.0]))


def planned(whole: Instance, space: SearchSpace, risk: float | None) -> Plan:
    """A plan with everything proved that can be."""
    inputs = building.inputs_of(whole, space, gap=0.0, risk=risk)
    with Workers(cores=1) as workers:
        plan = solve(whole, space, Options(gap=0.0, effort=1e6, risk=risk), inputs, workers, NoWatch()).plan
    assert plan is not None
    return plan


@pytest.fixture(scope="module")
def found() -> list[tuple[Plan, Instance, float]]:
    """Plan, instance and least objective of every seed."""
    cases = []
    for seed in SEEDS:
        whole, space, risk = instance_of(seed)
        (legal,) = [one for one in all_ruled(whole, space) if one.is_feasible]
        slots = legal.cost.stages[0].slots_R.tolist()
        cases.append((planned(whole, space, risk), whole, least_slowest(whole, legal.split, slots, risk)))
    return cases


def test_bound_and_objective_enclose_the_optimum(found: list[tuple[Plan, Instance, float]]) -> None:
    for plan, whole, least in found:
        assert plan.solver.bound_s <= least * (1 + 1e-9)
        assert plan.solver.objective_s >= least * (1 - 1e-9)
        assert check(plan, whole) == []


def test_rounds_reach_the_optimum(found: list[tuple[Plan, Instance, float]]) -> None:
    excess = np.array([plan.solver.objective_s / least - 1 for plan, _, least in found])
    assert excess.max() <= CLOSE
    assert (excess <= 1e-9).mean() >= 0.8


def test_rounds_do_better_than_the_mean_does(found: list[tuple[Plan, Instance, float]]) -> None:
    gained = []
    for seed, (plan, _, _) in zip(SEEDS, found, strict=True):
        whole, space, risk = instance_of(seed)
        by_mean = planned(whole, space, None)
        worst = slowest_mean([one.step_s for one in by_mean.predicted.windows], risk)
        gained.append(worst / plan.solver.objective_s - 1)
        assert plan.solver.objective_s <= worst * (1 + 1e-9)
        assert by_mean.predicted.step_s <= plan.predicted.step_s * (1 + 1e-6)
    assert max(gained) > 0.01


def test_all_windows_at_risk_is_the_mean() -> None:
    whole, space, _ = instance_of(1)
    assert planned(whole, space, 1.0).placement == planned(whole, space, None).placement


def test_a_plan_of_another_risk_is_found_out() -> None:
    whole, space, _ = instance_of(3)
    plan = planned(whole, space, 0.2)
    search = plan.inputs.search.model_copy(update={"risk": 0.9})
    forged = plan.model_copy(update={"inputs": plan.inputs.model_copy(update={"search": search})})
    assert "solver.objective_s" in {finding.rule for finding in check(forged, whole)}


@pytest.mark.parametrize(
    ("risk", "mean"), [(1.0, 2.5), (0.5, 3.5), (0.25, 4.0), (0.01, 4.0), (0.375, (4.0 + 0.5 * 3.0) / 1.5)]
)
def test_slowest_mean_by_hand(risk: float, mean: float) -> None:
    assert slowest_mean([1.0, 4.0, 2.0, 3.0], risk) == pytest.approx(mean, rel=1e-12)


def test_windows_that_count_are_named() -> None:
    assert slowest(np.array([1.0, 4.0, 2.0, 3.0]), 0.375) == (1, 3)


def test_no_trace_no_windows_to_choose() -> None:
    whole, space, _ = instance_of(0)
    unknown = replace(whole, windows=None)
    assert planned(unknown, space, 0.2).solver.objective_s == planned(unknown, space, None).solver.objective_s
