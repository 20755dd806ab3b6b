"""Which window each token belongs to: the engine's batch imitated (docs/model.md, section 3).

Columns are read in blocks, and beside one small number per token only what grows with the sequences
is kept. Where positions do not rise within a sequence, tokens are sorted in memory.

Legend: T tokens, A atoms (steps or sequences, whose tokens stay together), Q sequences, B stretches of steps.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from planner.inputs.units import format_number_of
from planner.inputs.workload import Phase
from planner.trace.trace import Ints, TokenTrace

MIN_WINDOWS: Final = 16
MAX_WINDOWS: Final = 64
_BLOCK: Final = 1 << 18


def window_of_token(
    trace: TokenTrace, phase: Phase, step_tokens: int, most: int = MAX_WINDOWS
) -> tuple[NDArray[Any], str]:
    """The window of each token [T], and one sentence that says how it was found."""
    if "step_id" in trace.columns:
        window_T, steps = _recorded_steps(trace)
        return window_T, f"{format_number_of(steps, 'engine step')} as recorded"
    wanted = min(max(round(trace.num_tokens / step_tokens), MIN_WINDOWS), most, trace.num_tokens)
    if "seq_id" not in trace.columns:
        window_T, kind = _of_file_order(trace.num_tokens, wanted), "tokens in file order"
    else:
        window_T, kind = _of_sequences(trace, phase, step_tokens, wanted)
    windows = int(window_T.max()) + 1
    size = format_number_of(round(trace.num_tokens / windows), "token")
    return window_T, f"{format_number_of(windows, 'window')} of about {size}, cut from {kind}"


def _small(count: int) -> type[np.unsignedinteger[Any]] | type[np.signedinteger[Any]]:
    """The smallest type for numbers below `count`."""
    return np.uint8 if count <= 1 << 8 else np.int32


def _recorded_steps(trace: TokenTrace) -> tuple[NDArray[Any], int]:
    steps_A: Ints = np.zeros(0, dtype=np.int64)
    for _, step_T in trace.column("step_id"):
        steps_A = np.union1d(steps_A, step_T)
    window_T = np.empty(trace.num_tokens, dtype=_small(len(steps_A)))
    for start, step_T in trace.column("step_id"):
        window_T[start : start + len(step_T)] = np.searchsorted(steps_A, step_T)
    return window_T, len(steps_A)


def _of_file_order(tokens: int, wanted: int) -> NDArray[Any]:
    window_T = np.empty(tokens, dtype=_small(wanted))
    for start in range(0, tokens, _BLOCK):
        middle = np.arange(start, min(start + _BLOCK, tokens)) + 0.5
        window_T[start : start + len(middle)] = np.minimum((middle * wanted / tokens).astype(np.int64), wanted - 1)
    return window_T


def _of_sequences(trace: TokenTrace, phase: Phase, step_tokens: int, wanted: int) -> tuple[NDArray[Any], str]:
    ids_Q, order_Q, lengths_Q = _sequences(trace)
    tokens = trace.num_tokens
    if phase == "prefill":
        window_Q = _window_at(np.cumsum(lengths_Q) - lengths_Q / 2, wanted, tokens)
        atoms = ((start, order_Q[np.searchsorted(ids_Q, seq_T)]) for start, seq_T in trace.column("seq_id"))
        return _spread(atoms, lambda atom_T: window_Q[atom_T], wanted, tokens), "whole sequences in file order"
    begins_Q, slots = _admitted(lengths_Q, step_tokens)
    kind = f"a running batch of {format_number_of(slots, 'sequence')}"
    if _positions_rise(trace, ids_Q):
        steps, batch = _steps(trace, ids_Q, order_Q, begins_Q), _batch_sizes(begins_Q, lengths_Q)
        return _spread(steps, lambda step_T: _window_at(batch.middle(step_T), wanted, tokens), wanted, tokens), kind
    seq_id_T, pos_T = trace.seq_id_T, trace.pos_T
    assert seq_id_T is not None
    step_T, _ = running_batch(seq_id_T, pos_T, step_tokens)
    tokens_A = np.bincount(step_T)
    window_A = _window_at(np.cumsum(tokens_A) - tokens_A / 2, wanted, tokens)
    return _spread(iter([(0, step_T)]), lambda atom_T: window_A[atom_T], wanted, tokens), kind


def _window_at(middle_A: NDArray[np.float64], wanted: int, tokens: int) -> Ints:
    """The window of atoms (steps or sequences) by the token in their middle: windows of nearly equal tokens."""
    window_A: Ints = np.minimum((middle_A * wanted / tokens).astype(np.int64), wanted - 1)
    return window_A


def _spread(
    atoms: Iterator[tuple[int, Ints]], window_of: Callable[[Ints], Ints], wanted: int, tokens: int
) -> NDArray[Any]:
    """The window of each token, given blocks of their atoms; windows are renumbered without empty ones."""
    window_T = np.empty(tokens, dtype=_small(wanted))
    filled = np.zeros(wanted, dtype=bool)
    for start, atom_T in atoms:
        window = window_of(atom_T)
        window_T[start : start + len(atom_T)] = window
        filled[window] = True
    if not filled.all():  # a long atom leaves windows empty
        number = (np.cumsum(filled) - 1).astype(window_T.dtype)
        for start in range(0, tokens, _BLOCK):
            window_T[start : start + _BLOCK] = number[window_T[start : start + _BLOCK]]
    return window_T


@dataclass(frozen=True)
class _BatchSizes:
    """How many sequences run in each step, by stretches B of steps in which none enters or leaves."""

    first_B: Ints
    running_B: Ints
    before_B: Ints
    """Tokens routed before the stretch."""

    def middle(self, step_T: Ints) -> NDArray[np.float64]:
        """Which of all tokens, counted step by step, stands in the middle of a step."""
        stretch_T = np.searchsorted(self.first_B, step_T, side="right") - 1
        running_T = self.running_B[stretch_T]
        until_T = self.before_B[stretch_T] + (step_T - self.first_B[stretch_T] + 1) * running_T
        middle_T: NDArray[np.float64] = until_T - running_T / 2
        return middle_T


def _batch_sizes(begins_Q: Ints, lengths_Q: Ints) -> _BatchSizes:
    ends_Q = begins_Q + lengths_Q
    first_B = np.unique(np.concatenate([begins_Q, ends_Q]))
    change_B = np.zeros(len(first_B), dtype=np.int64)
    np.add.at(change_B, np.searchsorted(first_B, begins_Q), 1)
    np.subtract.at(change_B, np.searchsorted(first_B, ends_Q), 1)
    running_B = np.cumsum(change_B)
    before_B = np.concatenate([[0], np.cumsum(running_B[:-1] * np.diff(first_B))])
    return _BatchSizes(first_B, running_B, before_B)


def _sequences(trace: TokenTrace) -> tuple[Ints, Ints, Ints]:
    """Ids of the sequences [Q, ascending], their rank by first appearance, and their lengths by that rank."""
    ids_Q: Ints = np.zeros(0, dtype=np.int64)
    first_Q: Ints = np.zeros(0, dtype=np.int64)
    tokens_Q: Ints = np.zeros(0, dtype=np.int64)
    for start, seq_T in trace.column("seq_id"):
        new, first, count = np.unique(seq_T, return_index=True, return_counts=True)
        joined, where = np.unique(np.concatenate([ids_Q, new]), return_inverse=True)
        firsts = np.full(len(joined), trace.num_tokens, dtype=np.int64)
        np.minimum.at(firsts, where, np.concatenate([first_Q, first + start]))
        sums = np.zeros(len(joined), dtype=np.int64)
        np.add.at(sums, where, np.concatenate([tokens_Q, count]))
        ids_Q, first_Q, tokens_Q = joined, firsts, sums
    by_first = np.argsort(first_Q, kind="stable")
    order_Q = np.empty(len(ids_Q), dtype=np.int64)
    order_Q[by_first] = np.arange(len(ids_Q))
    return ids_Q, order_Q, tokens_Q[by_first]


def _admitted(lengths_Q: Ints, step_tokens: int) -> tuple[Ints, int]:
    """The step in which each sequence begins, and the slots: a slot that falls free takes the next sequence."""
    slots = min(step_tokens, -(-len(lengths_Q) // MIN_WINDOWS))
    free_at = [0] * slots
    begins_Q = np.empty(len(lengths_Q), dtype=np.int64)
    for sequence, length in enumerate(lengths_Q.tolist()):
        begins_Q[sequence] = free_at[0]
        heapq.heapreplace(free_at, free_at[0] + length)
    return begins_Q, slots


def _positions_rise(trace: TokenTrace, ids_Q: Ints) -> bool:
    """Whether every sequence's tokens stand in the file in the order of their positions."""
    if "pos" not in trace.columns:
        return True
    last_Q = np.full(len(ids_Q), np.iinfo(np.int64).min)
    for (_, seq_T), (_, pos_T) in zip(trace.column("seq_id"), trace.column("pos"), strict=True):
        order = np.argsort(seq_T, kind="stable")
        seq, pos = np.searchsorted(ids_Q, seq_T[order]), pos_T[order]
        begins = np.flatnonzero(np.diff(seq, prepend=-1))
        before = np.concatenate([[0], pos[:-1]])
        before[begins] = last_Q[seq[begins]]
        if (pos < before).any():
            return False
        ends = np.append(begins[1:], len(seq)) - 1
        last_Q[seq[ends]] = pos[ends]
    return True


