"""Count matrices of balancers: [layers, experts] or [windows, layers, experts] as .npy, .pt, .json or .csv.

EPLB and vllm-ascend's offline script take a tensor, LMDeploy a JSON list of hidden layers
(LMDEPLOY_EPLB_EXPERTS_STATISTIC_FILE), the ADRS benchmark `load_history` with `logical_expert_load`.
CSV has rows `layer,expert,count`, or `layer,expert` for each choice, both with or without a step; or a row
for each layer (omni-infer: `layer_i,ep_0,...`). Several files are windows.

Legend: L rows of layers, E experts.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from planner.trace.importers.found import (
    LIMIT_EXPERTS,
    LIMIT_ROWS,
    CountBlock,
    Found,
    Given,
    as_whole,
    bad,
    whole_numbers,
)
from planner.trace.importers.json_lines import document, elements
from planner.trace.importers.npy_file import MAGIC, open_npy
from planner.trace.importers.torch_file import TorchFile
from planner.trace.importers.torch_pickle import StoredTensor

Counts = NDArray[np.int64]
_HINT: Final = "expected counts [layers, experts] or [windows, layers, experts]"
_LIMIT_BYTES: Final = 4 << 30
_CSV_BYTES: Final = 256 << 20
_NAMES: Final = {
    "step": ("step", "step_id", "window", "iteration", "iter"),
    "layer": ("layer", "layer_id", "layer_idx", "layer_index"),
    "expert": ("expert", "expert_id", "expert_idx", "expert_index"),
    "count": ("count", "counts", "load", "tokens", "num_tokens", "activations"),
}
"""What the columns of a CSV of counts are called."""
_LIMIT_NUMBERS: Final = 1 << 28


def read(sources: Sequence[Path], given: Given) -> Found:
    """Open files of counts."""
    blocks = _blocks(sources, given.experts())
    first = next(blocks, None)
    if first is None:
        raise bad(sources[0], "no counts in it", _HINT)
    experts = first.counts_LE.shape[1]
    return Found(sources[0], "either", chain([first], blocks), per_token=False, num_experts=experts)


def _blocks(sources: Sequence[Path], experts: int | None) -> Iterator[CountBlock]:
    for path in sources:
        prefix = f"{path.stem} " if len(sources) > 1 else ""
        for name, counts in arrays(path, deepest=3, experts=experts):
            for index, counts_LE in enumerate(counts if counts.ndim == 3 else counts[None]):
                label = f"window {index}" if counts.ndim == 3 else name
                yield CountBlock(counts_LE, (prefix + label).strip() or path.stem)


def arrays(path: Path, deepest: int, experts: int | None = None) -> Iterator[tuple[str, Counts]]:
    """Named arrays of a file, with 2 to `deepest` axes; raises `InputError` on anything else.

    `experts`, where they are known, are the columns of a list that need not name those which were never chosen.
    """
    for name, found in _arrays(path, deepest, experts):
        if not 2 <= found.ndim <= deepest or 0 in found.shape:
            raise bad(path, f"{list(found.shape)} found", _HINT, key=name)
        if found.shape[-1] > LIMIT_EXPERTS or found.shape[-2] > LIMIT_ROWS:
            raise bad(path, f"{list(found.shape)} is too large", _HINT, key=name)
        if found.min() < 0:
            raise bad(path, f"a count of {found.min()}", "counts are 0 or more", key=name)
        yield name, found


def _arrays(path: Path, deepest: int, experts: int | None) -> Iterator[tuple[str, Counts]]:
    with path.open("rb") as file:
        head = file.read(1 << 16)
    if head.startswith(MAGIC):
        for block in _npy(path):
            yield "", block
    elif head.startswith((b"PK", b"\x80")):
        yield "", _torch(path)
    elif b'"load_history"' in head:
        for index, entry in enumerate(elements(path, "load_history")):
            load = entry.get("logical_expert_load") if isinstance(entry, dict) else None
            yield f"window {index}", whole_numbers(load, 2, path, f"load_history[{index}].logical_expert_load")
    elif head.lstrip()[:1] in (b"[", b"{"):
        yield "", _json(path, deepest)
    else:
        yield "", _csv(path, experts)


def _npy(path: Path) -> Iterator[Counts]:
    array = open_npy(path)
    if int(np.prod(array.shape, dtype=object)) * 8 > _LIMIT_BYTES:
        raise bad(path, f"{array.shape} is more than can be counted at once", "add windows up, or split the file")
    if 0 in array.shape:
        yield np.zeros(array.shape, np.int64)
    elif len(array.shape) <= 3:
        whole = np.concatenate([as_whole(block, path, "") for block in array.blocks()]) if array.shape else np.zeros(())
        yield whole.astype(np.int64)
    else:
        for block in array.blocks():
            yield as_whole(block, path, "")


def _torch(path: Path) -> Counts:
    file = TorchFile(path)
    if not isinstance(file.content, StoredTensor):
        raise bad(path, f"holds a {type(file.content).__name__}, not a tensor", _HINT)
    return as_whole(file.array(file.content, ""), path, "")


def _json(path: Path, deepest: int) -> Counts:
    content = document(path)
    key = ""
    if isinstance(content, dict):
        key = next((name for name in ("logical_count", "counts", "logical_expert_load") if name in content), "")
        content = content.get(key)
    depth, inner = 0, content
    while isinstance(inner, list) and inner and depth <= deepest:
        depth, inner = depth + 1, inner[0]
    return whole_numbers(content, max(depth, 2), path, key)


def _csv(path: Path, experts: int | None) -> Counts:
    if path.stat().st_size > _CSV_BYTES:
        raise bad(path, f"larger than {_CSV_BYTES >> 20} MiB", "save it as .npy")
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        try:
            rows = [(number, row) for number, row in enumerate(csv.reader(file), start=1) if any(row)]
        except csv.Error as error:
            raise bad(path, f"not CSV: {error}", _HINT) from None
    if not rows:
        raise bad(path, "empty", _HINT)
    header = [cell.strip().lower() for cell in rows[0][1]]
    if set(header) & set(_NAMES["expert"]):
        return _listed(header, rows[1:], path, experts)
    indexed = not header[0] and len(header) > 1  # as pandas writes it
    if indexed and _is_number(header[-1]) and header[1:] != _numbers(len(header) - 1):
        hint = "write the file without an index, or experts by number"
        raise bad(path, "column 1 has no name, and the others are not experts 0, 1, ...", hint, line=1)
    if indexed or not _is_number(header[-1]):
        rows = rows[1:]
    named = bool(rows) and not _is_number(rows[0][1][0])
    if indexed and not named:
        if [row[0].strip() for _, row in rows] != _numbers(len(rows)):
            hint = "are these layers? write layer,expert,count; else write the file without an index"
            raise bad(path, "column 1 has no name, and is no index 0, 1, ...", hint, line=1)
        named = True
    table = [[_count(cell, path, number) for cell in row[named:]] for number, row in rows]
    return whole_numbers(table, 2, path, "")


def _listed(header: Sequence[str], rows: Sequence[tuple[int, list[str]]], path: Path, experts: int | None) -> Counts:
    """Counts of rows that name layer and expert, with steps as windows; without a count each row is one choice.

    Experts that no row names were never chosen, also the last ones, where it is known how many there are.
    """
    place = _columns(header, path)
    found: dict[tuple[int, int, int], int] = {}
    for number, row in rows:
        if len(row) != len(header):
            raise bad(path, f"{len(row)} columns", f"expected {','.join(header)}", line=number)
        step, layer, expert, count = (
            _count(row[place[name]], path, number) if name in place else default
            for name, default in (("step", 0), ("layer", 0), ("expert", 0), ("count", 1))
        )
        if layer >= LIMIT_ROWS or expert >= LIMIT_EXPERTS:
            raise bad(path, f"layer {layer}, expert {expert}", "expected small numbers", line=number)
        found[step, layer, expert] = found.get((step, layer, expert), 0) + count
    if not found:
        raise bad(path, "no rows", f"expected {','.join(header)}")
    steps = sorted({step for step, _, _ in found})
    columns = max(experts or 0, max(key[2] for key in found) + 1)
    shape = (len(steps), max(key[1] for key in found) + 1, columns)
    if int(np.prod(shape, dtype=object)) > _LIMIT_NUMBERS:
        raise bad(path, f"{list(shape)} is more than can be counted at once", "add steps up, or split the file")
    counts = np.zeros(shape, dtype=np.int64)
    window_of = {step: window for window, step in enumerate(steps)}
    for (step, layer, expert), count in found.items():
        counts[window_of[step], layer, expert] = count
    return counts if "step" in place else counts[0]


def _columns(header: Sequence[str], path: Path) -> dict[str, int]:
    """Where each known column stands; raises `InputError` if one is strange, given twice, or lacking."""
    place: dict[str, int] = {}
    for index, cell in enumerate(header):
        if not index and not cell:
            continue  # the index that pandas writes: the other columns say what a row is
        name = next((name for name, others in _NAMES.items() if cell in others), None)
        if name is None or name in place:
            why = "is not known" if name is None else "is there twice"
            hint = "expected layer, expert, and count or none for one choice a row; a step where there are several"
            raise bad(path, f"column {cell!r} {why}", hint, line=1, column=index + 1)
        place[name] = index
    if "layer" not in place:
        raise bad(path, "a column of experts, but none of layers", "expected layer,expert,count", line=1)
    return place


def _numbers(count: int) -> list[str]:
    return [str(number) for number in range(count)]


def _is_number(text: Any) -> bool:
    return str(text).strip().replace(".", "", 1).isdecimal()


def _count(cell: str, path: Path, line: int) -> int:
    text = cell.strip().removesuffix(".0")
    if not text.isdecimal() or len(text) > 15:
        raise bad(path, f"{cell!r} is not a count", "expected whole numbers, 0 or more", line=line)
    return int(text)
