"""Parting traces: no token lost, no sequence torn, both parts traces of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from planner.errors import UsageError
from planner.trace.native import read_trace
from planner.trace.split import Parting, by_domain, by_sequence, by_time, write_part
from planner.trace.trace import CountTrace, Trace


def tokens(folder: Path, **more: object) -> Trace:
    """Twelve tokens in five sequences of 4, 2, 3, 1 and 2; domains a, b, a, c, b."""
    lengths = [4, 2, 3, 1, 2]
    arrays: dict[str, Any] = {
        "expert_ids": np.arange(24).reshape(12, 2, 1) % 5,
        "weights": np.linspace(0, 1, 24, dtype=np.float32).reshape(12, 2, 1),
        "num_experts": 5,
        "layer_ids": [3, 7],
        "seq_id": np.repeat([9, 4, 6, 1, 2], lengths),
        "pos": np.concatenate([np.arange(length) for length in lengths]),
        "domain_id": np.repeat([0, 1, 0, 2, 1], lengths),
        "domain_names": ["a", "b", "c"],
        **more,
    }
    np.savez(folder / "trace.npz", **{name: value for name, value in arrays.items() if value is not None})
    return read_trace(folder / "trace.npz").trace


def counted(folder: Path) -> CountTrace:
    counts = np.arange(1, 4 * 2 * 3 + 1).reshape(4, 2, 3)
    np.savez(folder / "trace.npz", counts=counts, num_experts=3, topk=1, scenario_names=["w", "x", "y", "z"])
    trace = read_trace(folder / "trace.npz").trace
    assert isinstance(trace, CountTrace)
    return trace


def parts(trace: Trace, parting: Parting, folder: Path) -> list[dict[str, Any]]:
    """Both parts as arrays, read back as traces too."""
    found = []
    for name, keep in (("one", parting.planning), ("two", ~parting.planning)):
        write_part(trace, keep, folder / f"{name}.npz")
        read_trace(folder / f"{name}.npz")
        with np.load(folder / f"{name}.npz") as file:
            found.append({array: file[array] for array in file.files})
    return found


def test_by_time_whole_sequences_in_file_order(tmp_path: Path) -> None:
    trace = tokens(tmp_path)
    one, two = parts(trace, by_time(trace, 0.5), tmp_path)
    # Ends of sequences lie at 4, 6, 9, 10 tokens: 6 is half.
    assert one["seq_id"].tolist() == [9] * 4 + [4] * 2
    assert two["seq_id"].tolist() == [6] * 3 + [1] + [2] * 2
    with np.load(tmp_path / "trace.npz") as whole:
        for name in ("expert_ids", "weights", "pos", "domain_id"):
            assert np.array_equal(np.concatenate([one[name], two[name]]), whole[name])
            assert one[name].dtype == whole[name].dtype
        for name in ("num_experts", "layer_ids", "domain_names"):
            assert np.array_equal(one[name], whole[name])
            assert np.array_equal(two[name], whole[name])


def test_by_time_follows_engine_steps_where_there_are_some(tmp_path: Path) -> None:
    trace = tokens(tmp_path, step_id=[5, 1, 5, 1, 5, 1, 5, 1, 5, 1, 5, 1])
    planning = by_time(trace, 0.4).planning
    assert planning.tolist() == [False, True] * 6


def test_by_sequence_takes_turns(tmp_path: Path) -> None:
    trace = tokens(tmp_path)
    one, two = parts(trace, by_sequence(trace, 0.5), tmp_path)
    assert set(one["seq_id"].tolist()) == {4, 1}
    assert set(two["seq_id"].tolist()) == {9, 6, 2}
    third = by_sequence(counted(tmp_path), 0.25).planning
    assert third.tolist() == [False, False, False, True]


def test_how_many_went_where_is_told(tmp_path: Path) -> None:
    """Parts round to whole sequences, so the percentage asked for does not say it."""
    trace = tokens(tmp_path)
    assert by_sequence(trace, 0.5).how == "2 of 5 sequences, taken in turn"
    assert by_time(trace, 1e-9).how == "the first 1 of 5 sequences in file order"
    assert by_time(trace, 1 - 1e-9).how == "the first 4 of 5 sequences in file order"
    with pytest.raises(UsageError, match="one part would be empty"):
        by_sequence(trace, 0.1)
    assert by_sequence(counted(tmp_path), 0.25).how == "1 of 4 windows, taken in turn"


def test_by_domain_and_by_scenario(tmp_path: Path) -> None:
    trace = tokens(tmp_path)
    one, two = parts(trace, by_domain(trace, ["b"]), tmp_path)
    assert set(one["domain_id"].tolist()) == {0, 2}
    assert set(two["domain_id"].tolist()) == {1}
    windows = counted(tmp_path)
    one, two = parts(windows, by_domain(windows, ["x", "z"]), tmp_path)
    assert one["scenario_names"].tolist() == ["w", "y"]
    assert np.array_equal(two["counts"], windows.counts_SLE[[1, 3]])


def test_what_cannot_be_parted(tmp_path: Path) -> None:
    trace = tokens(tmp_path)
    with pytest.raises(UsageError, match="no domain d"):
        by_domain(trace, ["d"])
    with pytest.raises(UsageError, match="no domain is named"):
        by_domain(trace, [])
    with pytest.raises(UsageError, match="one part would be empty"):
        by_domain(trace, ["a", "b", "c"])
    bare = tokens(tmp_path, seq_id=None, pos=None, domain_id=None)
    assert by_time(bare, 0.25).planning.tolist() == [True] * 3 + [False] * 9
    with pytest.raises(UsageError, match="has no seq_id"):
        by_sequence(bare, 0.5)
    with pytest.raises(UsageError, match="has no domain_id"):
        by_domain(bare, ["a"])
    alone = tokens(tmp_path, seq_id=np.zeros(12, dtype=int))
    with pytest.raises(UsageError, match="only one"):
        by_time(alone, 0.5)