def _steps(trace: TokenTrace, ids_Q: Ints, order_Q: Ints, begins_Q: Ints) -> Iterator[tuple[int, Ints]]:
    """The engine step of each token, block by block: its sequence's first step and its place in it."""
    seen_Q = np.zeros(len(ids_Q), dtype=np.int64)
    for start, seq_T in trace.column("seq_id"):
        rank_T = order_Q[np.searchsorted(ids_Q, seq_T)]
        order = np.argsort(rank_T, kind="stable")
        ranks, counts = np.unique(rank_T, return_counts=True)
        within = np.arange(len(rank_T)) - np.repeat(np.cumsum(counts) - counts, counts)
        step_T = np.empty(len(rank_T), dtype=np.int64)
        step_T[order] = np.repeat(begins_Q[ranks] + seen_Q[ranks], counts) + within
        seen_Q[ranks] += counts
        yield start, step_T


def running_batch(seq_id_T: Ints, pos_T: Ints | None, step_tokens: int) -> tuple[Ints, int]:
    """The engine step [T] in which a running batch would route each token, and its slots; in memory.

    Sequences enter in file order; a slot whose sequence has ended takes the next in the next step.
    """
    seq_T = file_order(seq_id_T)
    lengths = np.bincount(seq_T)
    begins, slots = _admitted(lengths, step_tokens)
    order = np.lexsort((np.arange(len(seq_T)) if pos_T is None else pos_T, seq_T))
    offset_T = np.empty(len(seq_T), dtype=np.int64)
    offset_T[order] = np.arange(len(seq_T)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return begins[seq_T] + offset_T, slots


def file_order(seq_id_T: Ints) -> Ints:
    """Number sequences 0, 1, ... by first appearance."""
    _, first, inverse = np.unique(seq_id_T, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(len(first))
    ordered: Ints = rank[inverse]
    return ordered
