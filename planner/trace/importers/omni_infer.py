"""omni-infer's activation dumps: `activation_counts_recordstep_<step>_rank_<r>.txt`, or its log lines.

Source: omni-ai-npu/omni-infer c8bc2bbb, omni/accelerators/placement. A file has a line for each MoE
layer with the counts of the experts on that rank, separated by tabs; the ranks side by side give all
positions. Log lines read `[dump activation] decode step S in rank R for layer L get N experts data: ...`.
Without redundant experts in linear order position p is expert p; else give --physical-map.

Legend: L MoE layers, P positions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from planner.files import read_text
from planner.trace.importers.found import DECODE, PREFILL, CountBlock, Found, Given, bad, needs_experts
from planner.trace.importers.tensorrt_llm import counts_of_slots

NAME: Final = re.compile(r"activation_counts_recordstep_(\d+)_rank_(\d+)\.txt")
MARK: Final = "[dump activation]"
_LINE: Final = re.compile(
    r"\[dump activation\]\s+(\w+) step (\d+) in rank (\d+) for layer (\d+) get (\d+) experts data:\s*([\d\s]+)$"
)
_LIMIT_BYTES: Final = 256 << 20

Rows = dict[int, list[int]]
Steps = dict[tuple[str, int], dict[int, Rows]]
"""(phase, step) -> rank -> layer -> counts."""


def read(sources: Sequence[Path], given: Given) -> Found:
    """Open the dumps of all ranks."""
    steps: Steps = {}
    for path in sources:
        for file in sorted(path.rglob("activation_counts_recordstep_*.txt")) if path.is_dir() else [path]:
            (_from_table if NAME.fullmatch(file.name) else _from_log)(file, steps)
    if not steps:
        raise bad(sources[0], "no activation dumps in it", "expected activation_counts_recordstep_<step>_rank_<r>.txt")
    matrices = {key: _side_by_side(ranks, key, sources[0]) for key, ranks in sorted(steps.items())}
    shapes = sorted({matrix.shape for matrix in matrices.values()})
    if len(shapes) > 1:
        raise bad(sources[0], f"steps of different shapes: {shapes[0]} and {shapes[1]}", "give the files of one run")
    experts = needs_experts(sources[0], None if given.physical_map else shapes[0][1], given)
    return Found(sources[0], "moe", _blocks(matrices, experts, given), per_token=False, num_experts=experts)


def _blocks(matrices: dict[tuple[str, int], NDArray[np.int64]], experts: int, given: Given) -> Iterator[CountBlock]:
    phases = {"prefill": PREFILL, "decode": DECODE, "decoder": DECODE}
    for (phase, step), counts_LP in matrices.items():
        counts = counts_LP
        if given.physical_map is not None:
            counts = counts_of_slots(counts_LP, range(len(counts_LP)), experts, given)
        yield CountBlock(counts, f"{phase} step {step}".strip(), phases.get(phase))


def _from_table(path: Path, steps: Steps) -> None:
    match = NAME.fullmatch(path.name)
    assert match is not None
    phase = path.parent.name if path.parent.name in ("prefill", "decode", "decoder") else ""
    rows: Rows = {}
    for number, line in enumerate(read_text(path, limit_bytes=_LIMIT_BYTES).splitlines(), start=1):
        if line.strip():
            rows[len(rows)] = _numbers(line, path, number)
    steps.setdefault((phase, int(match[1])), {})[int(match[2])] = rows


def _from_log(path: Path, steps: Steps) -> None:
    for number, line in enumerate(read_text(path, limit_bytes=_LIMIT_BYTES).splitlines(), start=1):
        if MARK not in line:
            continue
        match = _LINE.search(line)
        if not match:
            hint = "expected `... decode step S in rank R for layer L get N experts data: counts`"
            raise bad(path, "a dump line that cannot be read", hint, line=number)
        phase, step, rank, layer, count = match[1], int(match[2]), int(match[3]), int(match[4]), int(match[5])
        values = _numbers(match[6], path, number)
        if len(values) != count:
            raise bad(path, f"{len(values)} counts, but {count} are announced", "cut off? leave it out", line=number)
        steps.setdefault((phase, step), {}).setdefault(rank, {})[layer] = values


def _numbers(line: str, path: Path, number: int) -> list[int]:
    values: list[Any] = line.split()
    wrong = next((value for value in values if not value.isdecimal() or len(value) > 15), None)
    if wrong is not None:
        raise bad(path, f"{wrong!r} is not a count", "expected whole numbers, separated by tabs", line=number)
    return [int(value) for value in values]


def _side_by_side(ranks: dict[int, Rows], key: tuple[str, int], path: Path) -> NDArray[np.int64]:
    where = f"{key[0]} step {key[1]}".strip()
    if sorted(ranks) != list(range(len(ranks))):
        missing = min(set(range(max(ranks) + 1)) - set(ranks))
        raise bad(
            path, f"{where}: rank {missing} is missing", "each rank counts its own experts: give the files of all"
        )
    layers = [sorted(ranks[rank]) for rank in sorted(ranks)]
    widths = {len(values) for rank in ranks.values() for values in rank.values()}
    if any(found != list(range(len(layers[0]))) for found in layers) or not layers[0] or len(widths) != 1:
        raise bad(path, f"{where}: ranks differ in layers or experts", "cut off, or pipeline stages [pipeline-ranks]")
    rows = [[ranks[rank][layer] for layer in layers[0]] for rank in sorted(ranks)]
    return np.concatenate([np.array(row, dtype=np.int64) for row in rows], axis=1)
