"""Windows: what one step (or one recording interval) routed. They are the scenarios of a plan.

A plan must be good on every window, not only on their sum, because each MoE layer of each step
waits for its most loaded GPU. Counted windows and engine steps are taken as they stand. Otherwise
the engine's batch is imitated:

- decode: a running batch. Sequences are admitted in file order into min(step tokens,
  ceil(sequences / 16)) slots; in every step each occupied slot routes its next token; a finished
  sequence's slot goes to the next one. Consecutive steps are joined into a window.
- prefill: whole sequences in file order, joined into windows.
- without sequences: file order.

So drift along the trace stays visible. A window holds about one step's tokens, but there are at
least 16 windows where the trace allows and at most 64; all tokens are used.

Legend: T tokens, S windows, L traced layers, E experts, K choices, N sampled tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from planner.errors import InputError, Place, Problem, ProblemLog
from planner.inputs.units import format_number_of
from planner.inputs.workload import Phase
from planner.trace.aggregate import count_by
from planner.trace.batches import MAX_WINDOWS, MIN_WINDOWS, window_of_token
from planner.trace.homes import CountSource, Homes, Source, TokenSource
from planner.trace.trace import CountTrace, Ints, TokenTrace, Trace

_BLOCK: Final = 1 << 18
LIMIT_COUNTS: Final = 1 << 28
"""Windows x layers x experts that are counted: 2 GiB."""
SAMPLED_TOKENS: Final = 16_384
"""Tokens over all windows whose expert sets are kept for traffic; see docs/model.md, "Traffic"."""
_SHOWN_LAYERS: Final = 8
"""Layers that a message names."""


@dataclass(frozen=True)
class TokenSets:
    """Which experts sampled tokens chose together, for traffic that is sent once per GPU or node."""

    window_N: NDArray[np.int32]
    """Window of each sampled token, ascending."""
    experts_NLK: NDArray[np.int32]
    """-1: no expert."""


@dataclass(frozen=True)
class Windows:
    """Recorded routing cut into windows, over the traced layers."""

    counts_SLE: Ints
    """Expert choices as recorded."""
    tokens_S: Ints
    """Tokens as recorded."""
    choices_SL: NDArray[np.float64]
    """Expert choices per token: top_k, or less where the trace has choices of no expert."""
    layer_ids_L: Ints
    names_S: tuple[str, ...]
    how: str
    """One sentence for the report: how the windows were made."""
    sets: TokenSets | None = None
    homes: Homes | None = field(default=None, repr=False, compare=False)
    """Counts the same choices by the rank that their tokens start on; None where windows were joined."""

    @property
    def num_windows(self) -> int:
        """S."""
        return len(self.tokens_S)


def cut(traces: Sequence[Trace], phase: Phase, step_tokens: int) -> Windows:
    """Cut traces into windows, once per deployment.

    Args:
        traces: one or more traces of the same layers and experts.
        phase: how the batch is imitated where the trace does not say.
        step_tokens: tokens that one step of the workload routes.

    Raises:
        InputError: the traces disagree, or experts are chosen that do not exist or twice by one token.
    """
    _same_shape(traces)
    total = sum(trace.num_tokens for trace in traces if isinstance(trace, TokenTrace))
    parts, log = [], ProblemLog()
    for trace in traces:
        if isinstance(trace, CountTrace):
            parts.append(_of_counts(trace))
            continue
        most = max(MIN_WINDOWS, MAX_WINDOWS * trace.num_tokens // total)
        sample = max(1, SAMPLED_TOKENS * trace.num_tokens // total)
        try:
            parts.append(_of_tokens(trace, phase, step_tokens, most, sample))
        except InputError as error:
            log.extend(error.problems)
    log.raise_if_any()
    return parts[0] if len(parts) == 1 else _joined(parts, traces)


def _same_shape(traces: Sequence[Trace]) -> None:
    first = traces[0]
    for trace in traces[1:]:
        if (
            trace.num_experts != first.num_experts
            or trace.top_k != first.top_k
            or not np.array_equal(trace.layer_ids_L, first.layer_ids_L)
        ):
            message = f"{_shape(trace)}, but {first.path} has {_shape(first)}"
            hint = "traces of one deployment must cover the same layers of the same model"
            raise InputError(Problem(message, Place(str(trace.path)), hint))


def _shape(trace: Trace) -> str:
    shown = ", ".join(map(str, trace.layer_ids_L[:_SHOWN_LAYERS].tolist()))
    more = ", ..." if len(trace.layer_ids_L) > _SHOWN_LAYERS else ""
    layers = f"{format_number_of(len(trace.layer_ids_L), 'layer')} ({shown}{more})"
    return f"{trace.num_experts} experts, top-{trace.top_k}, {layers}"


def _of_counts(trace: CountTrace) -> Windows:
    tokens_S = np.maximum(trace.counts_SLE[:, 0].sum(axis=1) // trace.top_k, 1)
    choices_SL = np.full(trace.counts_SLE.shape[:2], float(trace.top_k))
    how = f"{format_number_of(len(tokens_S), 'window')} as counted"
    homes = _homes(CountSource(trace), trace)
    return Windows(trace.counts_SLE, tokens_S, choices_SL, trace.layer_ids_L, trace.names_S, how, None, homes)


def _homes(source: Source, trace: Trace) -> Homes:
    return Homes((source,), tuple(range(source.num_windows)), tuple(range(len(trace.layer_ids_L))))


def _of_tokens(trace: TokenTrace, phase: Phase, step_tokens: int, most: int, sample: int) -> Windows:
    window_T, how = window_of_token(trace, phase, step_tokens, most)
    num_windows = int(window_T.max()) + 1
    _not_too_many(trace, num_windows)
    counts_SLE = count_by(trace, window_T, num_windows)
    _no_empty_rows(trace, counts_SLE)
    tokens_S = _tokens_of(window_T, num_windows)
    names = tuple(f"window {index}" for index in range(num_windows))
    choices_SL = counts_SLE.sum(axis=2) / tokens_S[:, None]
    sets = _sample(trace, window_T, tokens_S, sample)
    homes = _homes(TokenSource(trace, phase, step_tokens, most, num_windows), trace)
    return Windows(counts_SLE, tokens_S, choices_SL, trace.layer_ids_L, names, how, sets, homes)


def _not_too_many(trace: TokenTrace, num_windows: int) -> None:
    layers = len(trace.layer_ids_L)
    if num_windows * layers * trace.num_experts > LIMIT_COUNTS:
        message = f"{num_windows:,} windows x {layers} layers x {trace.num_experts} experts are too many to count"
        hint = "record fewer steps, or leave step_id out: consecutive steps are then joined into windows"
        raise InputError(Problem(message, Place(str(trace.path), key="step_id"), hint))


def _no_empty_rows(trace: TokenTrace, counts_SLE: Ints) -> None:
    empty = np.argwhere(counts_SLE.sum(axis=2) == 0)
    if len(empty):
        message = f"no expert is chosen in layer {trace.layer_ids_L[empty[0, 1]]} by any token of window {empty[0, 0]}"
        hint = "leave out layers that are not MoE, and tokens that were not routed"
        raise InputError(Problem(message, Place(str(trace.path), key="expert_ids"), hint))


def _tokens_of(window_T: NDArray[Any], num_windows: int) -> Ints:
    """Tokens of each window, block by block: `bincount` makes eight bytes of each number."""
    total_S = np.zeros(num_windows, dtype=np.int64)
    for start in range(0, len(window_T), _BLOCK):
        total_S += np.bincount(window_T[start : start + _BLOCK], minlength=num_windows)
    return total_S


def _sample(trace: TokenTrace, window_T: NDArray[Any], tokens_S: Ints, sample: int) -> TokenSets:
    """An even share of the tokens of every window, chosen by a fixed seed, sorted by window."""
    rng = np.random.default_rng(0)
    chosen = []
    share = min(1.0, sample / len(window_T))
    for tokens in _by_window(window_T, tokens_S):
        count = max(1, round(share * len(tokens)))
        chosen.append(np.sort(rng.permutation(tokens)[:count]))
    token_N = np.sort(np.concatenate(chosen))
    rows = []
    for start, block in trace.blocks():
        inside = token_N[(token_N >= start) & (token_N < start + len(block))]
        rows.append(block[inside - start].astype(np.int32))
    window_N = window_T[token_N].astype(np.int32)
    by_window = np.argsort(window_N, kind="stable")
    return TokenSets(window_N[by_window], np.concatenate(rows)[by_window])


def _by_window(window_T: NDArray[Any], tokens_S: Ints) -> Iterator[Ints]:
    """The tokens of each window; one window at a time where they are few and large."""
    if len(tokens_S) <= MAX_WINDOWS:
        yield from (np.flatnonzero(window_T == window) for window in range(len(tokens_S)))
    else:
        yield from np.split(np.argsort(window_T, kind="stable"), np.cumsum(tokens_S)[:-1])


def _joined(parts: list[Windows], traces: Sequence[Trace]) -> Windows:
    names, sets_window, sets_experts, first = [], [], [], 0
    for part, trace in zip(parts, traces, strict=True):
        names += [f"{trace.path.name} {name}" for name in part.names_S]
        if part.sets is not None:
            sets_window.append(part.sets.window_N + np.int32(first))
            sets_experts.append(part.sets.experts_NLK)
        first += part.num_windows
    complete = len(sets_window) == len(parts)
    sources = tuple(source for part in parts if part.homes is not None for source in part.homes.sources)
    return Windows(
        counts_SLE=np.concatenate([part.counts_SLE for part in parts]),
        tokens_S=np.concatenate([part.tokens_S for part in parts]),
        choices_SL=np.concatenate([part.choices_SL for part in parts]),
        layer_ids_L=parts[0].layer_ids_L,
        names_S=tuple(names),
        how="; ".join(f"{trace.path.name}: {part.how}" for part, trace in zip(parts, traces, strict=True)),
        sets=TokenSets(np.concatenate(sets_window), np.concatenate(sets_experts)) if complete else None,
        homes=Homes(sources, tuple(range(first)), tuple(range(len(parts[0].layer_ids_L)))),
    )


def subset(windows: Windows, keep: Sequence[int]) -> Windows:
    """Only some windows, in the order given."""
    sets = None
    if windows.sets is not None:
        new = np.full(windows.num_windows, -1, dtype=np.int32)
        new[list(keep)] = np.arange(len(keep), dtype=np.int32)
        renamed = new[windows.sets.window_N]
        inside = np.argsort(renamed, kind="stable")[np.count_nonzero(renamed < 0) :]
        sets = TokenSets(renamed[inside], windows.sets.experts_NLK[inside])
    return Windows(
        windows.counts_SLE[list(keep)],
        windows.tokens_S[list(keep)],
        windows.choices_SL[list(keep)],
        windows.layer_ids_L,
        tuple(windows.names_S[index] for index in keep),
        windows.how,
        sets,
        windows.homes and windows.homes.of_windows(keep),
    )


def of_steps(windows: Windows, step_tokens: int) -> Windows:
    """Neighbouring windows joined until each holds a step's tokens; as they stand where most hold half of them.

    In shorter windows chance alone makes ranks unequal, which a step of that size would not see. No homes: such windows
    are judged, never replayed, and tokens of several traces have no number in common.
    """
    count = max(1, int(windows.tokens_S.sum()) // step_tokens)
    if 2 * np.median(windows.tokens_S) >= step_tokens:
        return windows
    middle_S = np.cumsum(windows.tokens_S) - windows.tokens_S / 2
    group_S = (middle_S * count / windows.tokens_S.sum()).astype(np.int64)
    starts = np.flatnonzero(np.diff(group_S, prepend=-1))
    tokens_S = np.add.reduceat(windows.tokens_S, starts)
    counts_SLE = np.add.reduceat(windows.counts_SLE, starts)
    sets = windows.sets
    if sets is not None:
        number_S = np.searchsorted(starts, np.arange(windows.num_windows), side="right") - 1
        sets = TokenSets(number_S[sets.window_N].astype(np.int32), sets.experts_NLK)
    choices_SL = np.add.reduceat(windows.choices_SL * windows.tokens_S[:, None], starts) / tokens_S[:, None]
    names = tuple(windows.names_S[start] for start in starts.tolist())
    made = replace(windows, counts_SLE=counts_SLE, tokens_S=tokens_S, choices_SL=choices_SL, names_S=names)
    return replace(made, sets=sets, homes=None)


def of_layers(windows: Windows, rows: Sequence[int]) -> Windows:
    """Only some of the traced layers, by their rows."""
    keep = list(rows)
    sets = windows.sets and TokenSets(windows.sets.window_N, windows.sets.experts_NLK[:, keep])
    return replace(
        windows,
        counts_SLE=windows.counts_SLE[:, keep],
        choices_SL=windows.choices_SL[:, keep],
        layer_ids_L=windows.layer_ids_L[keep],
        sets=sets,
        homes=windows.homes and windows.homes.of_layers(keep),
    )
