"""Many samples of a phase as few figures: medians, spread, waiting.

Legend: W windows, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from planner.measure.clock import Clock


def summary(clock: Clock, layers: Sequence[int], *, per_window: int | None) -> dict[str, Any]:
    """By phase and layer: median busy and wait seconds for each window, and the spread of the busy ones.

    Args:
        clock: its events are taken.
        layers: layers to report; -1 stands for what belongs to no layer.
        per_window: samples of one window; None: all are of one.
    """
    found: dict[str, Any] = {}
    for (phase, layer), samples in clock.events.items():
        if layer != -1 and layer not in layers:
            continue
        busy = np.array([sample.busy_s for sample in samples])
        wait = np.array([sample.wait_s for sample in samples])
        rows = len(busy) // per_window if per_window else 1
        busy_W, wait_W = busy.reshape(rows, -1), wait.reshape(rows, -1)
        low, high = np.quantile(busy_W, [0.1, 0.9], axis=1)
        found.setdefault(phase, {})[str(layer)] = {
            "busy_s": np.median(busy_W, axis=1).tolist(),
            "low_s": low.tolist(),
            "high_s": high.tolist(),
            "wait_s": np.median(wait_W, axis=1).tolist(),
        }
    clock.events.clear()
    return found
