"""SGLang's expert distribution recorder: `.pt` files in the modes stat, per_pass and per_token.

Source: SGLang 0.5.23, eplb/expert_distribution.py. Rows are hidden layers. `stat` counts logical
experts, summed over all ranks; a finite buffer is padded with zeros. The other modes write a file for
each rank with physical ids, which the map in the same file turns back. Counts of ranks are added up
pass by pass, as SGLang's own reader does (eplb/eplb_simulator/reader.py).

Legend: T tokens, L hidden layers, K choices, P slots, E experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from planner.trace.importers.found import (
    BOTH,
    DECODE,
    PREFILL,
    CountBlock,
    Found,
    Given,
    TokenBlock,
    as_whole,
    bad,
    needs_experts,
)
from planner.trace.importers.physical_map import to_logical_counts
from planner.trace.importers.repeats import Repeats
from planner.trace.importers.torch_file import TorchFile
from planner.trace.importers.torch_pickle import StoredTensor

Ints = NDArray[np.int64]
_PREFILL_MODES: Final = (1, 8)  # EXTEND, SPLIT_PREFILL
_MIXED, _IDLE, _DRAFT = 3, 4, 6
_KEPT: Final = 8
"""Choices of a token that per_token keeps, whatever the model's top-k."""
_HINT: Final = "expected what SGLang's recorder writes: logical_count, or records with a map"


@dataclass(frozen=True)
class _Dump:
    """One file of per_pass or per_token."""

    path: Path
    file: TorchFile
    records: list[dict[str, Any]]
    expert_LP: Ints
    rank: int

    def array(self, index: int, key: str, axes: int) -> Ints:
        return _array(self.file, self.records[index].get(key), f"records[{index}].{key}", axes)

    def number(self, index: int, key: str) -> int:
        value = self.records[index].get(key)
        if type(value) is not int:
            raise bad(self.path, f"{value!r} is not allowed", "expected a whole number", key=f"records[{index}].{key}")
        return value


def read(sources: Sequence[Path], given: Given) -> Found:
    """Open the files of one recording."""
    files = [file for path in sources for file in (sorted(path.glob("*.pt")) if path.is_dir() else [path])]
    opened = [TorchFile(path) for path in files]
    contents = [file.content if isinstance(file.content, dict) else {} for file in opened]
    if all("logical_count" in content for content in contents):
        return _stat(opened)
    if not opened or not all(isinstance(content.get("records"), list) for content in contents):
        raise bad(sources[0], "not a recording of SGLang, or modes mixed", _HINT)
    dumps = [_dump(file, index) for index, file in enumerate(opened)]
    experts = needs_experts(files[0], int(max(dump.expert_LP.max() for dump in dumps)) + 1, given)
    per_token = any("topk_ids_of_layer" in record for record in dumps[0].records)
    if per_token and (given.choices() or 0) > _KEPT:
        message = f"per_token keeps {_KEPT} choices of a token, but this model makes {given.choices()}"
        raise bad(files[0], message, "record with per_pass or stat, or return routed experts with the requests")
    found = Found(files[0], "hidden", iter(()), per_token, num_experts=experts, top_k=given.choices())
    blocks = _tokens(dumps, found) if per_token else _passes(dumps, found, experts)
    return replace(found, blocks=blocks)


def _array(file: TorchFile, value: Any, key: str, axes: int) -> Ints:
    if not isinstance(value, StoredTensor):
        raise bad(file.path, "no tensor", _HINT, key=key)
    array = as_whole(file.array(value, key), file.path, key)
    if array.ndim != axes or 0 in array.shape[1:]:
        raise bad(file.path, f"{list(array.shape)} found", f"expected {axes} axes", key=key)
    return array


def _dump(file: TorchFile, index: int) -> _Dump:
    content = file.content
    expert_LP = _array(file, content.get("last_physical_to_logical_map"), "last_physical_to_logical_map", 2)
    records = content["records"]
    if not all(isinstance(record, dict) for record in records):
        raise bad(file.path, "a record is not a dict", _HINT, key="records")
    rank = records[0].get("rank") if records else None
    return _Dump(file.path, file, records, expert_LP, rank if isinstance(rank, int) else index)


def _stat(files: Sequence[TorchFile]) -> Found:
    first = _array(files[0], files[0].content["logical_count"], "logical_count", 3)
    found = Found(files[0].path, "hidden", iter(()), per_token=False, num_experts=first.shape[2])
    return replace(found, blocks=_stat_blocks(files, found))


