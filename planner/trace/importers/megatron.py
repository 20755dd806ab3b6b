"""Megatron-LM's router trace: `router_trace_rank<R>.jsonl`, one record for each layer and pass.

Source: NVIDIA/Megatron-LM, megatron/core/transformer/moe/router_trace.py (--moe-routing-trace-path).
`layer` is the index of the module in the decoder, dense layers counted. Every rank writes a file:
data-parallel ranks hold different tokens, pipeline stages different layers of the same tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from pathlib import Path
from typing import Final

import numpy as np

from planner.trace.importers.found import Found, Given, TokenBlock, bad, whole_numbers
from planner.trace.importers.json_lines import records
from planner.trace.importers.passes import LayerRecord, Pass, passes, same_choices
from planner.trace.importers.repeats import Repeats

_NAME: Final = re.compile(r"router_trace_rank(\d+)\.jsonl$")
_LIMIT: Final = 1 << 31


@dataclass
class _Rank:
    """One file, its first pass read ahead to know its layers."""

    path: Path
    number: int
    skipped: int = 0

    def __post_init__(self) -> None:
        found = passes(same_choices(self._records(), self.path), self.path)
        first = next(found, None)
        if first is None:
            raise bad(self.path, "no records of decoder layers", "expected lines with step, layer and top_indices")
        self.layers = first.layers
        self.top_k = first.ids_TLK.shape[2]
        self.passes: Iterator[Pass] = chain([first], found)

    def _records(self) -> Iterator[LayerRecord]:
        for line, record in records(self.path):
            if record.get("mtp_idx") is not None or record.get("block", "decoder") != "decoder":
                self.skipped += 1
                continue
            step, layer = record.get("step"), record.get("layer")
            for key, value in (("step", step), ("layer", layer)):
                if type(value) is not int or not 0 <= value < _LIMIT:
                    raise bad(self.path, f"{value!r} is not allowed", "expected a whole number", line=line, key=key)
            assert isinstance(step, int)
            assert isinstance(layer, int)
            if record.get("num_tokens") == 0:
                continue
            ids = whole_numbers(record.get("top_indices"), 2, self.path, "top_indices", line)
            stated = (record.get("num_tokens", ids.shape[0]), record.get("topk", ids.shape[1]))
            if stated != ids.shape:
                message = (
                    f"{ids.shape[0]} tokens of {ids.shape[1]} choices, but the record states {stated[0]} of {stated[1]}"
                )
                raise bad(self.path, message, "damaged, or edited by hand", line=line, key="top_indices")
            yield LayerRecord(line, step, layer, ids)


def read(sources: Sequence[Path], given: Given) -> Found:
    """Open the files of all ranks."""
    del given
    ranks = [_Rank(path, _number(path, index)) for index, path in enumerate(_files(sources))]
    ranks.sort(key=lambda rank: rank.number)
    lanes = _lanes(ranks)
    layers = tuple(sorted(layer for rank in lanes[0] for layer in rank.layers))
    top_k = {rank.top_k for rank in ranks}
    if len(top_k) > 1:
        raise bad(ranks[0].path, f"top-k differs between ranks: {sorted(top_k)}", "give the files of one run")
    found = Found(sources[0], "hidden", iter(()), per_token=True, layer_ids=layers, top_k=top_k.pop())
    return replace(found, blocks=_blocks(lanes, found))


def _files(sources: Sequence[Path]) -> list[Path]:
    files = []
    for path in sources:
        files += sorted(path.glob("router_trace_rank*.jsonl")) if path.is_dir() else [path]
    return files


def _number(path: Path, index: int) -> int:
    match = _NAME.search(path.name)
    return int(match[1]) if match else index


def _lanes(ranks: Sequence[_Rank]) -> list[tuple[_Rank, ...]]:
    """Ranks that hold different layers of the same tokens, one tuple for each set of tokens."""
    stages: dict[tuple[int, ...], list[_Rank]] = {}
    for rank in ranks:
        stages.setdefault(rank.layers, []).append(rank)
    every = [layer for layers in stages for layer in layers]
    if len(every) != len(set(every)):
        twice = next(layer for layer in every if every.count(layer) > 1)
        hint = "give the files of one run; pipeline stages must hold different layers"
        raise bad(ranks[0].path, f"layer {twice} is in ranks whose other layers differ [pipeline-ranks]", hint)
    sizes = {len(members) for members in stages.values()}
    if len(sizes) > 1:
        counts = ", ".join(f"layers {layers[0]}..{layers[-1]}: {len(members)}" for layers, members in stages.items())
        raise bad(
            ranks[0].path, f"pipeline stages have different numbers of files ({counts})", "give the files of all ranks"
        )
    return list(zip(*(stages[layers] for layers in sorted(stages)), strict=True))


def _blocks(lanes: Sequence[tuple[_Rank, ...]], found: Found) -> Iterator[TokenBlock]:
    repeats = Repeats()
    for lane in lanes:
        name = " and ".join(rank.path.name for rank in lane)
        for index, found_parts in enumerate(zip_longest(*(rank.passes for rank in lane))):
            parts = [part for part in found_parts if part is not None]
            if len(parts) < len(lane) or len({(part.step, len(part.ids_TLK)) for part in parts}) > 1:
                message = f"pass {index} is not the same step and number of tokens in {name}"
                hint = "cut off? pipeline stages must be given rank by rank from the same run"
                raise bad(lane[0].path, message, hint, line=parts[0].line)
            ids = np.concatenate([part.ids_TLK for part in parts], axis=1)
            repeats.add(name, (parts[0].step, index), ids + 1)
            yield TokenBlock(ids, step_id_T=np.full(len(ids), parts[0].step, dtype=np.int64))
    skipped = sum(rank.skipped for lane in lanes for rank in lane)
    if skipped:
        found.notes.append(f"{skipped:,} records of multi-token prediction or other blocks left out")
    found.faults.extend(repeats.faults(found.path))
