"""Counts over traces of any length: blocks are counted one by one, ranges of tokens in parallel.

`counts_of` and `pairs_of` are pure functions of one block. What they give is added up in any order, here or by a
cluster's engine (`shards.py`).

Legend: T tokens, L traced layers, K choices, S parts of the tokens (windows, domains), E experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from planner.errors import InputError
from planner.processes import available_cores, in_order
from planner.trace.choices import choice_problems, looks_sound
from planner.trace.trace import Ints, TokenTrace

_RANGE_CHOICES: Final = 1 << 26
"""Choices that one process counts at a time; smaller traces are counted in this process."""
_SLICE_CHOICES: Final = 1 << 22
"""Choices of a block that are turned over at a time: they stay near the processor."""
_TILE_TOKENS: Final = 1024


def counts_of(ids_TLK: NDArray[Any], part_T: NDArray[Any], num_parts: int, num_experts: int) -> Ints:
    """How often each expert is chosen in each part of a block: [S, L, E].

    Args:
        ids_TLK: expert ids of a block of tokens, -1 for no expert, none of them too large.
        part_T: the part of each token, such as its window.
        num_parts: S.
        num_experts: E.
    """
    layers = ids_TLK.shape[1]
    columns = num_experts + 1  # the last one takes what is no expert
    counts = np.zeros((layers, num_parts * columns), dtype=np.int64)
    for begin, end in slices_of(ids_TLK):
        ids_LKT = by_layer(ids_TLK[begin:end])
        base_T = part_T[begin:end].astype(np.int64) * columns
        for layer in range(layers):
            ids_KT = ids_LKT[layer].astype(np.int64)
            ids_KT[ids_KT < 0] = num_experts
            ids_KT += base_T
            counts[layer] += np.bincount(ids_KT.ravel(), minlength=counts.shape[1])
    by_part = counts.reshape(layers, num_parts, columns)[:, :, :num_experts]
    return np.ascontiguousarray(by_part.transpose(1, 0, 2))


def pairs_of(ids_TLK: NDArray[Any], num_experts: int) -> Ints:
    """How often two experts are chosen by the same token of a block: [L, E, E], symmetric, diagonal 0."""
    _, layers, choices = ids_TLK.shape
    columns = num_experts + 1
    pairs = np.zeros((layers, columns * columns), dtype=np.int64)
    for begin, end in slices_of(ids_TLK):
        ids_LKT = by_layer(ids_TLK[begin:end])
        for layer in range(layers):
            ids_KT = ids_LKT[layer].astype(np.int64)
            ids_KT[ids_KT < 0] = num_experts
            for k in range(1, choices):
                keys = ids_KT[k] * columns + ids_KT[:k]
                pairs[layer] += np.bincount(keys.ravel(), minlength=pairs.shape[1])
    half = pairs.reshape(layers, columns, columns)[:, :num_experts, :num_experts]
    return half + half.transpose(0, 2, 1)


def by_layer(ids_TLK: NDArray[Any]) -> NDArray[Any]:
    """A block turned over to [L, K, T], tile by tile: four times faster than at once, which misses the cache."""
    turned = np.empty((*ids_TLK.shape[1:], len(ids_TLK)), ids_TLK.dtype)
    for begin in range(0, len(ids_TLK), _TILE_TOKENS):
        turned[:, :, begin : begin + _TILE_TOKENS] = ids_TLK[begin : begin + _TILE_TOKENS].transpose(1, 2, 0)
    return turned


def slices_of(ids_TLK: NDArray[Any]) -> Iterator[tuple[int, int]]:
    """Slices of a block that are turned over at a time."""
    tokens = len(ids_TLK)
    step = max(1, _SLICE_CHOICES * tokens // max(1, ids_TLK.size))
    return ((begin, min(begin + step, tokens)) for begin in range(0, tokens, step))


@dataclass(frozen=True)
class _Range:
    """Some consecutive tokens of a trace, for one process."""

    trace: TokenTrace
    begin: int
    end: int
    part_T: NDArray[Any] | None
    """Of these tokens; None: count pairs."""
    num_parts: int
    is_sound: bool = False
    """Whether all choices are known to be possible."""


class _ImpossibleChoicesError(Exception):
    """Some choices cannot be: a second look tells which."""


def count_by(trace: TokenTrace, part_T: NDArray[Any], num_parts: int) -> Ints:
    """How often each expert is chosen in each part (window, domain) of the tokens: [S, L, E].

    Raises:
        InputError: expert ids are out of range or repeated, all told at once; or the file cannot be read.
    """
    shape = (num_parts, len(trace.layer_ids_L), trace.num_experts)
    ranges = [_Range(trace, begin, end, part_T[begin:end], num_parts) for begin, end in ranges_of(trace)]
    return _total(trace, shape, ranges)


def co_activation_counts(trace: TokenTrace) -> Ints:
    """How often two experts are chosen by the same token, over all tokens: [L, E, E]."""
    shape = (len(trace.layer_ids_L), trace.num_experts, trace.num_experts)
    ranges = [_Range(trace, begin, end, None, 0) for begin, end in ranges_of(trace)]
    return _total(trace, shape, ranges)


def _total(trace: TokenTrace, shape: tuple[int, int, int], ranges: Sequence[_Range]) -> Ints:
    """The counts of all ranges together."""
    total = np.zeros(shape, dtype=np.int64)
    try:
        for counts in in_order(available_cores(), _counted, ranges):
            total += counts
    except _ImpossibleChoicesError:
        if problems := choice_problems(trace):
            raise InputError(problems) from None
        # Only rows of layers that route nothing, which are for `consistency.not_routed` to tell.
        return _total(trace, shape, [replace(part, is_sound=True) for part in ranges])
    return total


def ranges_of(trace: TokenTrace) -> Sequence[tuple[int, int]]:
    """Ranges of tokens to count on their own; one where the file must be read from its start."""
    choices = len(trace.layer_ids_L) * trace.top_k
    step = max(1, _RANGE_CHOICES // choices) if trace.seekable else trace.num_tokens
    return [(begin, min(begin + step, trace.num_tokens)) for begin in range(0, trace.num_tokens, step)]


def _counted(part: _Range) -> Ints:
    trace = part.trace
    shape = (part.num_parts, len(trace.layer_ids_L), trace.num_experts)
    total = np.zeros(shape if part.part_T is not None else (*shape[1:], trace.num_experts), dtype=np.int64)
    for start, ids in trace.blocks(part.begin, part.end):
        if not part.is_sound and not all(looks_sound(ids[a:b], trace.num_experts) for a, b in slices_of(ids)):
            raise _ImpossibleChoicesError
        if part.part_T is None:
            total += pairs_of(ids, trace.num_experts)
        else:
            inside = part.part_T[start - part.begin : start - part.begin + len(ids)]
            total += counts_of(ids, inside, part.num_parts, trace.num_experts)
    return total
