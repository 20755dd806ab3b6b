"""Skewed routing: the time of the most loaded rank must follow from its rows, not from a constant.

DeepSeek-V3 on 32 ranks, prefill. For two layouts the rows on that rank are known (`published_cases.json`,
aic-moe-ep32-skew-h200). For all others loads were drawn, and not kept: they are drawn here many times by the same law,
and the mean of the predicted times stands beside the one time measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.accuracy.published import Outcome, Published
from planner.baselines import eplb_layer
from planner.cost.roofline import Kernel, kernel
from planner.inputs.efficiency import curves_of
from planner.inputs.gpu import load_gpu
from planner.inputs.model import Model
from planner.inputs.model_files import read_model
from planner.inputs.parameters import expert_parameters
from planner.inputs.precision import WEIGHTS
from planner.inputs.profiles import path_of
from planner.plan.placement import linear

Floats = NDArray[np.float64]
RANKS: Final = 32
EXPERTS: Final = 256
TOP_K: Final = 8
DRAWS: Final = 400
BALANCED_DRAWS: Final = 25
"""EPLB takes longer, and its ranks differ less from draw to draw."""
_LEAST, _MOST = 1.0, 0.8
"""Range of an expert's draw: from one token to this part of all (AIConfigurator, docs/POWER_LAW_DISTRIBUTION.md)."""


@cache
def _model() -> Model:
    return read_model(path_of("models", "deepseek-v3"))


@cache
def _bounds(gpu_name: str, engine: str | None) -> tuple[Kernel, ...]:
    gpu = load_gpu(gpu_name)
    assert gpu.efficiency is not None
    return tuple(
        kernel(gpu, curve, "fp8_block") for curve in curves_of([gpu.efficiency], "experts", "fp8_block", engine)
    )


def expert_s(gpu_name: str, engine: str | None, rows_N: Floats, slots: float, mean: float) -> Floats:
    """Seconds of ranks with so many rows and slots, all experts touched; by the fastest kernel at `mean` rows."""
    model = _model()
    hidden, width = model.hidden_size, model.moe.intermediate_size
    parameters = expert_parameters(model.moe, hidden)
    num_bytes = slots * parameters * float(WEIGHTS["fp8_block"].bits) / 8

    def seconds(bound: Kernel, rows: Floats) -> Floats:
        moved = rows * 2.0 * (2 * hidden + 3 * width)
        return np.asarray(bound.seconds(2.0 * parameters * rows, np.full_like(moved, num_bytes), moved, slots))

    fastest = min(_bounds(gpu_name, engine), key=lambda bound: float(seconds(bound, np.array([mean]))[0]))
    return seconds(fastest, rows_N)


