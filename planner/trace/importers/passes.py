"""Joins records of one layer each into blocks of tokens with all layers.

Engines write a record per layer and forward pass. Layers of one pass ascend, so a layer that does not
rise begins the next pass.

Legend: T tokens, L layers, K choices.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from planner.trace.importers.found import bad

GATHERED: Final = 4096
"""Tokens joined into one block where passes are short."""
_MOST_BYTES: Final = 1 << 30
"""Of the records of one pass in memory."""
_RECORD_BYTES: Final = 200
"""What a record takes beside its ids."""
_UNEQUAL: Final = "cut off, or layers recorded twice? leave this pass out"


@dataclass(frozen=True)
class LayerRecord:
    """The choices of one layer for the tokens of one pass, or of a part of it."""

    line: int
    step: int
    layer: int
    ids_TK: NDArray[np.int64]
    tokens: tuple[int, ...] | None = None
    """Which token of the pass each row is; None: not told, rows are in the order of all layers."""


@dataclass(frozen=True)
class Pass:
    """The tokens of one forward pass in all layers of a file."""

    line: int
    step: int
    layers: tuple[int, ...]
    ids_TLK: NDArray[np.int64]


def passes(records: Iterator[LayerRecord], path: Path) -> Iterator[Pass]:
    """Join records into passes; raises `InputError` where layers are missing or disagree on the tokens."""
    held: dict[int, list[LayerRecord]] = {}
    line, step, last, size, first_layers = 0, 0, -1, 0, None
    for record in records:
        if held and (record.step != step or record.layer < last):
            found = _joined(held, line, step, path)
            first_layers = _same_layers(found, first_layers, path)
            yield found
            held = {}
        if not held:
            line, step, size = record.line, record.step, 0
        held.setdefault(record.layer, []).append(record)
        size += record.ids_TK.nbytes + _RECORD_BYTES
        if size > _MOST_BYTES:
            hint = "a layer that does not rise begins the next pass: split the file where it has one layer only"
            raise bad(path, f"a pass of more than {_MOST_BYTES >> 30} GiB", hint, line=record.line)
        last = record.layer
    if held:
        found = _joined(held, line, step, path)
        _same_layers(found, first_layers, path)
        yield found


def _joined(held: dict[int, list[LayerRecord]], line: int, step: int, path: Path) -> Pass:
    rows = {layer: np.concatenate([record.ids_TK for record in records]) for layer, records in held.items()}
    lengths = {layer: len(ids) for layer, ids in rows.items()}
    if len(set(lengths.values())) > 1:
        few = min(lengths, key=lambda layer: lengths[layer])
        most = max(lengths.values())
        message = f"layer {few} has {lengths[few]} tokens in the pass that begins here, another {most} [token-sum]"
        raise bad(path, message, _UNEQUAL, line=line)
    layers = tuple(sorted(rows))
    order = _order(held, line, path)
    return Pass(line, step, layers, np.stack([rows[layer][order[layer]] for layer in layers], axis=1))


def _order(held: dict[int, list[LayerRecord]], line: int, path: Path) -> dict[int, slice | list[int]]:
    """Which row of each layer is the first token, the second and so on, by the tokens that records name."""
    every: dict[int, slice | list[int]] = dict.fromkeys(held, slice(None))
    named = [record.tokens is not None for records in held.values() for record in records]
    if not any(named):
        return every
    if not all(named):
        message = f"{sum(named)} of {len(named)} records of the pass that begins here name their tokens"
        raise bad(path, message, "expected token_idx in all of them, or in none", line=line)
    tokens = {layer: [token for record in records for token in record.tokens or ()] for layer, records in held.items()}
    first, *others = sorted(tokens)
    if len(set(tokens[first])) < len(tokens[first]) and all(tokens[layer] == tokens[first] for layer in others):
        return every  # of one layer alone, passes are not told apart, and each begins at token 0
    for layer, of_layer in tokens.items():
        twice = next((token for token, count in Counter(of_layer).items() if count > 1), None)
        if twice is not None:
            message = f"layer {layer} has token {twice} twice in the pass that begins here [token-sum]"
            raise bad(path, message, _UNEQUAL, line=line, key="token_idx")
    for layer in others:
        strange = set(tokens[layer]) ^ set(tokens[first])
        if strange:
            lacks = layer if min(strange) in tokens[first] else first
            message = f"layer {lacks} lacks token {min(strange)} in the pass that begins here, another has it"
            raise bad(path, f"{message} [token-sum]", _UNEQUAL, line=line, key="token_idx")
    return {layer: sorted(range(len(of_layer)), key=of_layer.__getitem__) for layer, of_layer in tokens.items()}


def _same_layers(found: Pass, first: tuple[int, ...] | None, path: Path) -> tuple[int, ...]:
    if first is not None and found.layers != first:
        strange = sorted(set(found.layers) ^ set(first))
        message = f"the pass that begins here has {len(found.layers)} layers, the first one {len(first)}"
        hint = f"layer {strange[0]} is in one of them only; cut off? leave this pass out"
        raise bad(path, message, hint, line=found.line)
    return found.layers


def same_choices(records: Iterator[LayerRecord], path: Path) -> Iterator[LayerRecord]:
    """The records, all of which must have as many choices per token as the first."""
    top_k = 0
    for record in records:
        top_k = top_k or record.ids_TK.shape[1]
        if record.ids_TK.shape[1] != top_k:
            message = f"{record.ids_TK.shape[1]} choices per token, but {top_k} before"
            raise bad(path, message, "expected the same top-k in all records", line=record.line)
        yield record
