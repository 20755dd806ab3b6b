"""Tokens that a plan books, against a count of single choices in plain Python."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from planner.cost.booking import book
from planner.cost.served import rank_tokens, slot_tokens
from planner.cost.step import split_cost
from planner.plan.placement import Placement
from planner.plan.split import Split
from tests import building


def served(counts: list[int], slots: list[int]) -> list[int]:
    """Choices that each slot serves: the i-th choice of an expert goes to its copy i mod copies."""
    tokens = [0] * len(slots)
    for expert, count in enumerate(counts):
        copies = [slot for slot, held in enumerate(slots) if held == expert]
        for choice in range(count):
            tokens[copies[choice % len(copies)]] += 1
    return tokens


@given(st.integers(0, 10**6))
def test_copies_share_choice_by_choice(seed: int) -> None:
    rng = np.random.default_rng(seed)
    experts, ranks = int(rng.integers(2, 7)), int(rng.integers(2, 5))
    slots_R = np.full(ranks, int(rng.integers(-(-experts // ranks), experts + 1)))
    slots_R[1:] -= int(slots_R[0] > 1 and slots_R.sum() - ranks + 1 >= experts)  # sometimes an empty slot
    expert_P = building.random_placement(rng, experts, slots_R)
    counts_SE = rng.integers(0, 30, (3, experts))
    plain = [served(window, expert_P.tolist()) for window in counts_SE.tolist()]
    assert slot_tokens(counts_SE, expert_P).tolist() == plain
    width = int(slots_R[0])
    by_rank = [[sum(row[start : start + width]) for start in range(0, len(row), width)] for row in plain]
    assert rank_tokens(counts_SE, expert_P, width).tolist() == by_rank
    assert rank_tokens(counts_SE, expert_P, width).sum() == counts_SE.sum()


def test_the_booked_step_adds_up() -> None:
    # Two GPUs, two experts of which the second has a copy on both; one window of 7 and 4 choices.
    model = building.model(experts=2, top_k=1, layers=1)
    windows = building.counted(np.array([[[7, 4]]]), [0], top_k=1)
    instance = building.instance(model, building.topology(1, 2), windows=windows)
    cost = split_cost(instance, Split(tp=1, dp=2, pp=1, ep=2), 1)
    record = book(cost, (range(1),), Placement((0,), 2, np.array([[0, 1, 1, -1]])))
    assert record.rank_tokens == ((7 + 2, 2),)
    # In a step the 11 choices stand for shares: rank 0 serves 9 of 11, so max / mean = 2 * 9 / 11.
    assert abs(record.layer_imbalance[0] - 18 / 11) < 1e-12
    assert record.balancedness is not None
    assert abs(record.balancedness - 11 / 18) < 1e-12
    assert abs(sum(term.seconds for term in record.terms) - record.step_s) < 1e-12
    assert abs(record.tokens_per_s * record.step_s - 128) < 1e-9  # 64 tokens on each of 2 GPUs
    assert sum(line.bytes for line in record.memory[0]) == max(record.memory_bytes)
