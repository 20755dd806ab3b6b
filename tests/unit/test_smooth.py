"""The local search: where it ends no swap and no replacement helps, by trying them all."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from planner.solve.groups import assign_groups
from planner.solve.held import Held
from planner.solve.problem import LayerProblem, plain_load_problem
from planner.solve.sharp import SharpSearch
from planner.solve.smooth import SmoothSearch
from planner.solve.start import start
from planner.solve.weights import smooth_table, weight_table

Floats = NDArray[np.float64]


def layer(experts: int, slots: list[int], *, groups: int = 1, windows: int = 3, seed: int = 0) -> LayerProblem:
    rng = np.random.default_rng(seed)
    load_SE = np.exp(0.8 * rng.standard_normal((windows, experts)))
    node_R = np.arange(len(slots)) // 2
    group_E = np.arange(experts) // (experts // groups) if groups > 1 else None
    return plain_load_problem(load_SE, np.array(slots), node_R, group_E)


LAYERS = {
    "no copies": layer(12, [3] * 4),
    "copies": layer(12, [4] * 4),
    "many copies": layer(8, [5] * 6, windows=20),
    "unequal ranks": layer(12, [2, 5, 4, 5]),
    "an empty rank": layer(6, [3, 0, 3, 3]),
    "groups on nodes": layer(12, [5] * 4, groups=4),
    "one window": layer(16, [5] * 4, windows=1),
}


def neighbours(held: Held, *, replace: bool) -> Iterator[list[list[int]]]:
    """Every placement that one legal swap away, or one legal replacement."""
    problem, of_rank = held.problem, held.of_rank
    ranks = range(problem.num_ranks)
    for one, two in itertools.combinations(ranks, 2):
        if problem.group_E is not None and problem.node_R[one] != problem.node_R[two]:
            continue
        for first, second in itertools.product(range(len(of_rank[one])), range(len(of_rank[two]))):
            a, b = of_rank[one][first], of_rank[two][second]
            if a in of_rank[two] or b in of_rank[one]:
                continue
            other = [list(members) for members in of_rank]
            other[one][first], other[two][second] = b, a
            yield other
    for rank in ranks if replace else ():
        for slot, expert in itertools.product(range(len(of_rank[rank])), range(problem.num_experts)):
            gone = of_rank[rank][slot]
            near = [held.of_rank[r] for r in ranks if problem.node_R[r] == problem.node_R[rank]]
            if held.copies_E[gone] < 2 or expert in of_rank[rank]:
                continue
            if problem.group_E is not None and not any(expert in members for members in near):
                continue
            other = [list(members) for members in of_rank]
            other[rank][slot] = expert
            yield other


def value(problem: LayerProblem, table_kSE: Floats, of_rank: list[list[int]]) -> tuple[float, float]:
    """Sum of eighth powers, and sum over windows of the fullest rank."""
    copies = np.bincount([expert for members in of_rank for expert in members], minlength=problem.num_experts)
    load_SR = np.zeros((problem.num_windows, problem.num_ranks))
    for rank, members in enumerate(of_rank):
        for expert in members:
            load_SR[:, rank] += table_kSE[copies[expert] - 1, :, expert]
    return float((load_SR**8).sum()), float(load_SR.max(axis=1).sum())


@pytest.mark.parametrize("name", LAYERS)
def test_where_the_smooth_search_ends_nothing_helps(name: str) -> None:
    problem = LAYERS[name]
    table = smooth_table(weight_table(problem), problem.num_ranks)
    held = Held(problem, start(problem, table, assign_groups(problem)))
    before = value(problem, table, held.of_rank)[0]
    SmoothSearch(held, table).improve()
    best = value(problem, table, held.of_rank)[0]
    assert best <= before * (1 + 1e-9)
    tried = [value(problem, table, other)[0] for other in neighbours(held, replace=True)]
    assert tried
    assert min(tried) >= best * (1 - 1e-6)
    assert [sorted(members) for members in Held.of(problem, held.placement()).of_rank] == [
        sorted(members) for members in held.of_rank
    ]


@pytest.mark.parametrize("name", LAYERS)
def test_where_the_polish_ends_no_swap_helps(name: str) -> None:
    problem = LAYERS[name]
    table = weight_table(problem)
    held = Held(problem, start(problem, table, assign_groups(problem)))
    before = value(problem, table, held.of_rank)[1]
    SharpSearch(held, table).improve()
    best = value(problem, table, held.of_rank)[1]
    assert best <= before * (1 + 1e-9)
    assert min(value(problem, table, other)[1] for other in neighbours(held, replace=False)) >= best * (1 - 1e-6)
