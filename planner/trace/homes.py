"""How often experts are chosen by tokens of each home: the EP rank on which a token starts.

Where the nearest copy of an expert serves, what each copy serves depends on it. Over all experts, windows and homes
these counts can be larger than the trace, so they are made when they are asked for, of the experts in question only,
in one pass over the trace for as many layers as fit into memory. Traces are cut again as they were (`batches.py`).

Legend: T tokens, S windows, L traced layers, K choices, R EP ranks, E experts, C some experts of a layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from planner.errors import MissingEnvironmentError
from planner.inputs.workload import Phase
from planner.processes import in_order, spare_cores
from planner.trace.aggregate import by_layer, ranges_of, slices_of
from planner.trace.batches import window_of_token
from planner.trace.dealing import dealt, dealt_tokens
from planner.trace.trace import CountTrace, Ints, TokenTrace

_BLOCK: Final = 1 << 18
_PASS_COUNTS: Final = 1 << 26
"""Counts that one pass over a trace makes, unless a single layer has more: 256 MiB."""
_HELD_COUNTS: Final = 1 << 28
"""Counts that processes hold together."""

Wanted = Sequence[tuple[int, Ints]]
"""Rows of traced layers, each with the experts in question [C], ascending."""


@dataclass(frozen=True)
class Spread:
    """How the tokens of a window are spread over a stage.

    Token j starts on GPU j mod (tp * dp), which is EP rank (GPU // etp) mod ep of its copy of the expert grid. The
    GPUs are a multiple of ep * etp, so that is (j // etp) mod ep.
    """

    ep: int
    etp: int

    def home(self, token_N: Ints) -> Ints:
        """EP rank on which tokens start, by their number in the window."""
        return token_N // self.etp % self.ep

    def tokens_before(self, token_N: Ints) -> Ints:
        """Tokens of each home before these tokens of a window [N..., R]."""
        turns, rest = np.divmod(token_N[..., None], self.ep * self.etp)
        before: Ints = turns * self.etp + np.clip(rest - np.arange(self.ep) * self.etp, 0, self.etp)
        return before


class Source(Protocol):
    """One trace and how it was cut."""

    @property
    def num_windows(self) -> int:
        """Windows that it was cut into."""

    def count(self, spread: Spread, wanted: Wanted, keep: Ints) -> list[NDArray[Any]]:
        """Choices of the wanted experts by home, of some windows in ascending order: [S, C, R] for each layer."""


@dataclass(frozen=True)
class CountSource:
    """A trace of counts: homes follow from how its choices are dealt to tokens."""

    trace: CountTrace

    @property
    def num_windows(self) -> int:
        """As counted."""
        return len(self.trace.counts_SLE)

    def count(self, spread: Spread, wanted: Wanted, keep: Ints) -> list[NDArray[Any]]:
        """As `Source` says."""
        counts_SLE = self.trace.counts_SLE[keep]
        tokens_S1 = np.array([[dealt_tokens(counts_LE, self.trace.top_k)] for counts_LE in counts_SLE])
        every_S1R = spread.tokens_before(tokens_S1)
        found: list[NDArray[Any]] = []
        for row, expert_C in wanted:
            end_SC = np.cumsum(counts_SLE[:, row], axis=1)[:, expert_C]
            before_XSCR = []
            for position_SC in (end_SC - counts_SLE[:, row, expert_C], end_SC):
                round_SC, token_SC = dealt(position_SC, tokens_S1)
                before_XSCR.append(round_SC[:, :, None] * every_S1R + spread.tokens_before(token_SC))
            found.append(before_XSCR[1] - before_XSCR[0])
        return found


@dataclass(frozen=True)
class TokenSource:
    """A trace of tokens, and what `window_of_token` cut it by."""

    trace: TokenTrace
    phase: Phase
    step_tokens: int
    most: int
    num_windows: int

    def count(self, spread: Spread, wanted: Wanted, keep: Ints) -> list[NDArray[Any]]:
        """As `Source` says; raises `MissingEnvironmentError` where the trace is not to be had."""
        if not self.trace.path.is_file():
            message = f"{self.trace.path}: gone, but which copy is the nearest is counted from it"
            raise MissingEnvironmentError(message, hint="workers on other machines need traces under the same path")
        window_T, _ = window_of_token(self.trace, self.phase, self.step_tokens, self.most)
        home_T = homes_of(window_T, self.num_windows, spread)
        new_S = np.full(self.num_windows, -1, dtype=np.int32)
        new_S[keep] = np.arange(len(keep), dtype=np.int32)
        size = len(keep) * spread.ep * sum(len(expert_C) for _, expert_C in wanted)
        cores = min(spare_cores(), max(1, _HELD_COUNTS // max(1, size)))
        jobs = [
            _Range(self.trace, begin, end, new_S[window_T[begin:end]], home_T[begin:end], len(keep), spread.ep, wanted)
            for begin, end in ranges_of(self.trace)
        ]
        total: list[NDArray[np.int32]] = []
        for counted in in_order(cores, _counted, jobs):
            for sum_SCR, more_SCR in zip(total, counted, strict=False):
                np.add(sum_SCR, more_SCR, out=sum_SCR)
            total = total or counted
        return list(total)


def homes_of(window_T: NDArray[Any], num_windows: int, spread: Spread) -> NDArray[Any]:
    """The home of each token: within a window tokens are numbered as they stand in the file."""
    home_T = np.empty(len(window_T), dtype=np.uint8 if spread.ep <= 1 << 8 else np.int32)
    before_S = np.zeros(num_windows, dtype=np.int64)
    for start in range(0, len(window_T), _BLOCK):
        block_T = window_T[start : start + _BLOCK]
        by_window = np.argsort(block_T, kind="stable")
        tokens_S = np.bincount(block_T, minlength=num_windows)
        number_T = np.empty(len(block_T), dtype=np.int64)
        number_T[by_window] = np.arange(len(block_T)) + np.repeat(before_S - (np.cumsum(tokens_S) - tokens_S), tokens_S)
        home_T[start : start + len(block_T)] = spread.home(number_T)
        before_S += tokens_S
    return home_T


@dataclass(frozen=True)
class _Range:
    """Some consecutive tokens of a trace, for one process."""

    trace: TokenTrace
    begin: int
    end: int
    window_T: NDArray[np.int32]
    """Of these tokens; -1: not counted."""
    home_T: NDArray[Any]
    num_windows: int
    ranks: int
    wanted: Wanted


def _counted(part: _Range) -> list[NDArray[np.int32]]:
    sizes = [(part.num_windows, len(expert_C), part.ranks) for _, expert_C in part.wanted]
    total = [np.zeros(size, dtype=np.int32) for size in sizes]
    for start, ids_TLK in part.trace.blocks(part.begin, part.end):
        first = start - part.begin
        window_T, home_T = (values[first : first + len(ids_TLK)] for values in (part.window_T, part.home_T))
        inside = window_T >= 0
        if inside.any():
            every = bool(inside.all())
            block = (ids_TLK, window_T, home_T) if every else (ids_TLK[inside], window_T[inside], home_T[inside])
            count_homes(*block, part.trace.num_experts, part.wanted, total)
    return total


def count_homes(
    ids_TLK: NDArray[Any],
    window_T: NDArray[Any],
    home_T: NDArray[Any],
    num_experts: int,
    wanted: Wanted,
    total: Sequence[NDArray[np.int32]],
) -> None:
    """Add the choices of a block of tokens to the counts.

    Args:
        ids_TLK: expert ids, -1 for no expert, none of them too large.
        window_T: the window of each token.
        home_T: its home.
        num_experts: E.
        wanted: whose choices are counted.
        total: for each wanted layer the counts [S, C, R].
    """
    column = [np.full(num_experts + 1, -1, dtype=np.int64) for _ in wanted]  # the last entry is for -1
    for column_E, (_, expert_C) in zip(column, wanted, strict=True):
        column_E[expert_C] = np.arange(len(expert_C))
    one = np.int32(1)  # of the counts' own type: adding is much faster then
    for begin, end in slices_of(ids_TLK):
        ids_LKT = by_layer(ids_TLK[begin:end])
        window, home = window_T[begin:end].astype(np.int64), home_T[begin:end].astype(np.int64)
        for (row, _), column_E, counts_SCR in zip(wanted, column, total, strict=True):
            _, width, ranks = counts_SCR.shape
            column_KT = column_E[ids_LKT[row]]
            key_KT = column_KT * ranks + (window * width * ranks + home)
            np.add.at(counts_SCR.reshape(-1), key_KT[column_KT >= 0], one)


@dataclass(frozen=True, eq=False)
class Homes:
    """The traces that windows were cut from, to count choices by home."""

    sources: tuple[Source, ...]
    windows: tuple[int, ...]
    """Which of the windows of all traces, one trace after the other."""
    rows: tuple[int, ...]
    """Which of the traced layers."""
    _known: dict[tuple[object, ...], list[NDArray[Any]]] = field(default_factory=dict, init=False, repr=False)
    """What was counted last: a plan is booked once more where it is checked."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_known": {}}  # counted anew elsewhere

    def of_windows(self, keep: Sequence[int]) -> Homes:
        """The same for some of the windows, in the order given."""
        return Homes(self.sources, tuple(self.windows[window] for window in keep), self.rows)

    def of_layers(self, rows: Sequence[int]) -> Homes:
        """The same for some of the layers."""
        return Homes(self.sources, self.windows, tuple(self.rows[row] for row in rows))

    def counts(self, spread: Spread, wanted: Wanted) -> Iterator[NDArray[Any]]:
        """Choices by home, for one wanted layer after the other [S, C, R]."""
        passes = self._passes(spread, wanted)
        if len(passes) != 1:
            for part in passes:
                yield from self._count(spread, part)
            return
        key = (spread, *((row, expert_C.tobytes()) for row, expert_C in wanted))
        if key not in self._known:
            self._known.clear()
            self._known[key] = self._count(spread, wanted)
        yield from self._known[key]

    def _passes(self, spread: Spread, wanted: Wanted) -> list[Wanted]:
        """The wanted layers, as many together as may be counted at a time."""
        passes: list[list[tuple[int, Ints]]] = []
        room = 0
        for row, expert_C in wanted:
            size = len(self.windows) * len(expert_C) * spread.ep
            if not passes or size > room:
                passes.append([])
                room = _PASS_COUNTS
            passes[-1].append((row, expert_C))
            room -= size
        return list(passes)

    def _count(self, spread: Spread, wanted: Wanted) -> list[NDArray[Any]]:
        of_trace = [(self.rows[row], expert_C) for row, expert_C in wanted]
        kept, place_S = np.unique(np.array(self.windows, dtype=np.int64), return_inverse=True)
        parts, first = [], 0
        for source in self.sources:
            end = first + source.num_windows
            keep = kept[(kept >= first) & (kept < end)] - first
            if len(keep):
                parts.append(source.count(spread, of_trace, keep))
            first = end
        if len(parts) == 1 and len(kept) == len(place_S) and (np.diff(place_S) > 0).all():
            return parts[0]
        return [np.concatenate(of_layer)[place_S] for of_layer in zip(*parts, strict=True)]
