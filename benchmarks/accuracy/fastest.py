"""Engines run the fastest of several kernels: which of them a profile needs, and how well their minimum is met.

Every kernel predicts the works that it was measured on from curves of other shapes, and all others from its whole
curve. Judged are the works that two kernels or more were measured on, against the least time measured.

Legend: K kernels, M works.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.accuracy.fitting import summary
from benchmarks.accuracy.judged import Judged
from benchmarks.accuracy.points import Points
from benchmarks.accuracy.targets import ANY, GOOD
from planner.inputs import profiles
from planner.inputs.efficiency import Errors
from planner.inputs.engines import load_engine

Floats = NDArray[np.float64]
_WORTH: Final = 0.05
"""A further kernel is taken if the worse of median and 90th percentile, as parts of what is owed, falls by this."""


@dataclass(frozen=True)
class Fastest:
    """The kernels of one GPU that a profile has for some work."""

    kernels: tuple[Judged, ...]
    """The first meets the fastest times best of all alone."""
    measured: int
    """K, kernels that were measured."""
    works: int
    """M, works that several were measured on."""
    compared: int
    """So many of the kernels, at the beginning, were taken because their minimum meets the fastest."""
    errors: Errors | None
    """Of that minimum, held out; None where no work was measured twice, or there is one shape only."""
    bias: float
    """Median of the signed errors."""

    def errors_of(self, number: int) -> Errors | None:
        """What a prediction by one of them may be off by: of the minimum, if it was taken for that."""
        return self.errors if number < self.compared else self.kernels[number].held_out


def fastest_of(alike: Sequence[Judged]) -> Fastest | None:
    """The kernels that a profile needs.

    First as few as it takes to meet the fastest time measured. Then those that follow the form and were mostly measured
    on works of their own, because nothing says that they are slower; and those of engines that run no others. Kernels
    whose measurements are not believed are left out. Where no two were measured on the same work, the first is the one
    that is met best of those that follow the form; None if there is none.
    """
    believed = [one for one in alike if one.points.believed]
    if not believed:
        return None
    predicted_KM, measured_KM = _compared(believed)
    following = [number for number, one in enumerate(believed) if one.follows]
    owed = GOOD.get(believed[0].key, ANY)
    chosen = _fewest(predicted_KM, measured_KM, range(len(believed)), owed)
    compared = len(chosen)
    if not chosen:
        chosen = sorted(following, key=lambda n: believed[n].judged.median + believed[n].judged.p90)[:1]
    measured_K = np.isfinite(measured_KM).sum(axis=1)
    apart = [number for number in following if measured_K[number] < len(believed[number].points) / 2]
    own: list[int] = []
    for engine in engines_on_their_own():
        theirs = [number for number in following if believed[number].points.engine == engine]
        own += _fewest(predicted_KM, measured_KM, theirs, owed)
    chosen = list(dict.fromkeys([*chosen, *apart, *own]))
    if not chosen:
        return None
    kernels = tuple(believed[number] for number in chosen)
    if not compared:
        return Fastest(kernels, len(alike), 0, 0, None, 0.0)
    errors_M = predicted_KM[chosen[:compared]].min(axis=0) / measured_KM.min(axis=0) - 1
    errors = summary(np.abs(errors_M)) if all(one.held_out for one in kernels[:compared]) else None
    return Fastest(kernels, len(alike), len(errors_M), compared, errors, float(np.median(errors_M)))


@cache
def engines_on_their_own() -> tuple[str, ...]:
    """Engines that run no kernels but their own."""
    return tuple(name for name in profiles.names("engines") if load_engine(name).own_kernels_only)


def _fewest(predicted_KM: Floats, measured_KM: Floats, among: Sequence[int], owed: Errors) -> list[int]:
    """Kernels taken one at a time, while their minimum meets the least time measured of them all better."""
    chosen: list[int] = []
    if not len(among) or not measured_KM.shape[1]:
        return chosen
    least_M = measured_KM[list(among)].min(axis=0)
    known_M = np.isfinite(least_M)
    predicted_KM, least_M, best = predicted_KM[:, known_M], least_M[known_M], np.inf
    while len(least_M) and len(chosen) < len(among):
        rest = [number for number in among if number not in chosen]
        left, number = min((_score(predicted_KM[[*chosen, n]], least_M, owed), n) for n in rest)
        if left > best - _WORTH:
            break
        best = left
        chosen.append(number)
    return chosen


def _score(predicted_KM: Floats, measured_M: Floats, owed: Errors) -> float:
    errors = summary(np.abs(predicted_KM.min(axis=0) / measured_M - 1))
    return max(errors.median / owed.median, errors.p90 / owed.p90)


def _compared(alike: Sequence[Judged]) -> tuple[Floats, Floats]:
    """Seconds predicted and measured [K, M] of works measured more than once; infinite where a kernel was not."""
    rows = [_rows(one.points) for one in alike]
    every, index = np.unique(np.concatenate(rows), axis=0, return_inverse=True)
    parts = np.split(index.ravel(), np.cumsum([len(some) for some in rows])[:-1])
    measured_KM = np.full((len(alike), len(every)), np.inf)
    predicted_KM = np.empty_like(measured_KM)
    for number, (one, part) in enumerate(zip(alike, parts, strict=True)):
        predicted_KM[number] = one.fit.bare.seconds(_works(one.points, every))
        measured_KM[number, part] = one.bare_N
        if one.held_out_N is not None:
            predicted_KM[number, part] = one.held_out_N * one.bare_N / one.points.seconds_N
    twice_M = np.isfinite(measured_KM).sum(axis=0) > 1
    return predicted_KM[:, twice_M], measured_KM[:, twice_M]


def _rows(points: Points) -> Floats:
    return np.stack([points.flop_N, points.bytes_N, points.moved_N, points.experts_N, points.chain_N], axis=1)


def _works(points: Points, rows: Floats) -> Points:
    """Works to predict, as if they had been measured for the same kernel."""
    flop, num_bytes, moved, experts, chain = rows.T
    nothing = np.zeros(len(rows))
    return replace(
        points,
        flop_N=flop,
        bytes_N=num_bytes,
        moved_N=moved,
        experts_N=experts,
        chain_N=chain,
        extra_N=nothing,
        seconds_N=nothing,
        shape_N=nothing.astype(np.int64),
    )
