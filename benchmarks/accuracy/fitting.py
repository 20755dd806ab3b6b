"""Fits a curve to measured kernels, and judges it on measurements that it has not seen.

Relative least squares: residuals are logarithms of predicted over measured time, so that short and long kernels weigh
the same; beyond a tenth they count linearly, because some rows are plainly off (another kernel was picked, a clock was
throttled). Compute and memory are kept to what the datasheet allows: no curve is faster than light.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.accuracy.points import Points
from planner.cost.roofline import kernel
from planner.inputs.efficiency import Curve, Errors, Roofline, Work

Floats = NDArray[np.float64]
_OUTLIER: Final = 0.1
_LOW: Final = {
    "base": 3e-7,
    "per_expert": 1e-10,
    "compute": 0.01,
    "memory": 0.03,
    "activation": 0.05,
    "serial": 1e-12,
    "exponent": 1.0,
    "extra": 1e-9,
}
_FIRST: Final = {
    "base": 1e-5,
    "per_expert": 1e-7,
    "compute": 0.5,
    "memory": 0.7,
    "activation": 0.5,
    "serial": 1e-9,
    "exponent": 2.0,
    "extra": 0.5,
}
_HIGH: Final = {
    "base": 3e-4,
    "per_expert": 3e-6,
    "compute": 1.0,
    "memory": 1.0,
    "activation": 1.0,
    "serial": 1e-5,
    "exponent": 8.0,
    "extra": 5.0,
}
_NAMES: Final[dict[Work, tuple[str, ...]]] = {
    "experts": ("base", "per_expert", "compute", "memory", "activation", "extra"),
    "gemm": ("base", "compute", "memory", "activation", "serial", "exponent"),
    "attention_prefill": ("base", "compute", "memory", "serial", "exponent"),
    "attention_decode": ("base", "compute", "memory", "activation", "serial", "exponent"),
}
_EXPERT_EXPONENTS: Final = (2.0, 4.0)
"""The search prices experts far more often than anything else: exponents that need square roots only."""
_NEGLIGIBLE_S: Final = 1e-9


@dataclass(frozen=True)
class Fit:
    """A roofline and what the micro-benchmark adds to it, which is left out of predictions."""

    roofline: Roofline
    extra: float
    """Passes over the tokens of the whole group, at the HBM bandwidth."""

    def seconds(self, points: Points) -> Floats:
        """Predicted time of each measurement, as `planner.cost` predicts it."""
        bound = kernel(points.gpu, Curve(value=self.roofline), points.weights)
        seconds = bound.seconds(points.flop_N, points.bytes_N, points.moved_N, points.experts_N, points.chain_N)
        return np.asarray(seconds + self.extra * points.extra_N / points.gpu.hbm_bandwidth.value)

    @property
    def bare(self) -> Fit:
        """Without what only the micro-benchmark does."""
        return Fit(self.roofline, 0.0)

    def errors(self, points: Points) -> Floats:
        """Absolute relative error of each measurement."""
        return np.abs(self.seconds(points) / points.seconds_N - 1)


def fitted(groups: Sequence[Points]) -> Fit:
    """The curve that meets kernels best; several GPUs weigh the same, by their measurements."""
    given = [{"exponent": power} for power in _EXPERT_EXPONENTS] if groups[0].work == "experts" else [{}]
    return min((_fitted(groups, fixed) for fixed in given), key=lambda pair: pair[0])[1]


def _fitted(groups: Sequence[Points], fixed: dict[str, float]) -> tuple[float, Fit]:
    from scipy.optimize import least_squares  # noqa: PLC0415  # only fitting needs it

    names = _NAMES[groups[0].work]
    low, first, high = (np.log([table[name] for name in names]) for table in (_LOW, _FIRST, _HIGH))
    weight = [1 / np.sqrt(len(points)) for points in groups]

    def values_of(logs: Floats) -> dict[str, float]:
        return dict(zip(names, np.exp(logs).tolist(), strict=True)) | fixed

    def residuals(logs: Floats) -> Floats:
        fit = _fit(values_of(logs))
        ratios = [np.log(fit.seconds(points) / points.seconds_N) * w for points, w in zip(groups, weight, strict=True)]
        return np.concatenate(ratios)

    scale = _OUTLIER * float(np.mean(weight))
    found = least_squares(residuals, first, bounds=(low, high), loss="soft_l1", f_scale=scale, x_scale="jac")
    return float(found.cost), _rounded(values_of(found.x))


def _fit(values: dict[str, float]) -> Fit:
    roofline = Roofline.model_construct(
        base=values["base"],
        per_expert=values.get("per_expert", 0.0),
        compute=values["compute"],
        memory=values["memory"],
        activation=values.get("activation"),
        serial=values.get("serial", 0.0),
        exponent=values["exponent"],
    )
    return Fit(roofline, values.get("extra", 0.0))


def _rounded(values: dict[str, float]) -> Fit:
    """As written in a profile: three digits of times, per cents of parts, tenths of exponents."""
    written = {name: float(f"{value:.3g}") for name, value in values.items()}
    written |= {name: round(written[name], 2) for name in ("compute", "memory", "activation") if name in written}
    written["exponent"] = round(written["exponent"], 1)
    if written.get("per_expert", 1.0) < _NEGLIGIBLE_S:
        written["per_expert"] = 0.0
    return _fit(written)


def summary(errors_N: Floats) -> Errors:
    """Median and 90th percentile, in tenths of a per cent."""
    return Errors.model_construct(
        median=round(float(np.median(errors_N)), 3), p90=round(float(np.quantile(errors_N, 0.9)), 3)
    )


def held_out_seconds(points: Points) -> Floats | None:
    """Predictions for each model shape, the curve being fitted to all others; None if there is one shape only.

    Where there are many shapes, an eighth of them is left out at a time.
    """
    shapes = np.unique(points.shape_N)
    if len(shapes) < 2:
        return None
    found = np.empty(len(points))
    for part in np.array_split(np.random.default_rng(0).permutation(shapes), min(8, len(shapes))):
        out_N = np.isin(points.shape_N, part)
        found[out_N] = fitted([points.some(~out_N)]).seconds(points.some(out_N))
    return found


def carried_over_errors(groups: Sequence[Points]) -> list[Floats]:
    """Errors on each GPU, the curve being fitted to all others; empty with one GPU."""
    if len(groups) < 2:
        return []
    return [_carried_over(groups, left_out) for left_out in range(len(groups))]


def _carried_over(groups: Sequence[Points], left_out: int) -> Floats:
    return fitted([points for index, points in enumerate(groups) if index != left_out]).errors(groups[left_out])
