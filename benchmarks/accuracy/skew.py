"""Skewed routing: the time of the most loaded rank must follow from its rows, not from a constant.

DeepSeek-V3 on 32 H200 ranks, prefill, 16,384 tokens over all of them (`published_cases.json`,
aic-moe-ep32-skew-h200): the contiguous layout and EPLB's without copies put different numbers of rows on that rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from planner.cost.roofline import kernel
from planner.inputs.gpu import load_gpu
from planner.inputs.model_files import read_model
from planner.inputs.parameters import expert_parameters
from planner.inputs.precision import WEIGHTS
from planner.inputs.profiles import path_of

RANKS = 32


@dataclass(frozen=True)
class SkewCase:
    """Rows on the most loaded rank and the time measured there."""

    layout: str
    rows: int
    measured_s: float

    @property
    def predicted_s(self) -> float:
        """From the rows, by the curve of the profile."""
        model, gpu = read_model(path_of("models", "deepseek-v3")), load_gpu("h200-sxm")
        assert gpu.efficiency is not None
        hidden, width = model.hidden_size, model.moe.intermediate_size
        parameters, experts = expert_parameters(model.moe, hidden), model.moe.num_experts // RANKS
        bound = kernel(gpu, gpu.efficiency.experts["fp8_block"], "fp8_block")
        num_bytes = experts * parameters * float(WEIGHTS["fp8_block"].bits) / 8
        moved = self.rows * 2.0 * (2 * hidden + 3 * width)
        return float(bound.seconds(2.0 * parameters * self.rows, num_bytes, moved, experts))

    @property
    def error(self) -> float:
        """Predicted over measured, less one."""
        return self.predicted_s / self.measured_s - 1


CASES = (SkewCase("contiguous", 8771, 1.448e-3), SkewCase("balanced by EPLB, no copies", 4806, 0.775e-3))


def rows() -> Iterator[tuple[str, ...]]:
    """Layout, rows, measured, predicted, error."""
    for case in CASES:
        times = f"{case.measured_s * 1e3:.2f} ms", f"{case.predicted_s * 1e3:.2f} ms"
        yield case.layout, f"{case.rows:,}", *times, f"{case.error:+.0%}"
