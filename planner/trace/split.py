"""Parts a trace into routing to plan on and routing to judge on.

Three ways: by time (the later part is held out, as it is in operation), by sequence (every so many-th
request is held out: what sampling alone costs), by domain (whole kinds of text are held out: how a plan
fares on traffic that it has never seen). A sequence is never torn; counted windows part as wholes.

Legend: T tokens, S windows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from planner.errors import UsageError
from planner.inputs.printable import printable
from planner.trace.batches import file_order
from planner.trace.domains import domains_of
from planner.trace.npz import NpzFile
from planner.trace.trace import CountTrace, TokenTrace, Trace
from planner.trace.write import Column, write_npz

Bools = NDArray[np.bool_]
_PER_TOKEN: Final = ("expert_ids", "weights", "seq_id", "pos", "domain_id", "step_id")
_WHOLE: Final = ("layer_ids", "num_experts", "topk", "domain_names")


@dataclass(frozen=True)
class Parting:
    """Which tokens or windows are for planning; the others are held out."""

    planning: Bools
    how: str


def by_time(trace: Trace, part: float) -> Parting:
    """The first part for planning.

    The order is that of engine steps where the trace has them, else of sequences in the file, else of tokens.
    """
    if isinstance(trace, CountTrace):
        return _first(np.arange(len(trace.counts_SLE)), part, "windows")
    step_id_T, seq_id_T = trace.step_id_T, trace.seq_id_T
    if step_id_T is not None:
        return _first(step_id_T, part, "engine steps")
    if seq_id_T is not None:
        return _first(file_order(seq_id_T), part, "sequences in file order")
    return _first(np.arange(trace.num_tokens), part, "tokens in file order")


def by_sequence(trace: Trace, part: float) -> Parting:
    """Sequences (of counts: windows) taken in turn, so that both parts cover the whole time."""
    if isinstance(trace, CountTrace):
        number, what = np.arange(len(trace.counts_SLE)), "windows"
    else:
        seq_id_T = trace.seq_id_T
        if seq_id_T is None:
            raise UsageError(f"{trace.path} has no seq_id, so its sequences are not known", hint="--by time")
        number, what = file_order(seq_id_T), "sequences"
    taken = np.floor((number + 1) * part) > np.floor(number * part)
    how = f"{len(np.unique(number[taken])):,} of {len(np.unique(number)):,} {what}, taken in turn"
    return _both(taken, how)


def by_domain(trace: Trace, held_out: Collection[str]) -> Parting:
    """All but the named domains (of counts: scenarios) for planning."""
    if isinstance(trace, CountTrace):
        names, number = trace.names_S, np.arange(len(trace.names_S))
    else:
        domains = domains_of(trace)
        if domains is None:
            raise UsageError(f"{trace.path} has no domain_id, so its domains are not known", hint="--by time")
        names, number = domains.names, domains.number_T.astype(np.int64)
    known = ", ".join(names)
    wanted = sorted(map(printable, held_out))
    unknown = [name for name in wanted if name not in names]
    if unknown or not held_out:
        what = f"there is no domain {', '.join(unknown)}" if unknown else "no domain is named to hold out"
        raise UsageError(f"{trace.path}: {what}", hint=f"--held-out with some of: {known}")
    outside = np.isin(np.array(names), wanted)
    return _both(~outside[number], f"without {', '.join(wanted)}")


def _first(order: NDArray[np.int64], part: float, what: str) -> Parting:
    """Whole units of an order (steps, sequences, windows), as many as come nearest to that part of the whole."""
    _, unit, size = np.unique(order, return_inverse=True, return_counts=True)
    if len(size) < 2:
        raise UsageError(f"there is only one of the {what}: nothing to part")
    ends = np.cumsum(size)[:-1]
    last = int(np.argmin(np.abs(ends - part * len(order))))
    return _both(unit <= last, f"the first {last + 1:,} of {len(size):,} {what}")


def _both(planning: Bools, how: str) -> Parting:
    if planning.all() or not planning.any():
        raise UsageError("one part would be empty", hint="give another --part or other domains")
    return Parting(planning, how)


def write_part(trace: Trace, keep: Bools, path: Path) -> None:
    """Write some tokens or windows of a trace as a trace of its own; read and written in blocks."""
    file = NpzFile(trace.path)
    arrays: dict[str, NDArray[Any] | Column] = {name: file.whole(name) for name in _WHOLE if name in file.headers}
    if isinstance(trace, TokenTrace):
        arrays.update((name, _kept(file, name, keep)) for name in _PER_TOKEN if name in file.headers)
    else:
        arrays["counts"] = trace.counts_SLE[keep]
        arrays["scenario_names"] = np.array(trace.names_S)[keep]
    write_npz(path, arrays)


def _kept(file: NpzFile, name: str, keep: Bools) -> Column:
    header = file.headers[name]

    def blocks() -> Iterator[NDArray[Any]]:
        for start, block in file.rows(name):
            yield block[keep[start : start + len(block)]]

    return Column((int(keep.sum()), *header.shape[1:]), header.dtype, blocks())
