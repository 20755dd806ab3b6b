"""vLLM's offline EPLB statistics: the `eplb_load_stats` records of pull request 41141 (not released).

One JSON record for each interval: `expert_load` [MoE layers, slots] and `p2l_map`, which turns slots
back into experts. Other record types in the same file are skipped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from planner.trace.importers.found import CountBlock, Found, Given, bad, needs_experts, whole_numbers
from planner.trace.importers.json_lines import records
from planner.trace.importers.physical_map import to_logical_counts


def read(sources: Sequence[Path], given: Given) -> Found:
    """Open files of statistics."""
    maps = (
        whole_numbers(record.get("p2l_map"), 2, path, "p2l_map", line)
        for path in sources
        for line, record in records(path)
        if record.get("record_type") == "eplb_load_stats"
    )
    first = next(maps, None)
    if first is None:
        raise bad(sources[0], "no eplb_load_stats records", "expected record_type eplb_load_stats")
    experts = needs_experts(sources[0], int(first.max()) + 1, given)
    blocks = chain.from_iterable(_blocks(path, experts) for path in sources)
    return Found(sources[0], "moe", blocks, per_token=False, num_experts=experts)


def _blocks(path: Path, experts: int) -> Iterator[CountBlock]:
    for line, record in records(path):
        if record.get("record_type") != "eplb_load_stats":
            continue
        if record.get("version", 1) != 1:
            raise bad(path, f"version {record['version']!r} is not read", "version 1 is", line=line, key="version")
        load_LP = whole_numbers(record.get("expert_load"), 2, path, "expert_load", line)
        expert_LP = whole_numbers(record.get("p2l_map"), 2, path, "p2l_map", line)
        if load_LP.shape != expert_LP.shape:
            message = f"{list(load_LP.shape)} loads, but a map of {list(expert_LP.shape)}"
            raise bad(path, message, "damaged, or edited by hand", line=line, key="p2l_map")
        if expert_LP.max() >= experts or expert_LP.min() < -1:
            raise bad(path, f"expert {expert_LP.max()} of {experts}", "another model?", line=line, key="p2l_map")
        rows = [to_logical_counts(load, expert, experts) for load, expert in zip(load_LP, expert_LP, strict=True)]
        yield CountBlock(np.stack(rows), f"step {record.get('step', line)}")
