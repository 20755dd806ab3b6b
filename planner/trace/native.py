"""Reads the native `trace.npz` and checks it against itself.

Format: `docs/formats.md`. Arrays that are not known are named in a warning and ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from planner.errors import InputError, Place, Problem, ProblemLog
from planner.inputs.model import LIMIT_LAYERS
from planner.inputs.printable import printable
from planner.trace.choices import choice_problems
from planner.trace.npz import NpzFile
from planner.trace.trace import CountTrace, Ints, TokenTrace, Trace

_TOKEN_ARRAYS: Final = {
    "expert_ids",
    "layer_ids",
    "num_experts",
    "weights",
    "seq_id",
    "pos",
    "domain_id",
    "step_id",
    "domain_names",
    "topk",
}
_COUNT_ARRAYS: Final = {"counts", "layer_ids", "num_experts", "topk", "scenario_names"}
_LIMIT_EXPERTS: Final = 1 << 16
_LIMIT_COUNT: Final = 1 << 40
_LIMIT_TOKENS: Final = 1 << 27


@dataclass(frozen=True)
class ReadTrace:
    """A trace and what should be said about its file."""

    trace: Trace
    warnings: tuple[str, ...]


def read_trace(path: Path) -> ReadTrace:
    """Read a trace.npz; raises `InputError` with all problems of the file."""
    file = NpzFile(path)
    log = ProblemLog()
    if "expert_ids" in file.headers:
        known, reader = _TOKEN_ARRAYS, _read_tokens
    elif "counts" in file.headers:
        known, reader = _COUNT_ARRAYS, _read_counts
    else:
        found = ", ".join(map(printable, file.headers)) or "no arrays"
        hint = "expected expert_ids [tokens, layers, topk], or counts [windows, layers, experts]"
        raise InputError(Problem(f"not a trace: it holds {found}", Place(str(path)), hint))
    trace = reader(file, log)
    log.raise_if_any()
    assert trace is not None
    unknown = sorted(set(file.headers) - known)
    ignored = ", ".join(map(printable, unknown))
    warnings = (f"{path}: arrays not known and ignored: {ignored}",) if unknown else ()
    return ReadTrace(trace, warnings)


def _read_tokens(file: NpzFile, log: ProblemLog) -> Trace | None:
    header = file.headers["expert_ids"]
    where = Place(str(file.path), key="expert_ids")
    if len(header.shape) != 3 or header.dtype.kind not in "iu" or 0 in header.shape:
        shape = f"{header.shape} of {header.dtype}"
        log.add(f"{shape} found", where=where, hint="expected whole numbers [tokens, layers, topk], none of them 0")
        return None
    tokens, layers, top_k = header.shape
    if tokens > _LIMIT_TOKENS or layers > LIMIT_LAYERS:
        hint = f"at most {_LIMIT_TOKENS:,} tokens and {LIMIT_LAYERS:,} layers are read: split the trace"
        log.add(f"{tokens:,} tokens in {layers:,} layers", where=where, hint=hint)
        return None
    columns = frozenset(name for name in ("seq_id", "pos", "step_id") if name in file.headers)
    for name in sorted(columns):
        _check_column(file, name, tokens, log)
    if "pos" in columns and "seq_id" not in columns:
        log.add("pos without seq_id", where=Place(str(file.path), key="pos"), hint="add seq_id [tokens]")
    num_experts = _scalar(file, "num_experts", log)
    layer_ids = _layer_ids(file, layers, log)
    trace = TokenTrace(
        path=file.path,
        num_tokens=tokens,
        num_experts=num_experts,
        top_k=top_k,
        layer_ids_L=layer_ids,
        columns=columns,
        source=file,
    )
    if not log.problems:
        return trace
    if num_experts:
        log.extend(choice_problems(trace))
    return None


def _read_counts(file: NpzFile, log: ProblemLog) -> Trace | None:
    counts = file.whole("counts")
    where = Place(str(file.path), key="counts")
    if counts.ndim == 2:
        counts = counts[None]
    if counts.ndim != 3 or counts.dtype.kind not in "iuf" or 0 in counts.shape:
        shape = f"{counts.shape} of {counts.dtype}"
        log.add(f"{shape} found", where=where, hint="expected whole numbers [windows, layers, experts]")
        return None
    sane = (counts >= 0) & (counts <= _LIMIT_COUNT)  # not so for NaN
    whole = np.where(sane, counts, 0).astype(np.int64)
    good = bool(sane.all() and (whole == counts).all())
    if not good:
        log.add(f"counts must be whole numbers, 0..{_LIMIT_COUNT:,}", where=where)
    num_experts = _scalar(file, "num_experts", log)
    top_k = _scalar(file, "topk", log)
    windows, layers, experts = counts.shape
    if num_experts not in (0, experts):
        log.add(f"{experts} columns, but num_experts is {num_experts}", where=where)
    if top_k > experts:
        log.add(f"top-{top_k} of {experts} experts", where=Place(str(file.path), key="topk"))
    names = _names(file, windows, log)
    layer_ids = _layer_ids(file, layers, log)
    if good:
        _no_empty_rows(whole, layer_ids, where, log)
    if log.problems:
        return None
    return CountTrace(file.path, num_experts, top_k, layer_ids, whole, names)


def _no_empty_rows(counts_SLE: Ints, layer_ids_L: Ints, where: Place, log: ProblemLog) -> None:
    empty_SL = counts_SLE.sum(axis=2) == 0
    if not empty_SL.any() or len(layer_ids_L) != empty_SL.shape[1]:
        return
    window, row = (int(index[0]) for index in np.nonzero(empty_SL))
    log.add(
        f"{int(empty_SL.sum())} window-layer rows are all zero, first window {window} of layer {layer_ids_L[row]}",
        where=where,
        hint="leave out layers that are not MoE, and windows in which nothing ran",
    )


def _scalar(file: NpzFile, name: str, log: ProblemLog) -> int:
    where = Place(str(file.path), key=name)
    if name not in file.headers:
        log.add(f"{name} is missing", where=where, hint="a trace names it: a whole number")
        return 0
    header = file.headers[name]
    if header.dtype.kind not in "iu" or header.nbytes > 1024 or file.whole(name).size != 1:
        log.add(f"{header.shape} of {header.dtype} found", where=where, hint="expected one whole number")
        return 0
    value = int(file.whole(name).reshape(-1)[0])
    if not 1 <= value <= _LIMIT_EXPERTS:
        log.add(f"{value} is not allowed", where=where, hint=f"expected 1..{_LIMIT_EXPERTS}")
        return 0
    return value


def _layer_ids(file: NpzFile, layers: int, log: ProblemLog) -> Ints:
    if "layer_ids" not in file.headers:
        return np.arange(layers, dtype=np.int64)
    where = Place(str(file.path), key="layer_ids")
    values = file.whole("layer_ids")
    if values.shape != (layers,) or values.dtype.kind not in "iu":
        hint = f"expected one hidden-layer index for each of the {layers} traced layers"
        log.add(f"{values.shape} of {values.dtype} found", where=where, hint=hint)
        return np.arange(layers, dtype=np.int64)
    ids = values.astype(np.int64)
    if (ids < 0).any() or (np.diff(ids) <= 0).any():
        log.add("must rise, from 0 or more", where=where, hint="hidden-layer indices in ascending order")
    return ids


def _check_column(file: NpzFile, name: str, tokens: int, log: ProblemLog) -> None:
    header = file.headers[name]
    if header.shape != (tokens,) or header.dtype.kind not in "iu":
        where = Place(str(file.path), key=name)
        log.add(f"{header.shape} of {header.dtype} found", where=where, hint=f"expected whole numbers [{tokens}]")


def _names(file: NpzFile, windows: int, log: ProblemLog) -> tuple[str, ...]:
    if "scenario_names" not in file.headers:
        return tuple(f"window {index}" for index in range(windows))
    values: NDArray[Any] = file.whole("scenario_names")
    if values.shape != (windows,) or values.dtype.kind != "U":
        where = Place(str(file.path), key="scenario_names")
        log.add(f"{values.shape} of {values.dtype} found", where=where, hint=f"expected {windows} texts")
        return ()
    return tuple(printable(str(name)) for name in values)
