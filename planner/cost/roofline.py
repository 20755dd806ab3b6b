"""Time of a kernel from its work: how far a kernel family stays below the speed of light.

time = base + per_expert * experts + smooth_max(FLOP / (compute * peak), bytes / (memory * HBM))
       + moved / (activation * HBM)

The curves are in `profiles/gpus/` and `profiles/efficiency.yaml`; `python -m benchmarks accuracy` fits and judges them.

smooth_max(a, b) = (a**p + b**p)**(1/p) with p = 2 or 4. It is convex and grows with both arguments,
also where one of them dominates, as measured kernels do; see docs/model.md, "Compute".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from planner.inputs.efficiency import Curve, Errors
from planner.inputs.gpu import Gpu
from planner.inputs.precision import WeightName, compute_format
from planner.inputs.sourced import Basis

Number = TypeVar("Number", float, NDArray[np.float64])


def smooth_max(first: Number, second: Number, exponent: int) -> Number:
    """(a**p + b**p)**(1/p) for p = 2 or 4, with square roots only."""
    first_squared, second_squared = first * first, second * second
    if exponent == 2:
        return np.sqrt(first_squared + second_squared)  # type: ignore[no-any-return]
    return np.sqrt(np.sqrt(first_squared * first_squared + second_squared * second_squared))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Kernel:
    """A roofline bound to one GPU and one number format: seconds per unit of work."""

    base_s: float
    per_expert_s: float
    s_per_flop: float
    s_per_byte: float
    s_per_moved_byte: float
    exponent: int
    basis: Basis
    source: str
    errors: Errors | None
    light_s_per_flop: float
    light_s_per_byte: float

    def seconds(self, flop: Number, num_bytes: Number, moved_bytes: Number, experts: Number | float = 0.0) -> Number:
        """Time of so much work; see the module.

        Args:
            flop: multiplications and additions.
            num_bytes: weights or cache entries read.
            moved_bytes: activations read and written.
            experts: expert slots of the rank.
        """
        busy = smooth_max(flop * self.s_per_flop, num_bytes * self.s_per_byte, self.exponent)
        return self.base_s + self.per_expert_s * experts + busy + moved_bytes * self.s_per_moved_byte

    def light_s(self, flop: float, num_bytes: float) -> float:
        """The speed of light: the datasheet rates alone, both at once."""
        return max(flop * self.light_s_per_flop, num_bytes * self.light_s_per_byte)


def kernel(gpu: Gpu, curve: Curve, weights: WeightName) -> Kernel:
    """Bind a curve to a GPU and the format of its weights."""
    name, assumed = compute_format(weights, frozenset(gpu.compute))
    roofline, basis, source = curve.value, curve.basis, curve.source
    peak = gpu.compute[name].value
    hbm = gpu.hbm_bandwidth.value
    activation = roofline.activation or roofline.memory
    if assumed and basis != "fitted":
        basis, source = "assumed", f"{source}; {weights} computes as {name} on {gpu.name}"
    return Kernel(
        base_s=roofline.base,
        per_expert_s=roofline.per_expert,
        s_per_flop=1.0 / (roofline.compute * peak),
        s_per_byte=1.0 / (roofline.memory * hbm),
        s_per_moved_byte=1.0 / (activation * hbm),
        exponent=roofline.exponent,
        basis=basis,
        source=source,
        errors=curve.held_out or curve.fit,
        light_s_per_flop=1.0 / peak,
        light_s_per_byte=1.0 / hbm,
    )


def slowest_kernel(kernels: Sequence[Kernel]) -> Kernel:
    """Of GPUs that wait for each other: the slowest in each respect."""
    first = kernels[0]
    if len(kernels) == 1:
        return first
    return replace(
        first,
        base_s=max(k.base_s for k in kernels),
        per_expert_s=max(k.per_expert_s for k in kernels),
        s_per_flop=max(k.s_per_flop for k in kernels),
        s_per_byte=max(k.s_per_byte for k in kernels),
        s_per_moved_byte=max(k.s_per_moved_byte for k in kernels),
        exponent=min(k.exponent for k in kernels),
        light_s_per_flop=max(k.light_s_per_flop for k in kernels),
        light_s_per_byte=max(k.light_s_per_byte for k in kernels),
    )
