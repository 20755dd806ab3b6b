"""What a plan minimises: its step time, or with `risk` the mean step of its slowest windows.

That mean is the conditional value at risk: of S windows the slowest risk * S count alike, the last of them in part,
and at least one in full (Rockafellar and Uryasev, "Optimization of conditional value-at-risk", Journal of Risk 2(3),
2000). It is the largest mean that any weights of the windows give of which none is above 1 / (risk * S): so the mean
of any windows, at least risk * S of them, bounds it from below.

Legend: S windows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from planner.plan.plan import Predicted

Floats = NDArray[np.float64]


def slowest_mean(step_S: Floats | Sequence[float], risk: float) -> float:
    """Mean of the slowest windows.

    Args:
        step_S: seconds of each window.
        risk: part of the windows that counts, above 0 and at most 1.
    """
    falling_S = -np.sort(-np.asarray(step_S, dtype=np.float64))
    counted = max(1.0, risk * len(falling_S))
    weight_S = np.clip(counted - np.arange(len(falling_S)), 0.0, 1.0)
    return float(weight_S @ falling_S / counted)


def slowest(step_S: Floats, risk: float) -> tuple[int, ...]:
    """The windows that count, in full or in part; of equally slow ones the earlier."""
    counted = max(1, math.ceil(risk * len(step_S)))
    return tuple(sorted(np.argsort(-step_S, kind="stable")[:counted].tolist()))


def objective_of(step_s: float, step_S: Floats | Sequence[float], risk: float | None) -> float:
    """What is minimised, from a plan's step time and those of its windows, all in seconds."""
    return step_s if risk is None else slowest_mean(step_S, risk)


def objective_s(predicted: Predicted, risk: float | None) -> float:
    """The same from what a plan books."""
    step_S = [window.step_s for window in predicted.windows] or [predicted.step_s]  # no trace: the one uniform window
    return objective_of(predicted.step_s, step_S, risk)
