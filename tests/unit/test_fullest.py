"""Rows that some rank must serve: never more than any placement's fullest rank, and the least where it is known."""

from __future__ import annotations

from itertools import combinations_with_replacement, product

import numpy as np
import pytest
from numpy.typing import NDArray

from planner.plan.placement import slots_of_ranks
from planner.solve.fullest import largest_rows_S
from planner.solve.problem import LayerProblem, plain_load_problem
from tests.oracle.plain_cost import all_placements

SHAPES = ((4, (2, 2, 2)), (4, (3, 2, 1)), (5, (2, 2, 2)), (5, (3, 3)), (6, (3, 3)), (6, (2, 2, 2)), (5, (1, 4)))
"""Experts, and slots of each rank; with and without copies."""


def layer(experts: int, slots: tuple[int, ...], seed: int, windows: int = 2) -> LayerProblem:
    """A layer whose time is its fullest rank's rows, of uneven loads."""
    load_SE = np.exp(0.8 * np.random.default_rng(seed).standard_normal((windows, experts)))
    return plain_load_problem(load_SE, np.array(slots))


def least_fullest_S(problem: LayerProblem) -> NDArray[np.float64]:
    """Rows of the fullest rank in the best placement of each window, by enumeration."""
    found = []
    for held in all_placements(problem.num_experts, problem.slots_R.tolist()):
        copies_E = np.array([sum(expert in rank for rank in held) for expert in range(problem.num_experts)])
        each_SE = problem.rows_SE / copies_E
        found.append(np.max([each_SE[:, sorted(rank)].sum(axis=1) for rank in held], axis=0))
    return np.asarray(np.min(found, axis=0))


@pytest.mark.parametrize(("experts", "slots"), SHAPES)
def test_no_placement_has_a_fullest_rank_with_fewer_rows(experts: int, slots: tuple[int, ...]) -> None:
    for seed in range(4):
        problem = layer(experts, slots, seed)
        assert (largest_rows_S(problem) <= least_fullest_S(problem) * (1 + 1e-12)).all(), seed


@pytest.mark.parametrize("experts", [4, 5, 6])
def test_with_two_slots_on_each_rank_it_is_the_best_pairing(experts: int) -> None:
    """Found by enumeration, in which a rank may hold both copies of an expert: the bound does not forbid it."""
    pairs = list(combinations_with_replacement(range(experts), 2))
    for seed in range(3):
        problem = layer(experts, (2, 2, 2), seed)
        least_S = np.full(problem.num_windows, np.inf)
        for held in product(pairs, repeat=3):
            copies_E = np.bincount(np.array(held).reshape(-1), minlength=experts)
            if copies_E.min() > 0:
                each_SE = problem.rows_SE / copies_E
                least_S = np.minimum(least_S, each_SE[:, np.array(held)].sum(axis=2).max(axis=1))
        assert largest_rows_S(problem) == pytest.approx(least_S, rel=1e-12), seed


def test_two_of_the_hottest_share_a_rank_where_the_others_have_no_room_for_the_second() -> None:
    # On ranks of 1, 2 and 3 slots no two of 9 8 7 need share a rank, and the 9 may have none beside it.
    problem = plain_load_problem(np.array([[9.0, 8, 7, 1, 1, 1]]), np.array([1, 2, 3]))
    assert largest_rows_S(problem).tolist() == [9.0]
    assert least_fullest_S(problem).tolist() == [9.0]
    # With 9 8 7 6 two of the four share a rank: the 7 and the 6 at best.
    problem = plain_load_problem(np.array([[9.0, 8, 7, 6]]), slots_of_ranks(4, 2))
    assert largest_rows_S(problem).tolist() == [15.0]


def test_many_ways_of_giving_copies_are_not_listed() -> None:
    # 64 experts with 8 copies: C(71, 8) ways. The bound of the hottest copy is left.
    load_SE = np.ones((1, 64))
    load_SE[0, 0] = 90.0
    assert largest_rows_S(plain_load_problem(load_SE, slots_of_ranks(72, 8))) == pytest.approx([90 / 8])
