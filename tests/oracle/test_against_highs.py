"""A second formulation of the placement program, solved by HiGHS: both prove the same optimum.

The program of `planner/solve/exact.py` has a binary for every expert, rank and number of copies. Here a
binary says whether an expert is on a rank, another how many copies it has, and a continuous variable which
part of its load the rank serves; four inequalities make that part 1 / copies or 0.

Legend: S windows, E experts, R ranks, k copies.
"""

from __future__ import annotations

import itertools
from datetime import timedelta

import numpy as np
import pytest
from ortools.math_opt.python import mathopt

from planner.plan.placement import slots_of_ranks
from planner.solve.exact import solve_exactly
from planner.solve.place import linear_start, searched
from planner.solve.problem import LayerProblem, plain_load_problem

CASES = {
    "no copies": (12, 4, 0, 2, False),
    "spare slots": (9, 3, 3, 1, False),
    "several windows": (9, 3, 3, 3, False),
    "many copies": (5, 4, 7, 2, False),
    "groups on nodes": (12, 4, 4, 1, True),
    "uneven ranks": (10, 4, 1, 2, False),
}


def layer(name: str) -> LayerProblem:
    experts, ranks, spare, windows, grouped = CASES[name]
    rng = np.random.default_rng(len(name))
    load_SE = rng.integers(10, 400, (windows, experts)).astype(float)
    node_R = np.arange(ranks) * 2 // ranks
    group_E = np.arange(experts) // (experts // 4) if grouped else None
    return plain_load_problem(load_SE, slots_of_ranks(experts + spare, ranks), node_R, group_E)


def by_highs(problem: LayerProblem) -> float:
    """Least mean over windows of the fullest rank's rows."""
    model = mathopt.Model()
    experts, ranks = range(problem.num_experts), range(problem.num_ranks)
    numbers = range(1, problem.most_copies + 1)
    on = {(e, r): model.add_binary_variable() for e, r in itertools.product(experts, ranks)}
    has = {(e, k): model.add_binary_variable() for e, k in itertools.product(experts, numbers)}
    part = {(e, r): model.add_variable(lb=0.0, ub=1.0) for e, r in itertools.product(experts, ranks)}
    for e in experts:
        copies = sum(k * has[e, k] for k in numbers)
        one_of = sum(has[e, k] / k for k in numbers)
        model.add_linear_constraint(sum(has[e, k] for k in numbers) == 1)
        model.add_linear_constraint(sum(on[e, r] for r in ranks) == copies)
        model.add_linear_constraint(sum(part[e, r] for r in ranks) == 1)
        for r in ranks:
            model.add_linear_constraint(part[e, r] <= on[e, r])
            model.add_linear_constraint(part[e, r] <= one_of)
            model.add_linear_constraint(part[e, r] >= one_of - (1 - on[e, r]))
    for r in ranks:
        model.add_linear_constraint(sum(on[e, r] for e in experts) == int(problem.slots_R[r]))
    if problem.group_E is not None:
        nodes = range(int(problem.node_R.max()) + 1)
        home = {(int(g), n): model.add_binary_variable() for g, n in itertools.product(set(problem.group_E), nodes)}
        for g in set(problem.group_E.tolist()):
            model.add_linear_constraint(sum(home[g, n] for n in nodes) == 1)
        for e, r in itertools.product(experts, ranks):
            model.add_linear_constraint(on[e, r] <= home[int(problem.group_E[e]), int(problem.node_R[r])])
    tops = []
    for rows_E in problem.rows_SE:
        top = model.add_variable(lb=0.0)
        for r in ranks:
            model.add_linear_constraint(sum(float(rows_E[e]) * part[e, r] for e in experts) <= top)
        tops.append(top)
    model.minimize(sum(tops) * (1.0 / len(tops)))
    limits = mathopt.SolveParameters(time_limit=timedelta(minutes=5), relative_gap_tolerance=1e-7)
    result = mathopt.solve(model, mathopt.SolverType.HIGHS, params=limits)
    assert result.termination.reason == mathopt.TerminationReason.OPTIMAL
    return float(result.objective_value())


@pytest.mark.parametrize("name", CASES)
def test_both_programs_prove_the_same_optimum(name: str) -> None:
    problem = layer(name)
    first_P = linear_start(problem)
    found_P = searched(problem, first_P, problem.seconds(first_P))[0]
    exact = solve_exactly(problem, found_P, 1e6, 0, 0.0)
    expected = by_highs(problem)
    assert exact.seconds == pytest.approx(expected, rel=1e-6)
    assert exact.bound == pytest.approx(expected, rel=1e-5)
    assert exact.bound <= expected * (1 + 1e-6)
