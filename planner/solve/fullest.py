"""Rows that some rank must serve, whatever the placement: (B2), (B3), (B7) of docs/model.md, "Bounds".

Legend: S windows, E experts, R ranks, V ways of giving copies, P slots.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from planner.solve.problem import LayerProblem

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_MOST_COPIES_LISTED: Final = 1 << 15
"""Ways of giving copies times slots; with more, (B7) is left out."""
_MOST_WORK: Final = 1 << 20
"""The same times windows."""


def largest_rows_S(problem: LayerProblem) -> Floats:
    """Rows that the fullest rank serves at least, in each window."""
    rows_SE = problem.rows_SE
    spare = problem.num_slots - problem.num_experts
    if spare == 0:
        return _together(-np.sort(-rows_SE, axis=1), problem.slots_R)
    hottest_S = _smallest_largest_copy(rows_SE, spare, problem.num_ranks)
    if not (problem.loads_evenly and _few_ways(problem, spare)):
        return hottest_S
    return np.maximum(hottest_S, _over_all_copies(problem, spare))


def _smallest_largest_copy(rows_SE: Floats, spare: int, ranks: int) -> Floats:
    """(B2): spare slots one by one to the largest copy, each window by itself."""
    copies_SE = np.ones(rows_SE.shape)
    window_S = np.arange(len(rows_SE))
    for _ in range(spare):
        copies_SE[window_S, (rows_SE / copies_SE).argmax(axis=1)] += 1
    return np.asarray((rows_SE / np.minimum(copies_SE, ranks)).max(axis=1))


# --- (B3) -------------------------------------------------------------------------------------------


def _together(falling: Floats, slots_R: Ints) -> Floats:
    """(B3): what must share a rank, of copies sorted from large to small along the last axis."""
    return np.maximum(_pigeonhole(falling, len(slots_R), int(slots_R.min())), _pairs(falling, slots_R))


def _pigeonhole(falling: Floats, ranks: int, fewest_slots: int) -> Floats:
    """Of the j * ranks + 1 largest some rank holds j + 1, for all j."""
    copies = falling.shape[-1]
    from_small = np.cumsum(falling[..., ::-1], axis=-1)
    from_large = np.cumsum(falling, axis=-1)
    best = falling[..., 0].copy()
    for others in range((copies - 1) // ranks + 1):
        last = others * ranks
        together = from_large[..., last] - (from_large[..., last - others - 1] if last > others else 0.0)
        rest = fewest_slots - others - 1
        if rest < 0:
            break
        rest = min(rest, copies - last - 1)
        best = np.maximum(best, together + (from_small[..., rest - 1] if rest > 0 else 0.0))
    return best


def _pairs(falling: Floats, slots_R: Ints) -> Floats:
    """Of the m largest some rank holds two, one of them of the i largest: the others have no room for m - i."""
    copies = falling.shape[-1]
    first = np.arange(1, len(slots_R) + 1)  # i
    elsewhere = np.cumsum(np.sort(slots_R)[::-1])[::-1]  # the most slots that so many ranks have: R, R - 1, ... 1
    last = first + np.append(elsewhere[1:], 0) + 1  # m
    first, last = first[last <= copies], last[last <= copies]
    if not len(first):
        return np.asarray(falling[..., 0])
    from_small = np.cumsum(falling[..., ::-1], axis=-1)
    rest = np.minimum(max(0, int(slots_R.min()) - 2), copies - last)
    filled = np.where(rest > 0, from_small[..., rest - 1], 0.0)
    return np.asarray((falling[..., first - 1] + falling[..., last - 1] + filled).max(axis=-1))


# --- (B7) -------------------------------------------------------------------------------------------


def _few_ways(problem: LayerProblem, spare: int) -> bool:
    """Whether all ways of giving copies can be looked at."""
    ways = math.comb(problem.num_experts + spare - 1, spare) * problem.num_slots
    return ways <= _MOST_COPIES_LISTED and ways * problem.num_windows <= _MOST_WORK


def _over_all_copies(problem: LayerProblem, spare: int) -> Floats:
    """(B7): (B3) for every way of giving copies; some way is the placement's."""
    copies_VE = np.array(list(_ways(problem.num_experts, spare, problem.most_copies - 1))) + 1
    expert_VP = np.stack([np.repeat(np.arange(problem.num_experts), copies_E) for copies_E in copies_VE])
    number_VP = np.take_along_axis(copies_VE, expert_VP, axis=1)
    falling_SVP = -np.sort(-problem.rows_SE[:, expert_VP] / number_VP, axis=2)
    return np.asarray(_together(falling_SVP, problem.slots_R).min(axis=1))


def _ways(experts: int, spare: int, most: int) -> Iterator[tuple[int, ...]]:
    """All ways of giving so many further copies to experts, at most so many to each."""
    if experts == 1:
        if spare <= most:
            yield (spare,)
        return
    for mine in range(min(spare, most) + 1):
        for rest in _ways(experts - 1, spare - mine, most):
            yield (mine, *rest)
