"""Which slot serves which choice, and how many are booked, against a loop over tokens in plain Python."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from planner.cost.booking import book
from planner.cost.served import ByHome, Pools, rank_tokens, slot_tokens
from planner.cost.sharing import Sharing
from planner.cost.step import split_cost
from planner.measure.replay import recorded_windows, serving_slots
from planner.plan.placement import Placement
from planner.plan.split import Split
from planner.trace.homes import Spread
from planner.trace.native import read_trace
from planner.trace.windows import cut, subset
from tests import building

Ints = NDArray[np.int64]


def plain(ids_TK: Any, slots: list[int], node_R: list[int], etp: int, edp: int, rule: str) -> list[list[int]]:
    """The slot that serves each choice of a window, one after the other."""
    ranks = len(node_R)
    width = len(slots) // ranks
    turns: Counter[tuple[int, tuple[int, ...]]] = Counter()
    serving = []
    for token, chosen in enumerate(ids_TK.tolist()):
        gpu = token % (etp * ranks * edp)
        home = gpu // etp % ranks
        row = []
        for expert in chosen:
            every = tuple(slot for slot, held in enumerate(slots) if held == expert)
            own = tuple(slot for slot in every if slot // width == home)
            near = tuple(slot for slot in every if node_R[slot // width] == node_R[home])
            pool = every if rule == "even" else own or near or every
            row.append(-1 if expert < 0 else pool[turns[expert, pool] % len(pool)])
            turns[expert, pool] += 1
        serving.append(row)
    return serving


def count(serving: list[list[int]], slots: int) -> list[int]:
    """Choices that each slot served."""
    found = [0] * slots
    for row in serving:
        for slot in row:
            if slot >= 0:
                found[slot] += 1
    return found


def random_map(rng: np.random.Generator, experts: int, ranks: int) -> Ints:
    """Slots of one layer: every expert somewhere, copies anywhere, also twice on a rank, some slots empty."""
    width = -(-experts // ranks) + int(rng.integers(1, 4))
    expert_P = rng.integers(-1, experts, ranks * width)
    expert_P[rng.permutation(len(expert_P))[:experts]] = np.arange(experts)
    return expert_P


def random_choices(rng: np.random.Generator, tokens: int, experts: int) -> Ints:
    ids_TK = (rng.random((tokens, experts)) * rng.dirichlet(np.ones(experts))).argsort(axis=1)[:, -2:]
    ids_TK[rng.random(ids_TK.shape) < 0.1] = -1
    return ids_TK


@given(st.integers(0, 10**6), st.sampled_from(["even", "nearest"]))
def test_slots_serve_choice_by_choice(seed: int, rule: Any) -> None:
    rng = np.random.default_rng(seed)
    experts, ranks, etp, edp = (int(rng.integers(2, high)) for high in (8, 7, 4, 3))
    node_R = np.sort(rng.integers(0, 3, ranks))
    node_R -= node_R.min()
    expert_P, ids_TK = random_map(rng, experts, ranks), random_choices(rng, int(rng.integers(1, 80)), experts)
    sharing = Sharing(rule, node_R)
    home_T = Spread(ranks, etp).home(np.arange(len(ids_TK)))
    serving = plain(ids_TK, expert_P.tolist(), node_R.tolist(), etp, edp, rule)
    assert serving_slots(ids_TK, expert_P, experts, sharing, home_T).tolist() == serving
    counts_SE = np.bincount(ids_TK[ids_TK >= 0], minlength=experts)[None]
    by_home = None
    if rule == "nearest":
        chosen_EH = np.zeros((experts, ranks), dtype=np.int32)
        for home, row in zip(home_T.tolist(), ids_TK.tolist(), strict=True):
            for expert in row:
                chosen_EH[expert, home] += expert >= 0
        by_home = ByHome(sharing, np.arange(experts), chosen_EH[None])
    served = count(serving, len(expert_P))
    assert slot_tokens(counts_SE, expert_P, by_home).tolist() == [served]
    by_rank = np.array(served).reshape(ranks, -1).sum(axis=1).tolist()
    assert rank_tokens(counts_SE, expert_P, len(expert_P) // ranks, by_home).tolist() == [by_rank]


def test_homes_that_share_slots_take_turns_on_them() -> None:
    # Two nodes of two ranks. Expert 0 on rank 0, and twice on rank 3; expert 1 on rank 1 only.
    expert_P = np.array([0, -1, 1, -1, -1, -1, 0, 0])
    pools = Pools.of(expert_P, 2, Sharing("nearest", np.array([0, 0, 1, 1])))
    slots = [pools.slots(np.zeros(5, dtype=np.int64), np.full(5, home)).tolist() for home in range(4)]
    assert slots == [[0] * 5, [0] * 5, [6, 7, 6, 7, 6], [6, 7, 6, 7, 6]]
    in_turn = pools.slots(np.zeros(5, dtype=np.int64), np.array([2, 3, 0, 3, 2]))
    assert in_turn.tolist() == [6, 7, 0, 6, 7]
    assert pools.slots(np.ones(4, dtype=np.int64), np.arange(4)).tolist() == [2] * 4


SPLITS = [
    (2, 2, Split(tp=1, dp=4, pp=1, ep=4)),
    (3, 2, Split(tp=1, dp=6, pp=1, ep=6)),
    (2, 4, Split(tp=2, dp=4, pp=1, ep=4, etp=2)),
    (2, 4, Split(tp=1, dp=8, pp=1, ep=4, edp=2)),
    (2, 4, Split(tp=1, dp=4, pp=2, ep=2, edp=2, micro_batches=2)),
    (1, 4, Split(tp=1, dp=4, pp=1, ep=4)),
    (1, 4, Split(tp=1, dp=4, pp=1, ep=1, edp=4)),
]


@pytest.mark.parametrize("rule", ["even", "nearest"])
@pytest.mark.parametrize(("nodes", "per_node", "split"), SPLITS, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_what_is_booked_is_what_the_replayed_tokens_are_served(
    tmp_path: Path, nodes: int, per_node: int, split: Split, rule: Any, seed: int
) -> None:
    """Traces of tokens and of counts together; one layer of three is not traced."""
    rng = np.random.default_rng(seed)
    experts, traced = 8, [0, 2]
    ids = np.stack([random_choices(rng, 300, experts) for _ in traced], axis=1)
    np.savez(tmp_path / "a.npz", expert_ids=ids, num_experts=experts, layer_ids=traced, step_id=np.arange(300) // 50)
    np.savez(tmp_path / "b.npz", expert_ids=ids[:99], num_experts=experts, layer_ids=traced)
    counts = rng.integers(0, 60, (3, 2, experts))
    np.savez(tmp_path / "c.npz", counts=counts, num_experts=experts, topk=2, layer_ids=traced)
    traces = [read_trace(tmp_path / f"{name}.npz").trace for name in "abc"]
    windows = cut(traces, "decode", 40)
    keep = list(range(0, windows.num_windows, 2)) if seed == 2 else list(range(windows.num_windows))
    using = building.constants().model_copy(update={"copy_rule": rule})
    on = building.topology(nodes, per_node)
    made = building.instance(building.model(experts=experts, layers=3), on, windows=subset(windows, keep), using=using)
    expert_LP = np.stack(
        [building.random_placement(rng, experts, np.full(split.ep, -(-8 // split.ep))) for _ in range(3)]
    )
    if split.ep > 1:  # copies, also of an expert that the rank holds already
        more = rng.integers(0, experts, (3, split.ep, 2))
        expert_LP = np.concatenate([expert_LP.reshape(3, split.ep, -1), more], axis=2).reshape(3, -1)
    width = expert_LP.shape[1] // split.ep
    cost = split_cost(made, split, expert_LP.shape[1] - experts)
    cuts = (range(3),) if split.pp == 1 else (range(1), range(1, 3))
    booked = book(cost, cuts, Placement((0, 1, 2), width, expert_LP)).rank_tokens
    replayed = list(recorded_windows(traces, "decode", 40))
    gpus = split.stage_gpus // split.edp // split.etp
    node_R = [index * split.etp // per_node for index in range(gpus)]
    for column, layer in enumerate(traced):
        total = np.zeros(expert_LP.shape[1], dtype=np.int64)
        for window in keep:
            ids_TK, slots = replayed[window].ids_TLK[:, column], expert_LP[layer].tolist()
            total += count(plain(ids_TK, slots, node_R, split.etp, split.edp, rule), len(slots))
        assert list(booked[layer]) == total.reshape(split.ep, -1).sum(axis=1).tolist()
    assert set(booked[1]) == {0}
