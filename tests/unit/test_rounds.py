"""The order of moves within memory: against every order there is, and what must hold at any time."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest

from planner.capacity.migration import migration
from planner.capacity.rounds import Order, in_rounds
from planner.cost.booking import memory_G
from planner.cost.instance import Instance
from planner.cost.step import split_cost
from planner.plan.placement import Placement
from planner.plan.split import Split
from tests import building

Sets = list[set[int]]
SWAP = [[0, 1, 2, 3], [2, 1, 0, 3]]
SLOT = 3 * 64 * 32 * 2


def exists(held: Sets, wanted: Sets, free: Sequence[int]) -> bool:
    """Whether there is any order: all states that can be reached by dropping and bringing one expert at a time."""
    slots, start = [len(one) for one in held], tuple(map(frozenset, held))
    seen, left = {start}, [start]
    while left:
        now = left.pop()
        if all(new <= old for new, old in zip(wanted, now, strict=True)):
            return True
        for rank, experts in enumerate(now):
            others = frozenset().union(*(one for other, one in enumerate(now) if other != rank))
            nexts = [experts - {expert} for expert in (experts - wanted[rank]) & others]
            if len(experts) < slots[rank] + free[rank]:
                nexts += [experts | {expert} for expert in wanted[rank] - experts]
            for one in nexts:
                state = (*now[:rank], one, *now[rank + 1 :])
                if state not in seen:
                    seen.add(state)
                    left.append(state)
    return False


def followed(order: Order, held: Sets, free: Sequence[int], experts: int) -> Sets:
    """Do what an order says; no expert is lost, no rank overflows, every source holds what it sends."""
    now, slots = [set(one) for one in held], [len(one) for one in held]
    for part in order.rounds:
        for expert, rank in part.gives_way:
            now[rank].remove(expert)
            assert set().union(*now) == set(range(experts))
        for one in part.travels:
            assert one.expert in now[one.source]
        for one in part.travels:
            assert one.expert not in now[one.target]
            now[one.target].add(one.expert)
        for rank, one_rank in enumerate(now):
            assert len(one_rank) <= slots[rank] + free[rank] + order.lacking.count(rank)
            assert len(one_rank) - slots[rank] <= order.most_R[rank]
    return now


def random_moves(rng: random.Random) -> tuple[Sets, Sets, list[int], int]:
    ranks, slots = rng.randint(2, 4), rng.randint(1, 3)
    experts = rng.randint(max(slots, 2), max(min(ranks * slots, 6), slots, 2))
    placed: list[Sets] = []
    while len(placed) < 2:
        one = [set(rng.sample(range(experts), slots)) for _ in range(ranks)]
        if set().union(*one) == set(range(experts)):
            placed.append(one)
    return placed[0], placed[1], [rng.choice([0, 0, 1, 3]) for _ in range(ranks)], experts


def test_no_expert_is_ever_without_a_copy_and_no_rank_too_full() -> None:
    rng = random.Random(0)
    stuck = several = 0
    for _ in range(600):
        held, wanted, free, experts = random_moves(rng)
        if rng.random() < 0.5:
            free = [0] * len(free)
        order = in_rounds(held, wanted, free, np.zeros((len(held),) * 2, dtype=np.int64))
        now = followed(order, held, free, experts)
        assert all(new <= old for new, old in zip(wanted, now, strict=True))
        assert bool(order.lacking) is not exists(held, wanted, free)
        moves = sum(len(new - old) for new, old in zip(wanted, held, strict=True))
        assert sum(len(part.travels) for part in order.rounds) == moves  # nobody is a stop on the way
        stuck, several = stuck + bool(order.lacking), several + (len(order.rounds) > 1)
    assert stuck > 20
    assert several > 100


def test_with_room_for_everything_there_is_one_round() -> None:
    held, wanted = [{0, 1}, {2, 3}, {4, 5}], [{2, 3}, {4, 5}, {0, 1}]
    order = in_rounds(held, wanted, [2, 2, 2], np.zeros((3, 3), dtype=np.int64))
    assert [len(part.travels) for part in order.rounds] == [6]
    assert order.most_R == (2, 2, 2)


def test_a_copy_is_overwritten_in_place() -> None:
    """Rank 1 drops its copy of 0, which rank 0 keeps, and takes 2 without any room to spare; then rank 2 has room."""
    order = in_rounds([{0}, {0}, {1}], [{0}, {1}, {0}], [0, 0, 0], np.zeros((3, 3), dtype=np.int64))
    assert [(part.gives_way, [(t.expert, t.target) for t in part.travels]) for part in order.rounds] == [
        (((0, 1),), [(1, 1)]),
        (((1, 2),), [(0, 2)]),
    ]
    assert order.lacking == ()
    assert order.most_R == (0, 0, 0)


def with_free(num_bytes: int) -> tuple[Instance, Split]:
    """Two GPUs that hold two experts each, and have so much memory left."""
    of, split = building.model(experts=4, layers=1, hidden=64, width=32), Split(1, 2, 1, 2)
    roomy = building.instance(of, building.topology(1, 2))
    placed = Placement((0,), 2, np.array(SWAP[:1]))
    used = int(memory_G(split_cost(roomy, split, 0), (range(1),), placed).max())
    card = building.gpu(memory=f"{used + num_bytes} B")
    return building.instance(of, building.topology(1, 2, of=card)), split


@pytest.mark.parametrize(("free", "lacking", "rounds"), [(SLOT, 0, 1), (SLOT - 1, 1, 2), (0, SLOT, 2)])
def test_a_swap_needs_room_for_one_expert(free: int, lacking: int, rounds: int) -> None:
    made, split = with_free(free)
    before, after = (Placement((0,), 2, np.array([sorted(row[:2]) + sorted(row[2:])])) for row in SWAP)
    moved = migration(split_cost(made, split, 0), (range(1),), before, after)
    assert moved.lacking_bytes == lacking
    assert len(moved.layers[0].rounds) == rounds
    assert moved.received_bytes == SLOT
    assert moved.layers[0].extra_bytes_R == ((SLOT, SLOT) if rounds == 1 else (SLOT, 0))
    assert moved.bytes_by_level == {"node": 2 * SLOT}
