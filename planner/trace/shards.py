"""Counts the shards of a trace that no single machine holds: the functions that a cluster's engine runs.

Ray Data, Spark or Dask maps `count_row` or `count_shard` over shards (docs/traces.md, "A terabyte of routing"). Both
take and give plain values, and the rows they give may be gathered in any order. `write_windows` makes the trace.

Legend: L traced layers, E experts, S windows.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.errors import InputError, Place, Problem
from planner.trace.aggregate import counts_of
from planner.trace.choices import choice_problems, looks_sound
from planner.trace.native import read_trace
from planner.trace.trace import CountTrace
from planner.trace.write import write_npz

Row = Mapping[str, Any]


def count_shard(path: str | Path) -> dict[str, Any]:
    """Count a `trace.npz` in this process.

    Returns:
        path: as given.
        tokens: counted; of counted windows, as many as their choices make.
        counts: how often each expert is chosen [L, E].
        layer_ids, num_experts, topk: as in the trace.

    Raises:
        InputError: the shard is broken, or holds choices that cannot be.
    """
    trace = read_trace(Path(path)).trace
    if isinstance(trace, CountTrace):
        counts_LE = trace.counts_SLE.sum(axis=0)
        tokens = int(counts_LE[0].sum()) // trace.top_k
    else:
        counts_LE, tokens = np.zeros((len(trace.layer_ids_L), trace.num_experts), dtype=np.int64), trace.num_tokens
        for _, ids in trace.blocks():
            if not looks_sound(ids, trace.num_experts):
                raise InputError(choice_problems(trace))
            counts_LE += counts_of(ids, np.zeros(len(ids), dtype=np.uint8), 1, trace.num_experts)[0]
    return {
        "path": str(path),
        "tokens": tokens,
        "counts": counts_LE,
        "layer_ids": trace.layer_ids_L,
        "num_experts": trace.num_experts,
        "topk": trace.top_k,
    }


def count_row(row: Row) -> dict[str, Any]:
    """The same for a shard in memory: a row of `path` and `bytes`, as engines read binary files."""
    with tempfile.TemporaryDirectory(prefix="ep-plan-") as folder:
        local = Path(folder) / "shard.npz"
        local.write_bytes(row["bytes"])
        try:
            return count_shard(local) | {"path": str(row["path"])}
        except InputError as error:
            where = Place(str(row["path"]))
            raise InputError([Problem(problem.message, where, problem.hint) for problem in error.problems]) from None


def write_windows(rows: Iterable[Row], window_of: Callable[[str], str], output: Path) -> int:
    """Add counted shards up to windows, and write them as a trace of counts, the windows in the order of their names.

    Args:
        rows: what `count_shard` or `count_row` gave, in any order.
        window_of: the name of a shard's window, from its path: its day and hour, say.
        output: the trace.npz.

    Returns:
        Tokens counted.

    Raises:
        InputError: there are no shards, one comes twice, or they are of different models.
    """
    windows: dict[str, NDArray[np.int64]] = {}
    seen: set[str] = set()
    first: Row | None = None
    tokens = 0
    for row in rows:
        first = first or row
        _check(row, first, seen)
        name = window_of(row["path"])
        counts_LE = np.asarray(row["counts"], dtype=np.int64).reshape(len(row["layer_ids"]), -1)
        windows[name] = windows.get(name, 0) + counts_LE
        tokens += int(row["tokens"])
    if first is None:
        raise InputError(Problem("no shards were counted", hint="is the address of the shards right?"))
    names = sorted(windows)
    write_npz(
        output,
        {
            "counts": np.stack([windows[name] for name in names]),
            "layer_ids": np.asarray(first["layer_ids"], dtype=np.int64),
            "num_experts": np.array(int(first["num_experts"])),
            "topk": np.array(int(first["topk"])),
            "scenario_names": np.array(names),
        },
    )
    return tokens


def _check(row: Row, first: Row, seen: set[str]) -> None:
    where = Place(str(row["path"]))
    if row["path"] in seen:
        raise InputError(Problem("this shard is counted twice", where, "an engine that retries? keep one row of each"))
    seen.add(row["path"])
    same = all(row[name] == first[name] for name in ("num_experts", "topk"))
    if not same or not np.array_equal(row["layer_ids"], first["layer_ids"]):
        raise InputError(Problem(f"other layers, experts or top-k than {first['path']}", where, "join like with like"))