@dataclass(frozen=True)
class SkewCase:
    """Rows on the most loaded rank and the time measured there."""

    layout: str
    rows: int
    measured_s: float

    @property
    def predicted_s(self) -> float:
        """From the rows."""
        return float(
            expert_s("h200-sxm", TENSORRT_LLM, np.array([self.rows]), EXPERTS // RANKS, TOKENS * TOP_K / RANKS)[0]
        )

    @property
    def error(self) -> float:
        """Predicted over measured, less one."""
        return self.predicted_s / self.measured_s - 1


TENSORRT_LLM: Final = "tensorrt-llm"
TOKENS: Final = 16384
CASES = (SkewCase("contiguous", 8771, 1.448e-3), SkewCase("balanced by EPLB, no copies", 4806, 0.775e-3))


def rows() -> Iterator[tuple[str, ...]]:
    """Layout, rows, measured, predicted, error."""
    for case in CASES:
        times = f"{case.measured_s * 1e3:.2f} ms", f"{case.predicted_s * 1e3:.2f} ms"
        yield case.layout, f"{case.rows:,}", *times, f"{case.error:+.0%}"


# --- loads drawn by the power law -----------------------------------------------------------------


def power_law(rng: np.random.Generator, alpha: float, tokens: int) -> Floats:
    """Rows of each expert: draws of density x**-alpha, scaled to all choices."""
    low, high = (bound ** (1 - alpha) for bound in (_LEAST, _MOST * tokens))
    drawn_E = (low + (high - low) * rng.random(EXPERTS)) ** (1 / (1 - alpha))
    return np.asarray(drawn_E / drawn_E.sum() * tokens * TOP_K)


def most_loaded(rows_E: Floats, slots: int, *, balance: bool) -> float:
    """Rows of the most loaded rank: experts in order, or dealt by EPLB."""
    in_order = linear(EXPERTS, np.full(RANKS, slots // RANKS))
    expert_P = eplb_layer(rows_E, slots, 1, 1, RANKS) if balance else in_order
    copies_E = np.bincount(expert_P, minlength=EXPERTS)
    return float((rows_E / copies_E)[expert_P].reshape(RANKS, -1).sum(axis=1).max())


@dataclass(frozen=True)
class Drawn:
    """A layer whose loads were drawn."""

    case: str
    gpu: str
    engine: str | None
    """One that runs its own kernels alone; None: the fastest of all."""
    tokens: int
    """Of all ranks."""
    alpha: float | None
    """None: the same for all experts."""
    slots: int
    balance: bool
    measured_s: float

    @property
    def layout(self) -> str:
        """In words."""
        return f"EPLB, {self.slots} slots" if self.balance else "contiguous"

    def predicted_s(self) -> float:
        """Mean over draws."""
        mean = self.tokens * TOP_K / RANKS
        rows = [mean]
        if self.alpha is not None:
            rng = np.random.default_rng(0)
            draws = range(BALANCED_DRAWS if self.balance else DRAWS)
            loads = [power_law(rng, self.alpha, self.tokens) for _ in draws]
            rows = [most_loaded(load, self.slots, balance=self.balance) for load in loads]
        return float(expert_s(self.gpu, self.engine, np.array(rows), self.slots // RANKS, mean).mean())


def read_drawn(published: Published) -> Iterator[Drawn]:
    """Both cases of the file."""
    case = "aic-moe-ep32-skew-h200"
    for alpha in (1.01, 1.2):
        times = published[case]["measured"][f"alpha_{alpha}_ms"]
        for layout, milliseconds in times.items():
            slots = 288 if layout == "eplb288" else EXPERTS
            balance = layout != "contiguous"
            yield Drawn(case, "h200-sxm", TENSORRT_LLM, TOKENS, alpha, slots, balance, milliseconds * 1e-3)
    case = "aic-deepepmoe-skew-h100"
    for per_gpu in (4096, 16384):
        times = published[case]["measured"][f"prefill_ms_{per_gpu}_per_gpu"]
        for law, milliseconds in times.items():
            steep = None if law == "uniform" else float(law.removeprefix("a"))
            yield Drawn(case, "h100-sxm", None, per_gpu * RANKS, steep, EXPERTS, False, milliseconds * 1e-3)


def judged(published: Published) -> Iterator[tuple[Drawn, Outcome]]:
    """Seconds of the most loaded rank."""
    for one in read_drawn(published):
        yield one, Outcome(one.case, one.measured_s, one.predicted_s())


def over_uniform(found: Sequence[tuple[Drawn, Outcome]]) -> Iterator[tuple[Drawn, Outcome]]:
    """What skew costs by itself: times over those of uniform loads of the same case and tokens."""
    even = {(one.case, one.tokens): times for one, times in found if one.alpha is None}
    for one, times in found:
        base = even.get((one.case, one.tokens))
        if one.alpha is not None and base is not None:
            yield one, Outcome(one.case, times.measured / base.measured, times.predicted / base.predicted)


def drawn_row(one: Drawn, outcome: Outcome) -> tuple[str, ...]:
    """Case, tokens, exponent, layout, measured, predicted, error."""
    law = "uniform" if one.alpha is None else f"{one.alpha:g}"
    times = (f"{seconds * 1e3:.2f} ms" for seconds in (outcome.measured, outcome.predicted))
    return one.case, f"{one.tokens:,}", law, one.layout, *times, outcome.text
