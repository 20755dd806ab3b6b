"""Curves of kernels: what they must never do, what they reproduce, and that fitting finds what was put in."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.accuracy.compute import fit_compute, stray_rows
from benchmarks.accuracy.fitting import fitted, held_out_errors
from benchmarks.accuracy.points import Points
from benchmarks.accuracy.profiles import write_profiles
from benchmarks.accuracy.skew import CASES, SkewCase
from benchmarks.accuracy.targets import GOOD
from planner.cost.roofline import Kernel, kernel, smooth_max
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


@given(st.sampled_from(KERNELS), amounts, amounts, amounts, st.floats(0, 512), st.floats(0, 1e6), st.floats(1, 1e3))
def test_more_work_is_never_faster_and_nothing_is_faster_than_light(
    one: Kernel, flop: float, num_bytes: float, moved: float, experts: float, chain: float, more: float
) -> None:
    seconds = one.seconds(flop, num_bytes, moved, experts, chain)
    assert np.isfinite(seconds)
    assert seconds > 0
    assert seconds >= one.light_s(flop, num_bytes) * (1 - 1e-12)
    for grown in (
        one.seconds(flop * more, num_bytes, moved, experts, chain),
        one.seconds(flop, num_bytes * more, moved, experts, chain),
        one.seconds(flop, num_bytes, moved * more, experts, chain),
        one.seconds(flop, num_bytes, moved, experts * more, chain),
        one.seconds(flop, num_bytes, moved, experts, chain * more),
    ):
        assert grown >= seconds * (1 - 1e-12)


@given(st.lists(st.floats(1e-9, 1.0), min_size=1, max_size=3), st.floats(1, 8))
def test_the_smooth_maximum_is_the_norm_that_the_bounds_rest_on(parts: list[float], power: float) -> None:
    """Between maximum and sum, homogeneous, convex; square roots where the exponent allows."""
    smooth = smooth_max(parts, power)
    assert max(parts) * (1 - 1e-12) <= smooth <= sum(parts) * (1 + 1e-12)
    assert smooth_max([2 * part for part in parts], power) == pytest.approx(2 * smooth)
    turned = parts[1:] + parts[:1]
    middle = smooth_max([(x + y) / 2 for x, y in zip(parts, turned, strict=True)], power)
    assert middle <= (smooth + smooth_max(turned, power)) / 2 * (1 + 1e-12)
    for exact in (2, 4):
        assert smooth_max(parts, exact) == pytest.approx(sum(part**exact for part in parts) ** (1 / exact))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.layout)
def test_skew_follows_from_the_rows(case: SkewCase) -> None:
    """Measured by AIConfigurator on H200, DeepSeek-V3, EP32: 1.45 ms of 8,771 rows and 0.78 ms of 4,806."""
    assert abs(case.error) < 0.2


def synthetic(noise: float, *, slower: float = 1.0, name: str = "made up") -> tuple[Points, Roofline]:
    """Kernels of a known curve: six shapes, sizes over four decades."""
    rng = np.random.default_rng(0)
    gpu, weights = load_gpu("h100-sxm"), 2.0 ** rng.uniform(20, 30, (6, 40))
    tokens, inner = 2.0 ** rng.uniform(0, 14, weights.shape), 2.0 ** rng.uniform(10, 14, weights.shape)
    values: dict[str, Any] = {"base": 5e-6, "compute": 0.8, "memory": 0.7, "activation": 0.5, "serial": 6e-10}
    roofline = Roofline.model_construct(**values, per_expert=0.0, exponent=3.0)
    flop, moved = weights * tokens, 4e3 * tokens
    seconds = kernel(gpu, Curve(value=roofline), "bf16").seconds(flop, weights, moved, chain=inner)
    seconds = slower * seconds * np.exp(noise * rng.standard_normal(seconds.shape))
    zero = np.zeros(flop.size)
    points = Points(
        gpu=gpu,
        work="gemm",
        name="bf16",
        weights="bf16",
        kernel=name,
        flop_N=flop.ravel(),
        bytes_N=weights.ravel(),
        moved_N=moved.ravel(),
        experts_N=zero,
        chain_N=inner.ravel(),
        extra_N=zero,
        seconds_N=seconds.ravel(),
        shape_N=np.repeat(np.arange(6), 40),
    )
    return points, roofline


def test_a_fit_finds_the_curve_that_measurements_come_from() -> None:
    points, truth = synthetic(noise=0.0)
    found = fitted([points]).roofline
    assert (found.exponent, found.compute, found.memory) == (3.0, 0.8, 0.7)
    assert found.base == pytest.approx(truth.base, rel=0.01)
    assert found.serial == pytest.approx(truth.serial, rel=0.01)
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


def test_a_profile_describes_a_fast_kernel_that_follows_the_form() -> None:
    """The fastest is too noisy, the slowest too slow; of the two between, the one that is met better."""
    made = {
        "noisy": synthetic(0.5, slower=0.5, name="noisy")[0],
        "fast": synthetic(0.1, slower=0.95, name="fast")[0],
        "good": synthetic(0.02, name="good")[0],
        "slow": synthetic(0.0, slower=2.0, name="slow")[0],
    }
    fits = fit_compute(list(made.values()))
    assert [one.points.kernel for one in fits.kernels if not one.follows] == ["noisy"]
    assert {key: one.points.kernel for key, one in fits.references.items()} == {("h100-sxm", "gemm", "bf16"): "good"}
    assert [points.kernel for points in fits.transferred["gemm", "bf16"].groups] == ["good"]
    [stray] = stray_rows(fits)
    assert stray[:4] == ("dense GEMM", "bf16", "h100-sxm", "noisy")
    assert 0.4 < float(stray[-1]) < 0.6


def test_written_profiles_read_back_as_fitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fits = fit_compute([synthetic(0.02)[0]])
    shutil.copytree(profiles.folder(), tmp_path / "profiles")
    monkeypatch.setattr(profiles, "folder", lambda: tmp_path / "profiles")
    before = load_gpu("h100-sxm"), load_default_efficiency()
    assert [path.name for path in write_profiles(fits)] == ["h100-sxm.yaml", "efficiency.yaml"]
    gpu, default = load_gpu("h100-sxm"), load_default_efficiency()
    assert gpu.efficiency is not None
    assert gpu.efficiency.gemm["bf16"].value == fits.references["h100-sxm", "gemm", "bf16"].fit.roofline
    assert gpu.efficiency.gemm["bf16"].held_out == fits.references["h100-sxm", "gemm", "bf16"].held_out
    assert gpu.model_copy(update={"efficiency": None}) == before[0].model_copy(update={"efficiency": None})
    assert default.gemm["bf16"].value == gpu.efficiency.gemm["bf16"].value
    assert default.overlap == before[1].overlap


@pytest.mark.parametrize("gpu", [gpu for gpu in GPUS if gpu.efficiency and not gpu.curves_of], ids=lambda gpu: gpu.name)
def test_shipped_curves_meet_what_is_owed_on_shapes_held_out(gpu: Gpu) -> None:
    assert gpu.efficiency is not None
    for (work, name), owed in GOOD.items():
        curve: Curve | None = getattr(gpu.efficiency, work).get(name)
        if curve is not None:
            assert curve.held_out is not None
            assert (curve.held_out.median <= owed.median, curve.held_out.p90 <= owed.p90) == (True, True), (work, name)