def _stat_blocks(files: Sequence[TorchFile], found: Found) -> Iterator[CountBlock]:
    for file in files:
        counts_SLE = _array(file, file.content["logical_count"], "logical_count", 3)
        prefix = f"{file.path.stem} " if len(files) > 1 else ""
        if len(counts_SLE) > 1 and counts_SLE.any(axis=(1, 2)).all():
            found.notes.append(
                f"all {len(counts_SLE):,} steps are used: if the recorder's buffer was full, it went round, and the "
                "first step is not the oldest: halves and drift then mean little"
            )
        for step, counts_LE in enumerate(counts_SLE):
            yield CountBlock(counts_LE, f"{prefix}step {step}")


def _passes(dumps: Sequence[_Dump], found: Found, experts: int) -> Iterator[CountBlock]:
    by_pass: dict[int, list[tuple[_Dump, int]]] = {}
    for dump in dumps:
        for index in range(len(dump.records)):
            by_pass.setdefault(dump.number(index, "forward_pass_id"), []).append((dump, index))
    repeats = Repeats()
    for pass_id, members in sorted(by_pass.items()):
        total_LE = np.zeros((len(dumps[0].expert_LP), experts), dtype=np.int64)
        for dump, index in members:
            counts_LP = dump.array(index, "global_physical_count", 2)
            if counts_LP.shape != dump.expert_LP.shape or dump.expert_LP.shape != dumps[0].expert_LP.shape:
                message = f"{list(counts_LP.shape)} counts, but a map of {list(dumps[0].expert_LP.shape)}"
                raise bad(dump.path, message, "give the files of one run", key=f"records[{index}]")
            repeats.add(dump.path.name, pass_id, counts_LP)
            pairs = zip(counts_LP, dump.expert_LP, strict=True)  # its own map: a rebalance may lie between two dumps
            total_LE += np.stack([to_logical_counts(counts, expert, experts) for counts, expert in pairs])
        yield CountBlock(total_LE, f"pass {pass_id}")
    found.faults.extend(repeats.faults(found.path))


def _tokens(dumps: Sequence[_Dump], found: Found) -> Iterator[TokenBlock]:
    repeats, idle, draft = Repeats(), 0, 0
    for dump in dumps:
        for index, record in enumerate(dump.records):
            mode = dump.number(index, "forward_mode")
            if mode in (_IDLE, _DRAFT):
                idle, draft = idle + (mode == _IDLE), draft + (mode == _DRAFT)
                continue
            ids_LTK = dump.array(index, "topk_ids_of_layer", 3)
            layers, tokens, _ = ids_LTK.shape
            if layers != len(dump.expert_LP):
                message = f"{layers} layers, but the map has {len(dump.expert_LP)}"
                raise bad(dump.path, message, "damaged", key=f"records[{index}]")
            pass_id = dump.number(index, "forward_pass_id")
            repeats.add(dump.path.name, pass_id, ids_LTK + 1)
            ids_TLK = _logical(ids_LTK, dump, index).transpose(1, 0, 2)
            phase = PREFILL if mode in _PREFILL_MODES else BOTH if mode == _MIXED else DECODE
            yield TokenBlock(
                ids_TLK,
                step_id_T=np.full(tokens, pass_id, dtype=np.int64),
                pos_T=None,
                phase_T=np.full(tokens, phase, dtype=np.int8),
            )
            del record
    for count, what in ((idle, "idle"), (draft, "draft-model")):
        if count:
            passes = f"{count:,} {what} pass{'es' if count > 1 else ''}"
            found.notes.append(f"{passes} left out")
    found.faults.extend(repeats.faults(found.path))


def _logical(ids_LTK: Ints, dump: _Dump, index: int) -> Ints:
    """Ids of slots turned into the experts that they held; -1 stays."""
    expert_LP = dump.expert_LP
    if ids_LTK.size and (ids_LTK.max() >= expert_LP.shape[1] or ids_LTK.min() < -1):
        wrong = ids_LTK[(ids_LTK >= expert_LP.shape[1]) | (ids_LTK < -1)][0]
        message = f"slot {wrong} of {expert_LP.shape[1]}"
        raise bad(
            dump.path, message, "a filler id, or the map of another run", key=f"records[{index}].topk_ids_of_layer"
        )
    layer_L11 = np.arange(len(expert_LP))[:, None, None]
    return np.where(ids_LTK < 0, -1, expert_LP[layer_L11, np.maximum(ids_LTK, 0)])
