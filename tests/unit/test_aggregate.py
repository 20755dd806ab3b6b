"""Counting in blocks, ranges and processes: the same numbers as counting one by one, in bounded memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planner.errors import InputError
from planner.trace import aggregate, batches, npz, trace
from planner.trace.aggregate import co_activation_counts, count_by, counts_of, pairs_of
from planner.trace.batches import running_batch, window_of_token
from planner.trace.native import read_trace
from planner.trace.trace import TokenTrace
from planner.trace.windows import cut

RNG = np.random.default_rng(3)
ON_DISK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def ids_of(tokens: int, layers: int = 3, experts: int = 7, top_k: int = 3) -> Any:
    ids = RNG.random((tokens, layers, experts)).argsort(axis=2)[:, :, :top_k]
    ids[RNG.random(ids.shape) < 0.1] = -1
    return ids


def slow_counts(ids: Any, part: Any, parts: int, experts: int) -> Any:
    counts = np.zeros((parts, ids.shape[1], experts), dtype=np.int64)
    for token, layers in enumerate(ids.tolist()):
        for layer, chosen in enumerate(layers):
            for expert in chosen:
                if expert >= 0:
                    counts[part[token], layer, expert] += 1
    return counts


def slow_pairs(ids: Any, experts: int) -> Any:
    pairs = np.zeros((ids.shape[1], experts, experts), dtype=np.int64)
    for layers in ids.tolist():
        for layer, chosen in enumerate(layers):
            for place, one in enumerate(chosen):
                for other in chosen[:place] + chosen[place + 1 :]:
                    if one >= 0 and other >= 0:
                        pairs[layer, one, other] += 1
    return pairs


def write(path: Path, ids: Any, *, compressed: bool = False, **columns: Any) -> TokenTrace:
    save = np.savez_compressed if compressed else np.savez
    save(path, expert_ids=ids, num_experts=7, **columns)
    read = read_trace(path).trace
    assert isinstance(read, TokenTrace)
    return read


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int64])
def test_one_block(monkeypatch: pytest.MonkeyPatch, dtype: type) -> None:
    monkeypatch.setattr(aggregate, "_SLICE_CHOICES", 100)
    ids, part = ids_of(300).astype(dtype), RNG.integers(0, 5, 300).astype(np.uint8)
    np.testing.assert_array_equal(counts_of(ids, part, 5, 7), slow_counts(ids, part, 5, 7))
    np.testing.assert_array_equal(pairs_of(ids, 7), slow_pairs(ids, 7))


@pytest.mark.parametrize("compressed", [False, True])
def test_ranges_in_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compressed: bool) -> None:
    monkeypatch.setattr(aggregate, "_RANGE_CHOICES", 1000)
    monkeypatch.setattr(aggregate, "available_cores", lambda: 2)
    ids, part = ids_of(500), RNG.integers(0, 4, 500)
    read = write(tmp_path / "t.npz", ids, compressed=compressed)
    np.testing.assert_array_equal(count_by(read, part, 4), slow_counts(ids, part, 4, 7))
    np.testing.assert_array_equal(co_activation_counts(read), slow_pairs(ids, 7))


def test_a_bad_id_in_a_process_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aggregate, "_RANGE_CHOICES", 1000)
    monkeypatch.setattr(aggregate, "available_cores", lambda: 2)
    ids = ids_of(500)
    ids[430, 1, 2] = 7
    with pytest.raises(InputError, match="expert id 7 in layer 1"):
        count_by(write(tmp_path / "t.npz", ids), np.zeros(500, dtype=np.uint8), 1)


@ON_DISK
@given(data=st.data(), rising=st.booleans(), step=st.integers(1, 40))
def test_windows_in_blocks_are_those_made_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: st.DataObject, rising: bool, step: int
) -> None:
    """Interleaved sequences, positions rising or not; the oracle sorts all tokens at once."""
    monkeypatch.setattr(trace, "COLUMN_ROWS", 7)
    monkeypatch.setattr(npz, "CHUNK_BYTES", 500)
    monkeypatch.setattr(batches, "_BLOCK", 11)
    seq = np.array(data.draw(st.lists(st.integers(-3, 9), min_size=20, max_size=90)))
    pos = np.arange(len(seq)) if rising else np.array(data.draw(st.permutations(range(len(seq)))))
    read = write(tmp_path / "t.npz", ids_of(len(seq)), seq_id=seq.astype(np.int16), pos=pos)
    window, how = window_of_token(read, "decode", step)
    step_of, slots = running_batch(seq, pos, step)
    assert f"a running batch of {slots} sequence{'s' if slots > 1 else ''}" in how
    _, atom, tokens = np.unique(step_of, return_inverse=True, return_counts=True)
    wanted = min(max(round(len(seq) / step), 16), 64, len(seq))
    middle = np.cumsum(tokens) - tokens / 2
    _, expected = np.unique(np.minimum(middle * wanted // len(seq), wanted - 1), return_inverse=True)
    assert window.tolist() == expected[atom].tolist()


def test_recorded_steps_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "COLUMN_ROWS", 7)
    steps = RNG.integers(-5, 400, 300)
    window, how = window_of_token(write(tmp_path / "t.npz", ids_of(300), step_id=steps), "decode", 10)
    assert window.tolist() == np.unique(steps, return_inverse=True)[1].tolist()
    assert how == f"{len(np.unique(steps))} engine steps as recorded"


def peak_bytes(path: Path, tokens: int) -> int:
    """Most memory taken while a trace is cut into windows and its pairs are counted."""
    read = write(path, ids_of(tokens).astype(np.int8), seq_id=np.repeat(np.arange(tokens // 100), 100))
    tracemalloc.start()
    cut([read], "decode", 64)
    co_activation_counts(read)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_does_not_grow_with_the_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside one byte for each token: its window."""
    monkeypatch.setattr(trace, "COLUMN_ROWS", 1000)
    monkeypatch.setattr(npz, "CHUNK_BYTES", 20_000)
    monkeypatch.setattr(aggregate, "_SLICE_CHOICES", 10_000)
    short, long = (peak_bytes(tmp_path / f"{tokens}.npz", tokens) for tokens in (40_000, 160_000))
    assert long < short + 3 * 120_000
