"""The native `trace.npz` itself: to check it, to join several, or to store it uncompressed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from planner.trace.importers.found import CountBlock, Found, Given, TokenBlock, bad
from planner.trace.native import read_trace
from planner.trace.trace import CountTrace, TokenTrace

_LOST: Final = {"weights", "domain_id", "domain_names"}


def read(sources: Sequence[Path], given: Given) -> Found:
    """Open native traces of the same kind and layers."""
    del given
    reads = [read_trace(path) for path in sources]
    traces, first = [read.trace for read in reads], reads[0].trace
    for trace in traces[1:]:
        same = type(trace) is type(first) and np.array_equal(trace.layer_ids_L, first.layer_ids_L)
        if not same or (trace.num_experts, trace.top_k) != (first.num_experts, first.top_k):
            raise bad(trace.path, f"another kind, other layers or experts than {first.path}", "join like with like")
    layers = tuple(first.layer_ids_L.tolist())
    blocks: Iterator[TokenBlock] | Iterator[CountBlock]
    per_token = isinstance(first, TokenTrace)
    if per_token:
        blocks = _tokens([trace for trace in traces if isinstance(trace, TokenTrace)])
    else:
        blocks = _counts([trace for trace in traces if isinstance(trace, CountTrace)])
    found = Found(sources[0], "hidden", blocks, per_token, layers, first.num_experts, first.top_k)
    found.notes.extend(warning for read in reads for warning in read.warnings)
    lost = {name for trace in traces if isinstance(trace, TokenTrace) for name in _LOST & set(trace.source.headers)}
    if lost:
        found.notes.append(f"{', '.join(sorted(lost))} left out")
    return found


def _tokens(traces: Sequence[TokenTrace]) -> Iterator[TokenBlock]:
    after = 0
    for trace in traces:
        for start, ids in trace.blocks():
            part = slice(start, start + len(ids))

            def cut(column: NDArray[np.int64] | None, part: slice = part) -> NDArray[np.int64] | None:
                return None if column is None else column[part]

            sequences = cut(trace.seq_id_T)
            steps = cut(trace.step_id_T)
            yield TokenBlock(
                ids,
                None if sequences is None else sequences + after,
                cut(trace.pos_T),
                None if steps is None else steps + after,
            )
        numbers = [column.max() for column in (trace.seq_id_T, trace.step_id_T) if column is not None]
        after += int(max(numbers, default=-1)) + 1


def _counts(traces: Sequence[CountTrace]) -> Iterator[CountBlock]:
    for trace in traces:
        prefix = f"{trace.path.stem} " if len(traces) > 1 else ""
        for counts_LE, name in zip(trace.counts_SLE, trace.names_S, strict=True):
            yield CountBlock(counts_LE, prefix + name)
