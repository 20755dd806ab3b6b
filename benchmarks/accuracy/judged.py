"""A measured kernel with its curve, and what is left of its errors on shapes that the fit has not seen."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from benchmarks.accuracy.fitting import Fit, fitted, held_out_seconds, summary
from benchmarks.accuracy.points import Points
from benchmarks.accuracy.targets import ANY, GOOD, Key
from planner.inputs.efficiency import Errors

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Judged:
    """One measured kernel with its curve."""

    points: Points
    fit: Fit
    held_out_N: Floats | None
    """Seconds that curves fitted to other shapes predict; None if there is one shape only."""

    @classmethod
    def of(cls, points: Points) -> Judged:
        """Fit a kernel, and judge it."""
        return cls(points, fitted([points]), held_out_seconds(points))

    @cached_property
    def bare_N(self) -> Floats:
        """Measured seconds without what only the micro-benchmark does, as the fit has it."""
        return self.points.seconds_N * self.fit.bare.seconds(self.points) / self.fit.seconds(self.points)

    @cached_property
    def fit_errors(self) -> Errors:
        """On what was fitted."""
        return summary(self.fit.errors(self.points))

    @cached_property
    def held_out(self) -> Errors | None:
        """On shapes left out."""
        return None if self.held_out_N is None else summary(np.abs(self.held_out_N / self.points.seconds_N - 1))

    @property
    def key(self) -> Key:
        """Kind of work, and format of weights or kind of attention."""
        return self.points.work, self.points.name

    @property
    def judged(self) -> Errors:
        """Held out, where there are shapes enough."""
        return self.held_out or self.fit_errors

    @property
    def follows(self) -> bool:
        """Whether the form suits it."""
        owed = GOOD.get(self.key, ANY)
        return self.judged.median <= owed.median and self.judged.p90 <= owed.p90
