"""Few numbers from many samples: latency and bandwidth of a link, the roofline of a kernel.

Errors are relative, so that small and large work count alike.

Legend: N samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from planner.cost.roofline import smooth_max

Floats = NDArray[np.float64]

_STEPS: Final = 200
_LEAST: Final = 1e-12
_PULL: Final = 0.05
_EXPONENTS: Final[tuple[Literal[1, 2, 4], ...]] = (1, 2, 4)
"""From kernels that read and compute in turn, as GEMM on CPUs does, to those that do both at once."""


@dataclass(frozen=True)
class Line:
    """seconds = alpha + bytes / bandwidth."""

    alpha_s: float
    bytes_per_s: float


def alpha_beta(points: Sequence[tuple[float, float]]) -> Line:
    """Fit a line to (bytes, seconds), least squares of relative errors, both parts at least 0."""
    num_bytes, seconds = np.array(points).T
    design = np.stack([np.ones_like(num_bytes), num_bytes], axis=1) / seconds[:, None]
    alpha, slope = np.linalg.lstsq(design, np.ones_like(seconds), rcond=None)[0].tolist()
    if alpha < 0:
        alpha, slope = 0.0, float((num_bytes / seconds).sum() / ((num_bytes / seconds) ** 2).sum())
    if slope <= 0:
        slope = float(seconds[num_bytes.argmax()] / num_bytes.max())
    return Line(alpha, 1.0 / slope)


@dataclass(frozen=True)
class KernelSamples:
    """Work and measured time of a kernel in several sizes [N each]."""

    flop: Floats
    weight_bytes: Floats
    moved_bytes: Floats
    experts: Floats
    seconds: Floats


@dataclass(frozen=True)
class RooflineFit:
    """Constants of docs/model.md, "Compute", and how well they meet the samples."""

    base_s: float
    per_expert_s: float
    compute: float
    memory: float
    activation: float
    exponent: Literal[1, 2, 4]
    errors: Floats
    """Absolute relative errors [N]."""


def fit_roofline(samples: KernelSamples, peak: float, hbm: float) -> RooflineFit:
    """Fit the constants of a kernel family.

    Args:
        samples: what was measured.
        peak: FLOP per second that `compute` is a part of.
        hbm: bytes per second that `memory` and `activation` are parts of.
    """
    fits = [_fit(samples, peak, hbm, exponent) for exponent in _EXPONENTS]
    return min(fits, key=lambda fit: float((fit.errors**2).sum()))


def _fit(samples: KernelSamples, peak: float, hbm: float, exponent: Literal[1, 2, 4]) -> RooflineFit:
    """Fit the logarithms of the constants, so that none becomes negative."""
    light = np.maximum(samples.flop / peak, samples.weight_bytes / hbm)
    start_base = max(float((samples.seconds - light).min()), float(samples.seconds.min()) / 10)
    start = np.log([start_base, start_base / 10, 0.5, 0.5, 0.5])
    uses = np.array([True, bool(samples.experts.any()), True, True, bool(samples.moved_bytes.any())])

    def errors_of(found: Floats) -> Floats:
        base, per_expert, compute, memory, activation = np.exp(np.clip(found, -60, 20)).tolist()
        busy = smooth_max((samples.flop / (compute * peak), samples.weight_bytes / (memory * hbm)), exponent)
        total = base + per_expert * samples.experts * uses[1] + busy
        total = total + samples.moved_bytes / (activation * hbm) * uses[4]
        return np.asarray(np.log(np.maximum(total, _LEAST) / samples.seconds))

    def held(found: Floats) -> Floats:
        """Errors, and beside them a weak pull to the start, for constants that the samples say nothing about."""
        return np.concatenate([errors_of(found), _PULL * (found - start)[uses]])

    logs = _least_squares(held, start, uses)
    base, per_expert, compute, memory, activation = np.exp(logs).tolist()
    return RooflineFit(
        base_s=base,
        per_expert_s=per_expert if uses[1] else 0.0,
        compute=compute,
        memory=memory,
        activation=activation if uses[4] else memory,
        exponent=exponent,
        errors=np.abs(np.expm1(errors_of(logs))),
    )


def _least_squares(errors_of: Callable[[Floats], Floats], start: Floats, uses: NDArray[np.bool_]) -> Floats:
    """Levenberg-Marquardt on those of the variables that are used, slopes by differences."""
    found, damping = start.copy(), 1.0
    errors = errors_of(found)
    for _ in range(_STEPS):
        steps = np.eye(len(found))[uses] * 1e-4
        slopes = np.stack([(errors_of(found + step) - errors) / 1e-4 for step in steps], axis=1)
        normal = slopes.T @ slopes
        move = np.linalg.solve(normal + damping * np.eye(len(normal)), -slopes.T @ errors)
        tried = found.copy()
        tried[uses] += np.clip(move, -1, 1)
        again = errors_of(tried)
        if (again**2).sum() < (errors**2).sum():
            found, errors, damping = tried, again, damping / 2
        else:
            damping = min(damping * 3, 1e9)
    return found
