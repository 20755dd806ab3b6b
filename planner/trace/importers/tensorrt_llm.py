"""TensorRT-LLM's expert statistics: a folder of `meta_info.json` and `rank<r>.safetensors`.

Source: NVIDIA/TensorRT-LLM, tensorrt_llm/_torch/expert_statistic.py (EXPERT_STATISTIC_ITER_RANGE). One
tensor for each "<iteration>_<hidden layer>": what that rank's own tokens chose, so ranks are added up.
With a load balancer the numbers belong to slots; the map is its `initial_global_assignments`.
Several folders are windows after each other.

Legend: L layers, E experts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from planner.trace.importers.found import LIMIT_EXPERTS, CountBlock, Found, Given, as_whole, bad, needs_experts
from planner.trace.importers.json_lines import document
from planner.trace.importers.physical_map import to_logical_counts
from planner.trace.importers.repeats import Repeats
from planner.trace.importers.safetensors_file import SafetensorsFile

_RANK: Final = re.compile(r"rank(\d+)\.safetensors")  # not rank0_raw, not cooccurrence_rank0
_KEY: Final = re.compile(r"(\d{1,9})_(\d{1,5})")


@dataclass(frozen=True)
class _Statistics:
    """What one folder holds."""

    folder: Path
    files: tuple[SafetensorsFile, ...]
    """Of all ranks."""
    iterations: tuple[int, ...]
    layers: tuple[int, ...]
    slots: int
    top_k: int


def read(sources: Sequence[Path], given: Given) -> Found:
    """Open the folders of one recording; those of several runs are windows after each other."""
    folders = {(path if path.is_dir() else path.parent).resolve(): path for path in sources}
    every = [_statistics(path if path.is_dir() else path.parent) for path in folders.values()]
    first = every[0]
    for other in every[1:]:
        if (other.layers, other.slots, other.top_k) != (first.layers, first.slots, first.top_k):
            message = f"other layers, experts or top-k than {first.folder}"
            raise bad(other.folder, message, "give folders of the same model and pipeline stage, others apart")
    folder, slots = first.folder, first.slots
    experts = needs_experts(folder, None if given.physical_map else slots, given)
    found = Found(
        folder, "hidden", iter(()), per_token=False, layer_ids=first.layers, num_experts=experts, top_k=first.top_k
    )
    if not given.physical_map:
        found.notes.append(
            f"{slots} columns taken as experts; with a load balancer they are slots: give --physical-map"
        )
    return replace(found, blocks=_blocks(every, experts, given, found))


def _statistics(folder: Path) -> _Statistics:
    meta = folder / "meta_info.json"
    numbers = document(meta) if meta.is_file() else None
    slots = numbers.get("num_experts") if isinstance(numbers, dict) else None
    top_k = numbers.get("num_experts_per_token") if isinstance(numbers, dict) else None
    if type(slots) is not int or type(top_k) is not int or slots < 1 or top_k < 1:
        hint = "expected num_experts and num_experts_per_token; rank 0 writes this file"
        raise bad(meta, "missing, or incomplete", hint)
    if slots > LIMIT_EXPERTS:
        raise bad(meta, f"{slots} experts are not allowed", f"expected 1..{LIMIT_EXPERTS}", key="num_experts")
    files = _files(folder)
    keys = _keys(files)
    layers = tuple(sorted({layer for _, layer in keys}))
    iterations = tuple(sorted({iteration for iteration, _ in keys}))
    lacking = len(iterations) * len(layers) - len(keys)
    if lacking:
        first = next(f"{i}_{l}" for i in iterations for l in layers if (i, l) not in keys)
        hint = "every iteration has every layer: cut off, or layers of pipeline stages that overwrote each other"
        raise bad(files[0].path, f"{first} is missing ({lacking} in all) [pipeline-ranks]", hint)
    return _Statistics(folder, tuple(files), iterations, layers, slots, top_k)


def _files(folder: Path) -> list[SafetensorsFile]:
    by_rank = {int(match[1]): path for path in folder.iterdir() if (match := _RANK.fullmatch(path.name))}
    if not by_rank:
        raise bad(folder, "no rank<r>.safetensors in it", "expected one for each rank")
    lacking = sorted(set(range(max(by_rank) + 1)) - set(by_rank))
    if lacking:
        hint = "each rank counts its own tokens: give the files of all"
        raise bad(folder, f"rank{lacking[0]}.safetensors is missing ({len(lacking)} in all)", hint)
    return [SafetensorsFile(by_rank[rank]) for rank in sorted(by_rank)]


def _keys(files: Sequence[SafetensorsFile]) -> set[tuple[int, int]]:
    every = set()
    for file in files:
        if file.names != files[0].names:
            strange = sorted(file.names ^ files[0].names)[0]
            hint = "give ranks of one pipeline stage and one run; a stage is a recording of its own"
            raise bad(file.path, f"{strange} is not in every rank's file [pipeline-ranks]", hint)
        for name in file.names:
            match = _KEY.fullmatch(name)
            if not match:
                raise bad(file.path, f"{name!r} is not <iteration>_<layer>", "expected names such as 100_3", key=name)
            every.add((int(match[1]), int(match[2])))
    return every


def _blocks(every: Sequence[_Statistics], experts: int, given: Given, found: Found) -> Iterator[CountBlock]:
    names = [one.folder.resolve().name for one in every]
    if len(set(names)) < len(names):
        names = [str(one.folder) for one in every]
    for one, folder_name in zip(every, names, strict=True):
        prefix = f"{folder_name} " if len(every) > 1 else ""
        repeats = Repeats()
        for iteration in one.iterations:
            total: Any = 0
            for file in one.files:
                keys = [f"{iteration}_{layer}" for layer in one.layers]
                rows = [as_whole(file.array(key), file.path, key) for key in keys]
                if any(row.shape != (one.slots,) for row in rows):
                    message = f"counts in {iteration}_* are not [{one.slots}]"
                    raise bad(file.path, message, "meta_info.json is of another run")
                repeats.add(file.path.name, iteration, np.stack(rows))
                total = total + np.stack(rows)
            yield CountBlock(_logical(total, one.layers, experts, given), f"{prefix}iteration {iteration}")
        found.faults.extend(repeats.faults(one.folder))


def _logical(
    total_LP: np.ndarray[tuple[int, ...], np.dtype[np.int64]], layers: Sequence[int], experts: int, given: Given
) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    if given.physical_map is None:
        return total_LP
    return counts_of_slots(total_LP, layers, experts, given)


def counts_of_slots(
    total_LP: np.ndarray[tuple[int, ...], np.dtype[np.int64]], layers: Sequence[int], experts: int, given: Given
) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Counts of slots [L, P] as counts of experts [L, E], by the map that the user gave."""
    assert given.physical_map is not None
    rows = []
    for layer, counts in zip(layers, total_LP, strict=True):
        expert_P = given.physical_map.of(layer)
        if len(expert_P) != len(counts) or expert_P.max() >= experts:
            message = f"layer {layer}: {len(expert_P)} slots up to expert {expert_P.max()}"
            raise bad(given.physical_map.path, message, f"expected {len(counts)} slots of {experts} experts")
        rows.append(to_logical_counts(counts, expert_P, experts))
    return np.stack(rows)
