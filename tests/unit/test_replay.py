"""The replayed routing is what was recorded and booked, token by token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from planner.cost.served import rank_tokens, slot_tokens
from planner.measure.replay import even_window, recorded_windows, serving_slots
from planner.trace.native import read_trace
from planner.trace.windows import cut
from tests.building import random_placement, uneven_slots


@pytest.mark.parametrize("columns", ["none", "sequences", "steps"])
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_windows_are_those_of_planning(tmp_path: Path, columns: str, phase: str) -> None:
    rng = np.random.default_rng(3)
    tokens, layers, experts = 700, 3, 10
    ids = rng.random((tokens, layers, experts)).argsort(axis=2)[..., :3]
    ids[rng.random(ids.shape) < 0.05] = -1
    extra: dict[str, Any] = {}
    if columns == "sequences":
        extra = {"seq_id": np.sort(rng.integers(0, 40, tokens))}
    if columns == "steps":
        extra = {"step_id": rng.integers(0, 5, tokens)}
    np.savez(tmp_path / "a.npz", expert_ids=ids.astype(np.int16), num_experts=experts, **extra)
    np.savez(tmp_path / "b.npz", expert_ids=ids[:200].astype(np.int16), num_experts=experts)
    traces = [read_trace(tmp_path / name).trace for name in ("a.npz", "b.npz")]
    planned = cut(traces, phase, 50)  # type: ignore[arg-type]
    replayed = list(recorded_windows(traces, phase, 50))  # type: ignore[arg-type]
    assert [window.num_tokens for window in replayed] == planned.tokens_S.tolist()
    for window, counts_LE in zip(replayed, planned.counts_SLE, strict=True):
        for layer in range(layers):
            chosen = window.ids_TLK[:, layer]
            assert np.array_equal(np.bincount(chosen[chosen >= 0], minlength=experts), counts_LE[layer])


def test_recorded_weights_are_used(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    ids = rng.random((64, 2, 6)).argsort(axis=2)[..., :2]
    weights = rng.random((64, 2, 2)).astype(np.float16)
    np.savez(tmp_path / "t.npz", expert_ids=ids, num_experts=6, weights=weights, step_id=np.arange(64) // 32)
    first, second = recorded_windows([read_trace(tmp_path / "t.npz").trace], "decode", 32)
    assert np.array_equal(first.weights_TLK, weights[:32].astype(np.float32))
    assert np.array_equal(second.weights_TLK, weights[32:].astype(np.float32))


def test_tokens_made_from_counts_choose_as_counted(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    counts = rng.integers(0, 40, (3, 2, 8))
    counts[0, 0] = [100, 1, 0, 0, 0, 0, 0, 3]  # one expert in nearly every token
    np.savez(tmp_path / "c.npz", counts=counts, num_experts=8, topk=2)
    windows = list(recorded_windows([read_trace(tmp_path / "c.npz").trace], "decode", 10))
    assert len(windows) == 3
    for window, counts_LE in zip(windows, counts, strict=True):
        for layer in range(2):
            chosen_TK = window.ids_TLK[:, layer]
            assert np.array_equal(np.bincount(chosen_TK[chosen_TK >= 0], minlength=8), counts_LE[layer])
            for token in chosen_TK.tolist():
                held = [expert for expert in token if expert >= 0]
                assert len(held) == len(set(held))


@pytest.mark.parametrize("seed", range(20))
def test_copies_share_as_booked(seed: int) -> None:
    rng = np.random.default_rng(seed)
    experts, ranks = int(rng.integers(4, 10)), int(rng.integers(2, 5))
    slots_R = uneven_slots(rng, max(experts, ranks) + int(rng.integers(0, 4)), ranks, experts)
    expert_P = random_placement(rng, experts, slots_R)
    ids = rng.random((50, experts)).argsort(axis=1)[:, :2]
    ids[rng.random(ids.shape) < 0.1] = -1
    slots = serving_slots(ids, expert_P, experts)
    assert np.array_equal(slots < 0, ids < 0)
    assert np.array_equal(expert_P[slots[slots >= 0]], ids[ids >= 0])
    served_P = np.bincount(slots[slots >= 0], minlength=len(expert_P))
    counts_SE = np.bincount(ids[ids >= 0], minlength=experts)[None]
    assert np.array_equal(served_P, slot_tokens(counts_SE, expert_P)[0])
    per_rank = len(expert_P) // ranks
    assert np.array_equal(served_P.reshape(ranks, -1).sum(axis=1), rank_tokens(counts_SE, expert_P, per_rank)[0])


def test_the_choices_of_an_expert_go_round_its_copies_in_order() -> None:
    expert_P = np.array([0, 1, 0, 2, 0, -1])  # expert 0 on ranks 0, 1, 2
    ids = np.array([[0, 1], [0, 2], [0, -1], [2, 0], [0, 1]])
    assert serving_slots(ids, expert_P, 3).tolist() == [[0, 1], [2, 3], [4, -1], [3, 0], [2, 1]]


def test_a_window_cycled_to_more_tokens_repeats_itself() -> None:
    window = even_window(2, 8, 2, 10)
    longer = window.cycled(25)
    assert np.array_equal(longer.ids_TLK[:10], window.ids_TLK)
    assert np.array_equal(longer.ids_TLK[10:20], window.ids_TLK)
    assert np.array_equal(longer.ids_TLK[20:], window.ids_TLK[:5])
