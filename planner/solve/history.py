"""How a search went: best plan and bound over effort, whatever the order in which worker processes finish."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import Final

MOST_POINTS: Final = 100
_OF_A_BATCH: Final = 16


@dataclass(frozen=True)
class Progress:
    """What was known after some effort."""

    effort: float
    best_s: float
    bound_s: float


class History:
    """Points as they are noted."""

    def __init__(self) -> None:
        self._points: list[Progress] = []

    def note(self, effort: float, best_s: float, bound_s: float) -> None:
        """Best plan and bound after so much effort."""
        self._points.append(Progress(effort, best_s, bound_s))

    def told(self, best_s: float, bound_s: float) -> tuple[Progress, ...]:
        """Changes of either, the best plan never slower, the bound never lower, none beyond where both end.

        A plan of which some layers are placed can be a little faster than the whole (a placement that does better
        on windows not seen may cost up to 0.5 %); it then counts as the plan that the search ends with.
        """
        kept: list[Progress] = []
        nothing = Progress(0.0, math.inf, 0.0)
        points = accumulate(self._points, lambda before, now: _after(before, now, best_s, bound_s), initial=nothing)
        for point in islice(points, 1, None):
            if not kept or (point.best_s, point.bound_s) != (kept[-1].best_s, kept[-1].bound_s):
                kept.append(point)
        return tuple(_some(kept))


def _after(before: Progress, now: Progress, best_s: float, bound_s: float) -> Progress:
    return Progress(
        max(before.effort, now.effort),
        min(before.best_s, max(now.best_s, best_s)),
        max(before.bound_s, min(now.bound_s, bound_s)),
    )


def _some(points: Sequence[Progress]) -> list[Progress]:
    """At most `MOST_POINTS`, evenly spaced, the first and the last among them."""
    last = len(points) - 1
    if last < MOST_POINTS:
        return list(points)
    return [points[round(index * last / (MOST_POINTS - 1))] for index in range(MOST_POINTS)]


def stops(jobs: int) -> set[int]:
    """After which jobs of a batch a point is noted: all of a small one, some of a large one, always the last."""
    count = min(jobs, _OF_A_BATCH)
    return {round((index + 1) * jobs / count) - 1 for index in range(count)}
