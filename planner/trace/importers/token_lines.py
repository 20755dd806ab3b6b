"""Per-token JSONL, as written by router hooks: one record for each token and layer.

Seen in forks of vLLM as `moe_routes.jsonl` ({layer, token_idx, topk_ids, topk_weights} after an
optional header), and in johanna-rock/moe-balance ({layer, batch_id, topk_experts}). Records of a pass
may come layer by layer or token by token, and layers whose records name tokens (`token_idx`) in any order
of them. `step` or `batch_id`, where there is one, is the engine step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Final

import numpy as np

from planner.inputs.units import format_number_of
from planner.trace.importers.found import Found, Given, TokenBlock, bad, whole_numbers
from planner.trace.importers.json_lines import records
from planner.trace.importers.passes import GATHERED, LayerRecord, Pass, passes, same_choices

_IDS: Final = ("topk_ids", "topk_experts")
_STEPS: Final = ("step", "batch_id")


@dataclass
class _Seen:
    """What the records so far told."""

    steps: bool = False
    skipped: int = 0


def read(sources: Sequence[Path], given: Given) -> Found:
    """Open files of records."""
    del given
    seen = _Seen()
    found = chain.from_iterable(passes(same_choices(_records(path, seen), path), path) for path in sources)
    first = next(found, None)
    if first is None:
        raise bad(sources[0], "no records with layer and topk_ids", "expected one JSON object for each token and layer")
    top_k = first.ids_TLK.shape[2]
    opened = Found(sources[0], "hidden", iter(()), per_token=True, layer_ids=first.layers, top_k=top_k)
    return replace(opened, blocks=_blocks(chain([first], found), first, seen, opened))


def _records(path: Path, seen: _Seen) -> Iterator[LayerRecord]:
    for line, record in records(path):
        key = next((name for name in _IDS if name in record), None)
        if key is None or "layer" not in record:
            seen.skipped += 1  # a header, or something else that was logged
            continue
        layer = record["layer"]
        if type(layer) is not int or not 0 <= layer < 10_000:
            raise bad(path, f"{layer!r} is not a layer", "expected a whole number", line=line, key="layer")
        ids: Any = record[key]
        nested = isinstance(ids, list) and bool(ids) and isinstance(ids[0], list)
        ids_TK = whole_numbers(ids if nested else [ids], 2, path, key, line)
        step = next((record[name] for name in _STEPS if type(record.get(name)) is int), None)
        seen.steps = seen.steps or step is not None
        yield LayerRecord(line, step or 0, layer, ids_TK, _tokens(record.get("token_idx"), len(ids_TK)))


def _tokens(said: Any, rows: int) -> tuple[int, ...] | None:
    """The tokens of a record's rows; None: not told."""
    every = said if isinstance(said, list) else [said]
    if len(every) != rows or any(type(token) is not int for token in every):
        return None
    return tuple(every)


def _blocks(found: Iterator[Pass], first: Pass, seen: _Seen, opened: Found) -> Iterator[TokenBlock]:
    held: list[Pass] = []
    with_steps = seen.steps
    for one in found:
        if one.layers != first.layers or one.ids_TLK.shape[2] != first.ids_TLK.shape[2]:
            raise bad(opened.path, "files differ in layers or top-k", "give the files of one run")
        held.append(one)
        if sum(len(each.ids_TLK) for each in held) >= GATHERED:
            yield _block(held, with_steps)
            held = []
    if held:
        yield _block(held, with_steps)
    if seen.skipped:
        opened.notes.append(f"{format_number_of(seen.skipped, 'record')} without layer and topk_ids left out")


def _block(held: Sequence[Pass], with_steps: bool) -> TokenBlock:
    ids = np.concatenate([one.ids_TLK for one in held])
    if not with_steps:
        return TokenBlock(ids)
    steps = [np.full(len(one.ids_TLK), one.step, dtype=np.int64) for one in held]
    return TokenBlock(ids, step_id_T=np.concatenate(steps))
