"""Where the search begins: copies that unequal ranks can hold, each on ranks of its own."""

from __future__ import annotations

import numpy as np
import pytest

from planner.solve.problem import plain_load_problem
from planner.solve.start import spread_copies, start
from planner.solve.weights import weight_table
from tests import building


def is_held(copies: list[int], slots: list[int]) -> bool:
    """Whether ranks with so many slots can hold so many copies: those left are put where most room is, one by one."""
    room = sorted(slots, reverse=True)
    for count in sorted(copies, reverse=True):
        if count > sum(left > 0 for left in room):
            return False
        room = sorted([left - (place < count) for place, left in enumerate(room)], reverse=True)
    return True


@pytest.mark.parametrize("seed", range(200))
def test_ranks_with_unequal_slots_are_filled(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ranks, experts = int(rng.integers(2, 9)), int(rng.integers(3, 13))
    total = int(rng.integers(max(experts, ranks), ranks * experts + 1))
    slots_R = building.uneven_slots(rng, total, ranks, experts)
    problem = plain_load_problem(rng.dirichlet(np.full(experts, 0.3), size=2) * 1000, slots_R)
    table = weight_table(problem)
    copies_E = spread_copies(table, slots_R)
    assert copies_E.sum() == total
    assert is_held(copies_E.tolist(), slots_R.tolist())
    held = start(problem, table, None)
    assert [len(members) for members in held] == slots_R.tolist()
    assert all(len(set(members)) == len(members) for members in held)
    assert np.bincount(np.concatenate(held), minlength=experts).tolist() == copies_E.tolist()


def test_cold_experts_get_copies_where_full_ranks_hold_everything() -> None:
    """Four of the ranks have a slot for each expert, so each expert has four copies at least, however cold."""
    slots_R = np.array([8, 8, 8, 8, 3, 3, 3, 3])
    problem = plain_load_problem(np.array([[400.0, 80, 40, 20, 10, 5, 2, 1]]), slots_R)
    copies_E = spread_copies(weight_table(problem), slots_R)
    assert copies_E.tolist() == [8, 8, 8, 4, 4, 4, 4, 4]
    assert [len(members) for members in start(problem, weight_table(problem), None)] == slots_R.tolist()
