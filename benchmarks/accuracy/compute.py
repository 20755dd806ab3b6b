"""Compute kernels: one curve per GPU, work and format, judged on shapes and GPUs that its fit has not seen."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.accuracy.fitting import Fit, carried_over_errors, fitted, held_out_errors, summary
from benchmarks.accuracy.points import Points
from planner.inputs.efficiency import Errors, Work

Floats = NDArray[np.float64]
Key = tuple[Work, str]
FOLLOWS: Final = 0.18
"""A kernel follows the form if half of its measurements, of shapes not fitted, are met within this."""
SOURCE: Final = "AIConfigurator 0.12 (Apache-2.0)"
WORKS: Final[dict[Work, str]] = {
    "experts": "grouped expert GEMM",
    "gemm": "dense GEMM",
    "attention_prefill": "attention, prefill",
    "attention_decode": "attention, decode",
}


@dataclass(frozen=True)
class Judged:
    """One measured kernel with its curve."""

    points: Points
    fit: Fit
    held_out_N: Floats | None

    @cached_property
    def fit_errors(self) -> Errors:
        """On what was fitted."""
        return summary(self.fit.errors(self.points))

    @cached_property
    def held_out(self) -> Errors | None:
        """On shapes left out."""
        return None if self.held_out_N is None else summary(self.held_out_N)

    @property
    def follows(self) -> bool:
        """Whether the form suits it."""
        return (self.held_out or self.fit_errors).median <= FOLLOWS


@dataclass(frozen=True)
class Transferred:
    """The curve for GPUs that nobody measured."""

    groups: tuple[Points, ...]
    fit: Fit
    errors: tuple[Floats, ...]
    """On each GPU, when it was left out."""

    @property
    def carried_over(self) -> Errors | None:
        """On all GPUs left out in turn; None if there was one only."""
        return summary(np.concatenate(self.errors)) if self.errors else None


@dataclass(frozen=True)
class ComputeFits:
    """Everything fitted."""

    kernels: tuple[Judged, ...]
    references: dict[tuple[str, Work, str], Judged]
    """By GPU, work and name: a fast kernel that follows the form, which an engine would pick."""
    transferred: dict[Key, Transferred]


def fit_compute(points: Sequence[Points]) -> ComputeFits:
    """Fit every kernel, choose those that profiles describe, and fit what is transferred."""
    kernels = tuple(Judged(one, fitted([one]), held_out_errors(one)) for one in points)
    groups: dict[tuple[str, Work, str], list[Judged]] = defaultdict(list)
    for kernel in kernels:
        groups[kernel.points.gpu.name, kernel.points.work, kernel.points.name].append(kernel)
    references = {key: chosen for key, alike in groups.items() if (chosen := _fastest(alike)) is not None}
    pooled: dict[Key, list[Points]] = defaultdict(list)
    for (_, work, name), chosen in references.items():
        pooled[work, name].append(chosen.points)
    transferred = {
        key: Transferred(tuple(group), fitted(group), tuple(carried_over_errors(group)))
        for key, group in pooled.items()
    }
    return ComputeFits(kernels, references, transferred)


def _fastest(alike: Sequence[Judged]) -> Judged | None:
    """Of kernels that follow the form, the least geometric mean time over all measured, errors on top of it.

    A kernel that is a little faster but met half as well is no better a description of the GPU.
    """

    def cost(kernel: Judged) -> float:
        bare, errors = Fit(kernel.fit.roofline, 0.0), kernel.held_out or kernel.fit_errors
        logs = np.concatenate([np.log(bare.seconds(other.points)) for other in alike])
        return float(np.mean(logs)) + errors.median + errors.p90

    return min((kernel for kernel in alike if kernel.follows), key=cost, default=None)


# --- profiles -------------------------------------------------------------------------------------


def profile_blocks(fits: ComputeFits) -> Iterator[tuple[str, str]]:
    """Names of profiles, each with the `efficiency:` block that its file holds."""
    by_gpu: dict[str, dict[Work, list[str]]] = defaultdict(lambda: defaultdict(list))
    for (gpu, work, name), one in fits.references.items():
        source = f"{SOURCE}, {one.points.kernel}, {len(one.points)} measurements"
        line = _curve_text(one.fit, "fitted", source, fit=one.fit_errors, held_out=one.held_out)
        by_gpu[gpu][work].append(f"    {name}: {line}")
    for gpu in sorted(by_gpu):
        lines = ["efficiency:"]
        for work in WORKS:
            lines += [f"  {work}:", *by_gpu[gpu][work]] if by_gpu[gpu][work] else []
        yield gpu, "\n".join(lines)
    lines = []
    for work in WORKS:
        lines.append(f"{work}:")
        for (of, name), pooled in fits.transferred.items():
            if of == work:
                source = f"{SOURCE}, {', '.join(group.gpu.name for group in pooled.groups)}"
                lines.append(
                    f"  {name}: {_curve_text(pooled.fit, 'transferred', source, held_out=pooled.carried_over)}"
                )
    yield "default", "\n".join(lines)


def _curve_text(curve: Fit, basis: str, source: str, **errors: Errors | None) -> str:
    r = curve.roofline
    values = [f"base: {r.base * 1e6:.3g} us"]
    if r.per_expert:
        values.append(f"per_expert: {r.per_expert * 1e9:.3g} ns")
    values += [f"compute: {round(r.compute * 100)}%", f"memory: {round(r.memory * 100)}%"]
    if r.activation is not None:
        values.append(f"activation: {round(r.activation * 100)}%")
    values.append(f"exponent: {r.exponent}")
    told = [f"{name}: {{median: {one.median:.1%}, p90: {one.p90:.1%}}}" for name, one in errors.items() if one]
    parts = [f"value: {{{', '.join(values)}}}", f"basis: {basis}", *told, f'source: "{source}"']
    return f"{{{', '.join(parts)}}}"


# --- tables ---------------------------------------------------------------------------------------

GOOD: Final[dict[Key, str]] = {
    ("experts", "bf16"): "8 / 25",
    ("experts", "fp8"): "8 / 25",
    ("experts", "fp8_block"): "8 / 25",
    ("experts", "nvfp4"): "14 / 35",
    ("gemm", "bf16"): "8 / 30",
    ("gemm", "fp8"): "8 / 30",
    ("gemm", "fp8_block"): "8 / 30",
    ("gemm", "nvfp4"): "8 / 30",
    ("attention_prefill", "gqa"): "7 / 18",
    ("attention_prefill", "gqa_fp8"): "7 / 18",
    ("attention_prefill", "mla"): "7 / 18",
    ("attention_prefill", "mla_fp8"): "7 / 18",
    ("attention_decode", "gqa"): "12 / 35",
    ("attention_decode", "gqa_fp8"): "12 / 35",
    ("attention_decode", "mla"): "15 / 35",
    ("attention_decode", "mla_fp8"): "15 / 35",
}
"""What a good form of few numbers owes on held-out shapes, median / p90 in per cent."""


def text_of(errors: Errors | None) -> str:
    """Median / p90 in per cent."""
    return "-" if errors is None else f"{errors.median * 100:.1f} / {errors.p90 * 100:.1f}"


def reference_rows(fits: ComputeFits) -> Iterator[tuple[str, ...]]:
    """Curves in the profiles: work, format, GPU, kernel, measurements, errors fitted, held out, carried over, owed."""
    for (gpu, work, name), one in sorted(fits.references.items(), key=lambda item: (list(WORKS).index(item[0][1]),)):
        pooled = fits.transferred[work, name]
        at = [group.gpu.name for group in pooled.groups].index(gpu)
        carried = text_of(summary(pooled.errors[at])) if pooled.errors else "-"
        counts = f"{len(one.points):,}"
        errors = (text_of(one.fit_errors), text_of(one.held_out), carried, GOOD.get((work, name), "-"))
        yield WORKS[work], name, gpu, one.points.kernel, counts, *errors


def stray_rows(fits: ComputeFits) -> Iterator[tuple[str, ...]]:
    """Kernels that the form does not suit."""
    for one in fits.kernels:
        if not one.follows:
            errors = (text_of(one.fit_errors), text_of(one.held_out))
            yield WORKS[one.points.work], one.points.name, one.points.gpu.name, one.points.kernel, *errors
