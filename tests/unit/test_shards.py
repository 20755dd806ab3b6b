"""Shards counted one by one are the trace; called as the engines call it: rows in, rows out, in other processes."""

from __future__ import annotations

import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from planner.errors import InputError
from planner.trace.native import read_trace
from planner.trace.shards import count_row, count_shard, write_windows
from planner.trace.trace import CountTrace

EXPERTS = 16
LAYERS = [3, 5, 6]


def shards(folder: Path) -> tuple[list[Path], NDArray[Any]]:
    """Six shards of two hours, one of them compressed, and all their choices."""
    ids = np.random.default_rng(0).random((600, 3, EXPERTS)).argsort(axis=2)[:, :, :4]
    ids[7, 1, 3] = -1
    paths = []
    for index, part in enumerate(np.split(ids, 6)):
        paths.append(folder / f"2026-05-01T{8 + index // 3:02}-{index}.npz")
        save = np.savez_compressed if index == 2 else np.savez
        save(paths[-1], expert_ids=part.astype(np.int8), num_experts=EXPERTS, layer_ids=LAYERS)
    return paths, ids


def hour(path: str) -> str:
    return Path(path).name[:13]


def holds(path: Path, ids: NDArray[Any]) -> None:
    """The trace is the choices of both hours, counted one by one."""
    trace = read_trace(path).trace
    assert isinstance(trace, CountTrace)
    assert (trace.num_experts, trace.top_k, trace.layer_ids_L.tolist()) == (EXPERTS, 4, LAYERS)
    assert trace.names_S == ("2026-05-01T08", "2026-05-01T09")
    for window, part in zip(trace.counts_SLE, np.split(ids, 2), strict=True):
        for row, counts_E in enumerate(window.tolist()):
            chosen = part[:, row].reshape(-1).tolist()
            assert counts_E == [chosen.count(expert) for expert in range(EXPERTS)]


def test_paths_in_other_processes_in_any_order(tmp_path: Path) -> None:
    """As Dask or Spark call it: the function and what it gives are pickled."""
    paths, ids = shards(tmp_path)
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        rows = list(pool.map(count_shard, map(str, paths)))
    assert write_windows(reversed(rows), hour, tmp_path / "trace.npz") == 600
    holds(tmp_path / "trace.npz", ids)


def test_bytes_as_rows(tmp_path: Path) -> None:
    """As Ray Data calls it: a dict in, a dict of numbers, text and arrays out."""
    paths, ids = shards(tmp_path)
    function = pickle.loads(pickle.dumps(count_row))
    rows = [function({"path": f"s3://routing/{path.name}", "bytes": path.read_bytes()}) for path in paths]
    assert all(type(value) in (str, int, np.ndarray) for row in rows for value in row.values())
    assert rows[0]["path"] == f"s3://routing/{paths[0].name}"
    write_windows(iter(rows), hour, tmp_path / "trace.npz")
    holds(tmp_path / "trace.npz", ids)


def test_shards_that_are_counts_already(tmp_path: Path) -> None:
    counts = np.arange(1, 97).reshape(2, 3, EXPERTS)
    np.savez(tmp_path / "a.npz", counts=counts, num_experts=EXPERTS, topk=4, layer_ids=LAYERS)
    row = count_shard(tmp_path / "a.npz")
    np.testing.assert_array_equal(row["counts"], counts.sum(axis=0))
    assert row["tokens"] == counts[:, 0].sum() // 4


def test_what_is_wrong_is_told_with_the_address_of_the_shard(tmp_path: Path) -> None:
    paths, _ = shards(tmp_path)
    rows = [count_shard(path) for path in paths]
    with pytest.raises(InputError, match="no shards were counted"):
        write_windows([], hour, tmp_path / "trace.npz")
    with pytest.raises(InputError, match="counted twice"):
        write_windows([*rows, rows[2]], hour, tmp_path / "trace.npz")
    with pytest.raises(InputError, match="other layers, experts or top-k"):
        write_windows([*rows, rows[0] | {"path": "x", "topk": 3}], hour, tmp_path / "trace.npz")
    assert not (tmp_path / "trace.npz").exists()
    with pytest.raises(InputError, match=r"s3://routing/a\.npz: not a readable \.npz"):
        count_row({"path": "s3://routing/a.npz", "bytes": b"cut off"})
    np.savez(tmp_path / "bad.npz", expert_ids=np.full((9, 3, 4), 99), num_experts=EXPERTS, layer_ids=LAYERS)
    with pytest.raises(InputError, match="expert id 99 in layer 3 of token 0"):
        count_shard(tmp_path / "bad.npz")
