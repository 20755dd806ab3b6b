"""Which windows the search looks at where only the slowest of them count (docs/model.md, "Risk").

The layers of a plan are independent only for fixed weights of the windows. So the search runs in rounds: first on all
windows; then on those that were slowest under the plans found so far, all alike. Each round prices its plans by the
true objective, over all windows, and its bound is valid for that, because at least `risk` of the windows are looked at.

Legend: S windows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from planner.cost.instance import Instance
from planner.plan.objective import slowest
from planner.trace.windows import subset

Floats = NDArray[np.float64]

MOST_ROUNDS: Final = 4
"""After the first; what is gained by more is in the noise."""


class Focus:
    """The rounds of one search.

    Args:
        instance: with all windows.
        risk: part of the windows that counts; None: all of them, and there is one round.
    """

    def __init__(self, instance: Instance, risk: float | None) -> None:
        self._whole, self._risk = instance, risk
        self._rounds = 0
        self._seen: frozenset[int] = frozenset()
        self.instance = instance
        """With the windows of this round."""

    @property
    def is_narrow(self) -> bool:
        """Whether only some windows are looked at."""
        return bool(self._seen)

    def narrow(self, *steps_S: Floats) -> bool:
        """Go on to the windows that were slowest under some plans; False if there is nothing new to look at.

        Args:
            steps_S: seconds of all windows, under each of the plans.
        """
        windows = self._whole.windows
        if self._risk is None or windows is None or self._rounds == MOST_ROUNDS:
            return False
        seen = self._seen.union(*(slowest(step_S, self._risk) for step_S in steps_S))
        if seen == self._seen or len(seen) == windows.num_windows:
            return False
        self._seen, self._rounds = seen, self._rounds + 1
        self.instance = replace(self._whole, windows=subset(windows, sorted(seen)))
        return True
