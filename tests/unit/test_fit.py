"""Fits find the constants that made the samples."""

from __future__ import annotations

import numpy as np
import pytest

from planner.cost.roofline import smooth_max
from planner.measure.fit import KernelSamples, alpha_beta, fit_roofline

PEAK, HBM = 1e13, 1e11


def test_a_link() -> None:
    points = [(float(size), 5e-6 + size / 2e9) for size in (8, 1 << 18, 1 << 22, 1 << 24)]
    line = alpha_beta(points)
    assert line.alpha_s == pytest.approx(5e-6)
    assert line.bytes_per_s == pytest.approx(2e9)


def test_noise_never_gives_negative_constants() -> None:
    line = alpha_beta([(8.0, 1e-7), (1e6, 1e-2), (2e6, 1e-2), (4e6, 5e-2)])
    assert line.alpha_s >= 0
    assert line.bytes_per_s > 0


def samples(rng: np.random.Generator, noise: float) -> KernelSamples:
    tokens, size = np.meshgrid([1.0, 8.0, 64.0, 512.0, 4096.0], [1e6, 1e7, 1e8])
    flop, weight_bytes = (2 * tokens * size).ravel(), (2 * size).ravel()
    moved, experts = (tokens * 1e4).ravel(), np.tile([4.0, 8.0, 16.0], 5)
    busy = smooth_max((flop / (0.6 * PEAK), weight_bytes / (0.8 * HBM)), 4)
    seconds = 2e-5 + 1e-6 * experts + busy + moved / (0.3 * HBM)
    return KernelSamples(flop, weight_bytes, moved, experts, seconds * np.exp(noise * rng.normal(size=len(flop))))


def test_a_roofline() -> None:
    fit = fit_roofline(samples(np.random.default_rng(0), 0.0), PEAK, HBM)
    assert fit.errors.max() < 0.08
    assert fit.compute == pytest.approx(0.6, rel=0.1)
    assert fit.memory == pytest.approx(0.8, rel=0.1)
    assert fit.activation == pytest.approx(0.3, rel=0.15)


def test_a_kernel_that_reads_and_computes_in_turn() -> None:
    given = samples(np.random.default_rng(0), 0.0)
    seconds = given.flop / (0.6 * PEAK) + given.weight_bytes / (0.8 * HBM)
    none = np.zeros_like(seconds)
    fit = fit_roofline(KernelSamples(given.flop, given.weight_bytes, none, none, seconds), PEAK, HBM)
    assert fit.exponent == 1
    assert fit.errors.max() < 0.05


@pytest.mark.parametrize("seed", range(5))
def test_a_roofline_of_noisy_samples_stays_sensible(seed: int) -> None:
    fit = fit_roofline(samples(np.random.default_rng(seed), 0.3), PEAK, HBM)
    assert np.median(fit.errors) < 0.4
    for part in (fit.compute, fit.memory, fit.activation):
        assert 0.05 < part < 5


def test_what_samples_say_nothing_about_stays_near_the_start() -> None:
    flop = np.array([1e3, 2e3, 4e3])  # far too little to see the peak
    seconds = np.full(3, 1e-4)
    fit = fit_roofline(KernelSamples(flop, flop, np.zeros(3), np.zeros(3), seconds), PEAK, HBM)
    assert fit.base_s == pytest.approx(1e-4, rel=0.1)
    assert 0.05 < fit.compute < 5
    assert fit.per_expert_s == 0.0
