"""How routing changes along a trace, against how much two samples of the same routing differ.

Two numbers compare loads: the correlation of the experts' shares (1: alike), and the part of all
choices that would have to move to make one load the other (total variation; 0: alike).

Legend: S windows, L layers, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from planner.trace.windows import Windows

Floats = NDArray[np.float64]
_LAGS: Final = (1, 2, 4, 8, 16, 32)
_HOT_PART: Final = 16
"""The hottest sixteenth of the experts counts as hot: 16 of 256."""


@dataclass(frozen=True)
class Drift:
    """How the load of the experts moves along a trace; means over layers."""

    lag_correlation: dict[int, float]
    """Correlation of the loads of windows so many apart."""
    halves_correlation: float
    halves_distance: float
    """Part of all choices that moves from the first half of the windows to the last."""
    chance_distance: float
    """The same between even and odd windows, where time plays no part."""
    halves_distance_L: tuple[float, ...]
    hot_kept: float
    """Part of a window's hot experts that are hot in the next window, too."""
    hot_experts: int
    """How many experts of each layer count as hot."""

    @property
    def moved(self) -> float:
        """Part of all choices that moves over half the trace, beyond what chance shows."""
        return max(0.0, self.halves_distance - self.chance_distance)


def correlation(one: Floats, other: Floats) -> Floats:
    """Pearson correlation along the last axis; 1 where a load is even, as it has no ups and downs to differ in."""
    first = one - one.mean(axis=-1, keepdims=True)
    second = other - other.mean(axis=-1, keepdims=True)
    scale = np.sqrt((first**2).sum(axis=-1) * (second**2).sum(axis=-1))
    found: Floats = np.where(scale > 0, (first * second).sum(axis=-1) / np.where(scale > 0, scale, 1), 1.0)
    return found


def distance(one: Floats, other: Floats) -> Floats:
    """Total variation between shares, along the last axis."""
    found: Floats = np.abs(one - other).sum(axis=-1) / 2
    return found


def shares(counts: NDArray[np.int64]) -> Floats:
    """Counts as parts of their sum along the last axis."""
    found: Floats = counts / np.maximum(counts.sum(axis=-1, keepdims=True), 1)
    return found


def drift_of(windows: Windows) -> Drift | None:
    """How the load moves from window to window and from half to half; None for a single window."""
    count = windows.num_windows
    if count < 2:
        return None
    share_SLE = shares(windows.counts_SLE)
    middle = count // 2
    first_LE, last_LE = (shares(part.sum(axis=0)) for part in np.split(windows.counts_SLE, [middle]))
    even_LE, odd_LE = (shares(windows.counts_SLE[start::2].sum(axis=0)) for start in (0, 1))
    halves_L = distance(first_LE, last_LE)
    hot = max(1, share_SLE.shape[2] // _HOT_PART)
    hot_SLH = np.argsort(-share_SLE, axis=2, kind="stable")[:, :, :hot]
    kept = (hot_SLH[:-1, :, :, None] == hot_SLH[1:, :, None, :]).any(axis=3)
    return Drift(
        lag_correlation={
            lag: float(correlation(share_SLE[:-lag], share_SLE[lag:]).mean()) for lag in _LAGS if lag < count
        },
        halves_correlation=float(correlation(first_LE, last_LE).mean()),
        halves_distance=float(halves_L.mean()),
        chance_distance=float(distance(even_LE, odd_LE).mean()),
        halves_distance_L=tuple(halves_L.tolist()),
        hot_kept=float(kept.mean()),
        hot_experts=hot,
    )
