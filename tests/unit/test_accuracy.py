"""Curves of kernels: what they must never do, what they reproduce, and that fitting finds what was put in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.accuracy.fitting import fitted, held_out_errors
from benchmarks.accuracy.points import Points
from benchmarks.accuracy.skew import CASES, SkewCase
from planner.cost.roofline import Kernel, kernel
from planner.inputs import profiles
from planner.inputs.efficiency import Curve, Roofline, Work, curve_of, load_default_efficiency
from planner.inputs.gpu import Gpu, load_gpu
from planner.inputs.precision import WEIGHTS, WeightName

GPUS = [load_gpu(name) for name in profiles.names("gpus")]
WORKS: tuple[tuple[Work, WeightName], ...] = tuple(
    (work, weights) for work in ("experts", "gemm") for weights in WEIGHTS
)
amounts = st.floats(0, 1e16)


def bound(gpu: Gpu, work: Work, name: str, weights: WeightName) -> Kernel:
    known = [load_default_efficiency()] if gpu.efficiency is None else [gpu.efficiency, load_default_efficiency()]
    return kernel(gpu, curve_of(known, work, name), weights)


KERNELS = [bound(gpu, work, weights, weights) for gpu in GPUS for work, weights in WORKS] + [
    bound(gpu, work, kind, "bf16")
    for gpu in GPUS
    for work in ("attention_prefill", "attention_decode")
    for kind in ("gqa", "gqa_fp8", "mla", "mla_fp8")
]


@given(st.sampled_from(KERNELS), amounts, amounts, amounts, st.floats(0, 512), st.floats(1, 1e3))
def test_more_work_is_never_faster_and_nothing_is_faster_than_light(
    one: Kernel, flop: float, num_bytes: float, moved: float, experts: float, more: float
) -> None:
    seconds = one.seconds(flop, num_bytes, moved, experts)
    assert np.isfinite(seconds)
    assert seconds > 0
    assert seconds >= one.light_s(flop, num_bytes) * (1 - 1e-12)
    for grown in (
        one.seconds(flop * more, num_bytes, moved, experts),
        one.seconds(flop, num_bytes * more, moved, experts),
        one.seconds(flop, num_bytes, moved * more, experts),
        one.seconds(flop, num_bytes, moved, experts * more),
    ):
        assert grown >= seconds * (1 - 1e-12)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.layout)
def test_skew_follows_from_the_rows(case: SkewCase) -> None:
    """Measured by AIConfigurator on H200, DeepSeek-V3, EP32: 1.45 ms of 8,771 rows and 0.78 ms of 4,806."""
    assert abs(case.error) < 0.2


def synthetic(noise: float) -> tuple[Points, Roofline]:
    """Kernels of a known curve: six shapes, sizes over four decades."""
    rng = np.random.default_rng(0)
    gpu, weights = load_gpu("h100-sxm"), 2.0 ** rng.uniform(20, 30, (6, 40))
    tokens = 2.0 ** rng.uniform(0, 14, weights.shape)
    values: dict[str, Any] = {"base": 5e-6, "per_expert": 0.0, "compute": 0.8, "memory": 0.7, "activation": 0.5}
    roofline = Roofline.model_construct(**values, exponent=4)
    flop, moved = weights * tokens, 4e3 * tokens
    seconds = kernel(gpu, Curve(value=roofline), "bf16").seconds(flop, weights, moved)
    seconds = seconds * np.exp(noise * rng.standard_normal(seconds.shape))
    zero, shape = np.zeros(flop.size), np.repeat(np.arange(6), 40)
    columns = (flop.ravel(), weights.ravel(), moved.ravel(), zero, zero, seconds.ravel(), shape)
    return Points(gpu, "gemm", "bf16", "bf16", "made up", *columns), roofline


def test_a_fit_finds_the_curve_that_measurements_come_from() -> None:
    points, truth = synthetic(noise=0.0)
    found = fitted([points]).roofline
    assert (found.exponent, found.compute, found.memory) == (4, 0.8, 0.7)
    assert found.base == pytest.approx(truth.base, rel=0.01)
    errors = held_out_errors(points)
    assert errors is not None
    assert errors.max() < 0.01


def test_held_out_errors_are_those_of_measurements_not_seen() -> None:
    """With 10 % of noise the median error is that of a normal deviate, 6.7 %, give or take."""
    points, _ = synthetic(noise=0.1)
    errors = held_out_errors(points)
    assert errors is not None
    assert 0.05 < float(np.median(errors)) < 0.09
    assert held_out_errors(points.some(points.shape_N == 0)) is None
