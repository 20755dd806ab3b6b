"""Wrong counts are put down to the one change of the map that explains them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from planner.cost.served import ByHome, slot_tokens
from planner.cost.sharing import Sharing
from planner.measure.counts import count_findings
from planner.plan.placement import Placement, from_ranks

Ints = NDArray[np.int64]
SLOTS = 3


@dataclass(frozen=True)
class Recorded:
    """Choices of a layer, and by home where the nearest copy serves them."""

    counts_SE: Ints
    by_home: ByHome | None

    def slots(self, map_P: Ints) -> Ints:
        served_P: Ints = slot_tokens(self.counts_SE, map_P, self.by_home).sum(axis=0)
        return served_P


def nearest() -> Recorded:
    """Four ranks on two nodes."""
    rng = np.random.default_rng(5)
    counts_SE = rng.integers(20, 200, (4, 8))
    chosen_SER = rng.multinomial(counts_SE, np.full(4, 0.25))
    return Recorded(counts_SE, ByHome(Sharing("nearest", np.array([0, 0, 1, 1])), np.arange(8), chosen_SER))


@pytest.fixture(params=["even", "nearest"])
def recorded(request: pytest.FixtureRequest) -> Recorded:
    return nearest() if request.param == "nearest" else Recorded(nearest().counts_SE, None)


def placed(*ranks: list[int]) -> Ints:
    return from_ranks(ranks, SLOTS)


RIGHT = placed([0, 1, 2], [3, 4, 5], [0, 6, 7], [1, 3])


def found(recorded: Recorded, map_P: Ints, booked_P: Ints = RIGHT, served_P: Ints | None = None) -> list[str]:
    placement = Placement((7,), SLOTS, map_P[None])
    booked_LR = recorded.slots(booked_P).reshape(1, -1, SLOTS).sum(axis=2)
    served = recorded.slots(map_P) if served_P is None else served_P
    counts_SLE = recorded.counts_SE[:, None]
    findings = count_findings(placement, booked_LR, served[None], counts_SLE, (7,), lambda _: recorded.by_home)
    assert all(finding.layer == 7 for finding in findings)
    return [finding.message for finding in findings]


def test_a_plan_that_is_right(recorded: Recorded) -> None:
    assert found(recorded, RIGHT) == []


def test_two_experts_swapped(recorded: Recorded) -> None:
    (message,) = found(recorded, placed([0, 1, 5], [3, 4, 2], [0, 6, 7], [1, 3]))
    assert "experts 5 (rank 0) and 2 (rank 1) in each other's place" in message or (
        "experts 2 (rank 1) and 5 (rank 0) in each other's place" in message
    )
    assert "rank 0 served" in message
    assert "are booked" in message


def test_a_copy_that_is_nearest_to_others_elsewhere() -> None:
    (message,) = found(nearest(), placed([1, 2, 4], [0, 3, 5], [0, 6, 7], [1, 3]))
    assert "experts 0 (rank 1) and 4 (rank 0) in each other's place" in message or (
        "experts 4 (rank 0) and 0 (rank 1) in each other's place" in message
    )


def test_a_missing_copy(recorded: Recorded) -> None:
    (message,) = found(recorded, placed([0, 1, 2], [3, 4, 5], [0, 6, 7], [1]))
    assert message.endswith("one more copy of expert 3 on rank 3")


def test_a_copy_too_many(recorded: Recorded) -> None:
    (message,) = found(recorded, placed([0, 1, 2], [3, 4, 5], [0, 6, 7], [1, 3, 5]))
    assert message.endswith("no copy of expert 5 on rank 3")


def test_a_map_that_is_wrong_everywhere_names_a_rank_and_its_experts(recorded: Recorded) -> None:
    (message,) = found(recorded, placed([7, 6, 5], [4, 3, 2], [1, 0, 7], [2, 5]))
    assert "holds experts" in message


def test_lost_choices(recorded: Recorded) -> None:
    served = recorded.slots(RIGHT)
    served[1] -= 4  # expert 1 on rank 0
    first, second = found(recorded, RIGHT, served_P=served)
    total = recorded.counts_SE[:, 1].sum()
    assert first == f"layer 7: expert 1 was chosen {total:,} times and served {total - 4:,}"
    assert "rank 0 served" in second
