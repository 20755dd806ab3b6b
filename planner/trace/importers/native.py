"""The native `trace.npz` itself: to check it, to join several, or to store it uncompressed.

Legend: T tokens of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from planner.trace.domains import domains_of
from planner.trace.importers.found import CountBlock, Found, Given, TokenBlock, bad
from planner.trace.native import read_trace
from planner.trace.trace import CountTrace, TokenTrace

_LIMIT_ID: Final = 1 << 63
Part = Callable[[slice], NDArray[Any]]


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
    per_token = isinstance(first, TokenTrace)
    found = Found(sources[0], "hidden", iter(()), per_token, layers, first.num_experts, first.top_k)
    found.notes.extend(warning for read in reads for warning in read.warnings)
    if per_token:
        return replace(found, blocks=_tokens([trace for trace in traces if isinstance(trace, TokenTrace)], found))
    return replace(found, blocks=_counts([trace for trace in traces if isinstance(trace, CountTrace)]))


def _tokens(traces: Sequence[TokenTrace], found: Found) -> Iterator[TokenBlock]:
    """Sequences and steps of each trace are numbered after those of the one before."""
    weighed = np.result_type(np.float16, *(_weight_type(trace) for trace in traces))
    starts = _starts(traces)
    for trace, start_at in zip(traces, starts, strict=True):
        columns = {name: _column(trace, name) for name in ("seq_id", "pos", "step_id", "weights")}
        domain = _domain_column(trace, found.domain_names)
        for start, ids in trace.blocks():
            part = slice(start, start + len(ids))
            seq_T, pos_T, step_T, weights = (column and column(part) for column in columns.values())
            yield TokenBlock(
                ids,
                None if seq_T is None else seq_T.astype(np.int64) + start_at,
                pos_T,
                None if step_T is None else step_T.astype(np.int64) + start_at,
                domain and domain(part),
                None if weights is None else weights.astype(weighed),
            )


def _starts(traces: Sequence[TokenTrace]) -> list[int]:
    """What is added to the ids of each trace, so that the least comes after the greatest of the one before."""
    if len(traces) == 1:
        return [0]
    starts: list[int] = []
    after = 0
    for trace in traces:
        least, most = 0, -1
        for name in sorted(trace.columns & {"seq_id", "step_id"}):
            for _, numbers in trace.column(name):
                least, most = min(least, int(numbers.min())), max(most, int(numbers.max()))
        start = after - least if starts else 0
        if start + max(most, 0) >= _LIMIT_ID:
            hint = "number sequences and steps of each file from 0"
            raise bad(trace.path, f"ids from {least} to {most} cannot follow those of the files before", hint)
        starts.append(start)
        after = start + most + 1
    return starts


def _weight_type(trace: TokenTrace) -> np.dtype[Any]:
    """The type of a trace's weights, half precision if it has none."""
    header = trace.source.headers.get("weights")
    if header is None:
        return np.dtype(np.float16)
    shape = (trace.num_tokens, len(trace.layer_ids_L), trace.top_k)
    if header.shape != shape or header.dtype.kind != "f":
        hint = f"expected numbers {list(shape)}, one for each choice; or leave them out"
        raise bad(trace.path, f"{header.shape} of {header.dtype} found", hint, key="weights")
    return header.dtype


def _column(trace: TokenTrace, name: str) -> Part | None:
    """Reads any part of an array; where the file can only be read from its start, all of it is held."""
    source = trace.source
    if name not in source.headers:
        return None
    if source.headers[name].seekable:
        return lambda part: np.concatenate([rows for _, rows in source.rows(name, part.start, part.stop)])
    whole = source.whole(name)
    return lambda part: whole[part]


def _domain_column(trace: TokenTrace, names: list[str]) -> Part | None:
    """Domains by their position in `names`, to which those not known yet are added."""
    domains = domains_of(trace)
    if domains is None:
        return None
    names += [name for name in dict.fromkeys(domains.names) if name not in names]
    number = np.array([names.index(name) for name in domains.names])
    return lambda part: number[domains.number_T[part]]


def _counts(traces: Sequence[CountTrace]) -> Iterator[CountBlock]:
    for trace in traces:
        prefix = f"{trace.path.stem} " if len(traces) > 1 else ""
        for counts_LE, name in zip(trace.counts_SLE, trace.names_S, strict=True):
            yield CountBlock(counts_LE, prefix + name)
