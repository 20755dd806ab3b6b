"""The recorded routing once more, token by token: what each rank sends where, by the plan's own rule.

Token j of a window starts on GPU j mod (tp * dp) of its stage and stays in that GPU's copy of the
expert grid. Which copy of an expert serves its choice stands in `planner.cost.served`. Every rank
derives its own part from the trace; nothing is sent around.

Where only counts were recorded, tokens are made that choose exactly as counted, no expert twice.

Legend: T tokens of a window, L traced layers, K choices, E experts, P slots, S windows, V link levels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from planner.cost.instance import Instance
from planner.cost.served import Pools
from planner.cost.sharing import Sharing
from planner.inputs.workload import Phase
from planner.plan.split import Split
from planner.trace.batches import MAX_WINDOWS, MIN_WINDOWS, window_of_token
from planner.trace.dealing import dealt, dealt_tokens
from planner.trace.native import read_trace
from planner.trace.trace import CountTrace, TokenTrace, Trace

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

_HELD_CHOICES: Final = 1 << 26
"""Choices that are held in memory at a time; a trace with more is read several times."""
_EVEN_TOKENS: Final = 256
"""Tokens of the made-up window for a plan without a trace, per GPU of a stage at most."""
_EMULATED_TOKENS: Final = 8
"""The same in an emulation."""


@dataclass(frozen=True)
class RecordedWindow:
    """What the tokens of one window chose."""

    ids_TLK: NDArray[Any]
    """-1: no expert."""
    weights_TLK: Floats
    """Router weights; as recorded, else falling with the choice."""

    @property
    def num_tokens(self) -> int:
        """T."""
        return len(self.ids_TLK)

    def cycled(self, tokens: int) -> RecordedWindow:
        """The same window over so many tokens: its tokens again and again."""
        again_T = np.arange(tokens) % self.num_tokens
        return RecordedWindow(self.ids_TLK[again_T], self.weights_TLK[again_T])


def replayed(
    trace_paths: Sequence[Path], instance: Instance, split: Split, *, emulates: bool
) -> Iterator[RecordedWindow]:
    """What a validation replays: the recorded windows, or a made-up one for a plan without a trace."""
    if trace_paths:
        traces = [read_trace(path).trace for path in trace_paths]
        yield from recorded_windows(traces, instance.workload.phase, instance.step_tokens)
        return
    moe, per_gpu = instance.model.moe, _EMULATED_TOKENS if emulates else _EVEN_TOKENS
    tokens = min(instance.step_tokens, per_gpu * split.stage_gpus)
    yield even_window(len(instance.model.moe_layer_ids), moe.num_experts, moe.top_k, tokens)


def recorded_windows(traces: Sequence[Trace], phase: Phase, step_tokens: int) -> Iterator[RecordedWindow]:
    """The windows of some traces, cut as for planning (`planner.trace.windows.cut`), one after the other."""
    total = sum(trace.num_tokens for trace in traces if isinstance(trace, TokenTrace))
    for trace in traces:
        if isinstance(trace, CountTrace):
            yield from (_of_counts(counts_LE, trace.top_k) for counts_LE in trace.counts_SLE)
            continue
        most = max(MIN_WINDOWS, MAX_WINDOWS * trace.num_tokens // total)
        window_T, _ = window_of_token(trace, phase, step_tokens, most)
        yield from _of_tokens(trace, window_T)


def _of_tokens(trace: TokenTrace, window_T: NDArray[Any]) -> Iterator[RecordedWindow]:
    tokens_S = np.bincount(window_T)
    per_token = len(trace.layer_ids_L) * trace.top_k
    first = 0
    while first < len(tokens_S):
        held = np.cumsum(tokens_S[first:]) * per_token
        end = first + max(1, int(np.searchsorted(held, _HELD_CHOICES, side="right")))
        yield from _read(trace, window_T, range(first, end))
        first = end


def _read(trace: TokenTrace, window_T: NDArray[Any], wanted: range) -> Iterator[RecordedWindow]:
    """Some consecutive windows, in one pass over the file."""
    token_N = np.flatnonzero((window_T >= wanted.start) & (window_T < wanted.stop))
    ids_NLK = _rows(trace, "expert_ids", token_N)
    if "weights" in trace.source.headers:
        weights_NLK = _rows(trace, "weights", token_N).astype(np.float32)
    else:
        weights_NLK = stated_weights(ids_NLK)
    window_N = window_T[token_N]
    for window in wanted:
        mine = window_N == window
        yield RecordedWindow(ids_NLK[mine], weights_NLK[mine])


def _rows(trace: TokenTrace, name: str, token_N: Ints) -> NDArray[Any]:
    first, end = int(token_N[0]), int(token_N[-1]) + 1
    parts = []
    for start, block in trace.source.rows(name, first, end):
        inside = token_N[(token_N >= start) & (token_N < start + len(block))]
        parts.append(block[inside - start])
    return np.concatenate(parts)


def stated_weights(ids_TLK: NDArray[Any]) -> Floats:
    """Weights where none were recorded: the first choice weighs most, so that mixed-up choices show."""
    falling_K = np.arange(ids_TLK.shape[2], 0, -1, dtype=np.float32)
    return np.broadcast_to(falling_K / falling_K.sum(), ids_TLK.shape)


def _of_counts(counts_LE: Ints, top_k: int) -> RecordedWindow:
    """Tokens that choose as counted (`planner.trace.dealing`)."""
    tokens = dealt_tokens(counts_LE, top_k)
    width = max(top_k, -(-int(counts_LE.sum(axis=1).max()) // tokens))
    ids_LTK = np.full((len(counts_LE), tokens, width), -1, dtype=np.int32)
    for row, counts_E in enumerate(counts_LE):
        chosen = np.repeat(np.arange(len(counts_E), dtype=np.int32), counts_E)
        round_N, token_N = dealt(np.arange(len(chosen)), tokens)
        ids_LTK[row, token_N, round_N] = chosen
    ids_TLK = ids_LTK.transpose(1, 0, 2)
    return RecordedWindow(ids_TLK, stated_weights(ids_TLK))


def even_window(num_layers: int, num_experts: int, top_k: int, tokens: int) -> RecordedWindow:
    """Made-up routing for a plan without a trace: every token chooses at random, all experts alike."""
    rng = np.random.default_rng(0)
    ids_TLK = rng.random((tokens, num_layers, num_experts)).argpartition(top_k - 1, axis=2)[..., :top_k]
    return RecordedWindow(ids_TLK.astype(np.int32), stated_weights(ids_TLK))


def serving_slots(
    ids_TK: NDArray[Any],
    expert_P: Ints,
    num_experts: int,
    sharing: Sharing | None = None,
    home_T: Ints | None = None,
) -> Ints:
    """The slot that serves each choice of a window [T, K]; -1 where there is no expert.

    Args:
        ids_TK: choices of one layer, tokens in order of the window.
        expert_P: logical expert in each slot.
        num_experts: E.
        sharing: how copies share tokens; default: evenly.
        home_T: EP rank on which each token starts; only where the nearest copy serves.
    """
    assert home_T is not None or sharing is None or sharing.rule == "even", "nearest to what?"
    tokens, choices = np.shape(ids_TK)
    homes = np.zeros(tokens, dtype=np.int64) if home_T is None else home_T
    pools = Pools.of(expert_P, num_experts, sharing)
    flat = np.asarray(ids_TK).reshape(-1).astype(np.int64)
    return pools.slots(flat, np.repeat(homes, choices)).reshape(tokens, choices)
