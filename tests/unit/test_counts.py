"""Wrong counts are put down to the one change of the map that explains them."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from planner.cost.served import rank_tokens, slot_tokens
from planner.measure.counts import count_findings
from planner.plan.placement import Placement, from_ranks

Ints = NDArray[np.int64]
SLOTS = 3


@pytest.fixture
def counts_SE() -> Ints:
    return np.random.default_rng(5).integers(20, 200, (4, 8))


def placed(*ranks: list[int]) -> Ints:
    return from_ranks(ranks, SLOTS)


RIGHT = placed([0, 1, 2], [3, 4, 5], [0, 6, 7], [1, 3])


def found(counts_SE: Ints, map_P: Ints, booked_P: Ints = RIGHT, served_P: Ints | None = None) -> list[str]:
    placement = Placement((7,), SLOTS, map_P[None])
    booked_LR = rank_tokens(counts_SE, booked_P, SLOTS).sum(axis=0)[None]
    served = slot_tokens(counts_SE, map_P).sum(axis=0) if served_P is None else served_P
    findings = count_findings(placement, booked_LR, served[None], counts_SE[:, None], (7,))
    assert all(finding.layer == 7 for finding in findings)
    return [finding.message for finding in findings]


def test_a_plan_that_is_right(counts_SE: Ints) -> None:
    assert found(counts_SE, RIGHT) == []


def test_two_experts_swapped(counts_SE: Ints) -> None:
    (message,) = found(counts_SE, placed([0, 1, 5], [3, 4, 2], [0, 6, 7], [1, 3]))
    assert "experts 5 (rank 0) and 2 (rank 1) in each other's place" in message or (
        "experts 2 (rank 1) and 5 (rank 0) in each other's place" in message
    )
    assert "rank 0 served" in message
    assert "are booked" in message


def test_a_missing_copy(counts_SE: Ints) -> None:
    (message,) = found(counts_SE, placed([0, 1, 2], [3, 4, 5], [0, 6, 7], [1]))
    assert message.endswith("one more copy of expert 3 on rank 3")


def test_a_copy_too_many(counts_SE: Ints) -> None:
    (message,) = found(counts_SE, placed([0, 1, 2], [3, 4, 5], [0, 6, 7], [1, 3, 5]))
    assert message.endswith("no copy of expert 5 on rank 3")


def test_a_map_that_is_wrong_everywhere_names_a_rank_and_its_experts(counts_SE: Ints) -> None:
    (message,) = found(counts_SE, placed([7, 6, 5], [4, 3, 2], [1, 0, 7], [2, 5]))
    assert "holds experts" in message


def test_lost_choices(counts_SE: Ints) -> None:
    served = slot_tokens(counts_SE, RIGHT).sum(axis=0)
    served[1] -= 4  # expert 1 on rank 0
    first, second = found(counts_SE, RIGHT, served_P=served)
    total = counts_SE[:, 1].sum()
    assert first == f"layer 7: expert 1 was chosen {total:,} times and served {total - 4:,}"
    assert "rank 0 served" in second
