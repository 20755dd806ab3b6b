"""Traps that show in counts alone: used when counts are imported, and before a deployment is solved.

Legend: S windows, L traced layers, E experts.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from planner.errors import Place
from planner.trace.faults import Fault

Ints = NDArray[np.int64]
_ENOUGH: Final = 24
"""Positive counts from which a common divisor is no chance: one in 2^24 for a divisor of 2."""
TOLERANCE: Final = 0.001
_DIFFERENT: Final = 8
"""Different ones among them: counts that are all alike share themselves as divisor."""


def never_routed(counts_SLE: Ints, top_k: int) -> NDArray[np.bool_]:
    """Rows [L] that hold no routing: all zero, or, with two or more choices, expert 0 alone."""
    total_LE = counts_SLE.sum(axis=0)
    rest_L = total_LE[:, 1:].sum(axis=1)
    only_first_L = (total_LE[:, 0] > 0) & (rest_L == 0)
    dead_L: NDArray[np.bool_] = (total_LE.sum(axis=1) == 0) | (only_first_L & (top_k > 1))
    return dead_L


def dense_layers(counts_SLE: Ints, layer_ids_L: Ints, top_k: int, where: Place) -> list[Fault]:
    """Layers in which every choice is expert 0."""
    dead_L = never_routed(counts_SLE, top_k) & (counts_SLE.sum(axis=(0, 2)) > 0)
    if not dead_L.any():
        return []
    message = f"layers {listed(layer_ids_L[dead_L])}: every token chose expert 0 only, {top_k} times each"
    cure = "these are dense layers, or were never written: leave their rows out; `ep-plan trace import` does"
    return [Fault("dense-layer", message, where, cure)]


def counted_often(counts_SLE: Ints, where: Place) -> list[Fault]:
    """Every count divisible by one number: each token was counted that many times."""
    positive = counts_SLE[counts_SLE > 0]
    different = np.unique(positive)
    factor = int(np.gcd.reduce(different)) if len(positive) >= _ENOUGH and len(different) >= _DIFFERENT else 1
    if factor == 1:
        return []
    message = f"all {len(positive):,} counts are multiples of {factor}"
    cure = f"counted once by each of {factor} ranks? record one of them, or divide by {factor}"
    return [Fault("double-count", message, where, cure)]


def token_sums(
    counts_SLE: Ints,
    layer_ids_L: Ints,
    top_k: int,
    names_S: tuple[str, ...],
    where: Place,
    *,
    tolerance: float = TOLERANCE,
) -> list[Fault]:
    """All layers see the same tokens, so their choices are the same multiple of top_k.

    Layers may differ by the part `tolerance`: a recorder that stops between two layers cuts a step in two.
    """
    sum_SL = counts_SLE.sum(axis=2)
    median_S1 = np.median(sum_SL, axis=1, keepdims=True)
    uneven_SL = np.abs(sum_SL - median_S1) > tolerance * median_S1
    faults = []
    if uneven_SL.any():
        window, row = (int(index) for index in np.argwhere(uneven_SL)[0])
        usual = int(np.median(sum_SL[window]))
        message = (
            f"{names_S[window]}: {sum_SL[window, row]:,} choices in layer {layer_ids_L[row]}, "
            f"but {usual:,} in others ({int(uneven_SL.sum())} such rows)"
        )
        cure = "tokens were dropped, padded or counted twice in some layers: record again without them"
        faults.append(Fault("token-sum", message, where, cure))
    broken_SL = (sum_SL % top_k != 0) & ~uneven_SL
    if broken_SL.mean() > (0.5 if tolerance else 0.0):
        window, row = (int(index) for index in np.argwhere(broken_SL)[0])
        message = (
            f"{names_S[window]}: {sum_SL[window, row]:,} choices in layer {layer_ids_L[row]} are not a multiple "
            f"of top-{top_k} ({int(broken_SL.sum())} such rows)"
        )
        cure = "wrong top-k, a shared expert counted with the routed ones, or tokens dropped"
        faults.append(Fault("token-sum", message, where, cure))
    return faults


def listed(layers: Ints) -> str:
    """The first few layers."""
    shown = ", ".join(str(layer) for layer in layers[:6].tolist())
    return shown + (f", ... ({len(layers)} in all)" if len(layers) > 6 else "")
