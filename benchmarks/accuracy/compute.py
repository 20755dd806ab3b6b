"""Compute kernels: one curve per GPU, work and format, judged on shapes and GPUs that its fit has not seen."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.accuracy.fastest import Fastest, fastest_of
from benchmarks.accuracy.fitting import Fit, carried_over_errors, fitted, summary
from benchmarks.accuracy.judged import Judged
from benchmarks.accuracy.points import SHORTEST_PROMPT, Points
from benchmarks.accuracy.targets import CARRIED, EXCELLENT, GOOD, Key
from planner.inputs.efficiency import Errors, Work

Floats = NDArray[np.float64]
FAMILIES: Final = 3, 2
"""GPUs on which a kernel must have been measured for its curve alone to stand for all others: rather three."""
SOURCE: Final = "AIConfigurator 0.12 (Apache-2.0)"
WORKS: Final[dict[Work, str]] = {
    "experts": "grouped expert GEMM",
    "gemm": "dense GEMM",
    "attention_prefill": "attention, prefill",
    "attention_decode": "attention, decode",
}


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

    def meets(self, owed: Errors) -> bool:
        """Whether it is as good as that on every GPU left out."""
        return all(one.median <= owed.median and one.p90 <= owed.p90 for one in map(summary, self.errors))


@dataclass(frozen=True)
class ComputeFits:
    """Everything fitted."""

    kernels: tuple[Judged, ...]
    fastest: dict[tuple[str, Work, str], Fastest]
    """By GPU, work and name: what the profile has."""
    transferred: dict[Key, Transferred]


def fit_compute(points: Sequence[Points]) -> ComputeFits:
    """Fit every kernel, choose those that profiles describe, and fit what is transferred."""
    kernels = tuple(Judged.of(one) for one in points)
    by_gpu: dict[tuple[str, Work, str], list[Judged]] = defaultdict(list)
    for kernel in kernels:
        by_gpu[kernel.points.gpu.name, kernel.points.work, kernel.points.name].append(kernel)
    fastest = {key: chosen for key, alike in by_gpu.items() if (chosen := fastest_of(alike)) is not None}
    by_work: dict[Key, list[Judged]] = defaultdict(list)
    for (_, work, name), chosen in fastest.items():
        by_work[work, name].append(chosen.kernels[0])
    transferred = {key: _transferred([k for k in kernels if k.key == key], chosen) for key, chosen in by_work.items()}
    return ComputeFits(kernels, fastest, transferred)


def _transferred(kernels: Sequence[Judged], references: Sequence[Judged]) -> Transferred:
    """Fitted to a kernel that follows the form on several GPUs; where there is none, to those of the profiles.

    A curve carries over between GPUs that run the same kernel; of several, the one that does best. Kernels of two GPUs
    are looked at where none of three carries over within what is owed.
    """
    families: dict[str, list[Points]] = defaultdict(list)
    for kernel in kernels:
        if kernel.follows:
            families[kernel.points.kernel].append(kernel.points)
    best, owed = None, CARRIED.get(kernels[0].key)
    for least in FAMILIES:
        found = [_carried(family) for family in families.values() if len(family) >= least]
        best = min(found, key=lambda one: one.carried_over.p90 if one.carried_over else 0.0, default=None)
        if best is not None and (owed is None or best.meets(owed)):
            break
    return best or _carried([chosen.points for chosen in references])


def _carried(groups: Sequence[Points]) -> Transferred:
    return Transferred(tuple(groups), fitted(groups), tuple(carried_over_errors(groups)))


# --- tables ---------------------------------------------------------------------------------------


def text_of(errors: Errors | None) -> str:
    """Median / p90 in per cent."""
    return "-" if errors is None else f"{errors.median * 100:.1f} / {errors.p90 * 100:.1f}"


def reference_rows(fits: ComputeFits) -> Iterator[tuple[str, ...]]:
    """Curves in the profiles: work, format, GPU, kernel, measurements, errors fitted and held out, owed, excellent."""
    for (gpu, work, name), chosen in sorted(fits.fastest.items(), key=_in_order):
        targets = text_of(GOOD.get((work, name))), text_of(EXCELLENT.get((work, name)))
        for one in chosen.kernels:
            errors = text_of(one.fit_errors), text_of(one.held_out)
            yield WORKS[work], name, gpu, one.points.kernel, f"{len(one.points):,}", *errors, *targets


def fastest_rows(fits: ComputeFits) -> Iterator[tuple[str, ...]]:
    """The least of a profile's curves: work, format, GPU, kernels, works, error, bias, owed."""
    for (gpu, work, name), chosen in sorted(fits.fastest.items(), key=_in_order):
        if chosen.errors is not None:
            of = f"{chosen.compared} of {chosen.measured}"
            errors = text_of(chosen.errors), f"{chosen.bias * 100:+.1f}"
            yield WORKS[work], name, gpu, of, f"{chosen.works:,}", *errors, text_of(GOOD.get((work, name)))


def carried_rows(fits: ComputeFits) -> Iterator[tuple[str, ...]]:
    """Transferred curves: work, format, GPU that no fit has seen, its kernel, errors, owed."""
    for (work, name), one in sorted(
        fits.transferred.items(), key=lambda item: (list(WORKS).index(item[0][0]), item[0])
    ):
        for points, errors in zip(one.groups, one.errors, strict=False):
            owed = text_of(CARRIED.get((work, name)))
            yield WORKS[work], name, points.gpu.name, points.kernel, text_of(summary(errors)), owed


def short_prompt_rows(fits: ComputeFits, every: Sequence[Points]) -> Iterator[tuple[str, ...]]:
    """Prefill kernels of the profiles with the shortest prompts, too.

    Format, GPU, kernel, number of short prompts, errors of the profile's curve on these, held-out errors of a curve
    fitted to all prompts, owed.
    """
    known = {(one.gpu.name, one.work, one.name, one.kernel): one for one in every}
    for (gpu, work, name), chosen in sorted(fits.fastest.items(), key=_in_order):
        for one in chosen.kernels if work == "attention_prefill" else ():
            points = known[gpu, work, name, one.points.kernel]
            short = points.some(points.chain_N < SHORTEST_PROMPT)  # the chain is the prompt
            if len(short):
                errors = text_of(summary(one.fit.errors(short))), text_of(Judged.of(points).held_out)
                yield name, gpu, one.points.kernel, f"{len(short):,}", *errors, text_of(GOOD.get(one.key))


def _in_order(item: tuple[tuple[str, Work, str], Fastest]) -> tuple[int, str, str]:
    gpu, work, name = item[0]
    return list(WORKS).index(work), name, gpu


def stray_rows(fits: ComputeFits) -> Iterator[tuple[str, ...]]:
    """Kernels that the form does not suit, with their time over the least of the profile's curves (geometric mean)."""
    for one in fits.kernels:
        if not one.follows:
            points, chosen = one.points, fits.fastest.get((one.points.gpu.name, *one.key))
            against = "-"
            if chosen is not None:
                least = np.min([kernel.fit.bare.seconds(points) for kernel in chosen.kernels], axis=0)
                against = f"{float(np.exp(np.mean(np.log(one.bare_N / least)))):.2f}"
            errors = text_of(one.fit_errors), text_of(one.held_out)
            beyond = f"{points.beyond_light} of {points.beyond_light + len(points)}" if points.beyond_light else "-"
            yield WORKS[points.work], points.name, points.gpu.name, points.kernel, *errors, against, beyond
