"""The `checks:` of a deployment, held against its plan."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from planner.inputs.deployment import ChecksSection
from planner.inputs.units import format_percent, format_seconds
from planner.plan.plan import Plan


def thresholds(checks: ChecksSection, plan: Plan, usable_G: NDArray[np.int64]) -> Iterator[str]:
    """Thresholds that a plan misses, and those that cannot be judged.

    Args:
        checks: the thresholds.
        plan: the plan.
        usable_G: bytes that the engine may use of each GPU.
    """
    least, headroom = checks.min_memory_headroom, memory_headroom(plan, usable_G)
    if least is not None and headroom < least:
        yield f"min_memory_headroom: {format_percent(headroom)} free on the fullest GPU, below {format_percent(least)}"
    balanced, lowest = plan.predicted.balancedness, checks.min_balancedness
    if lowest is not None and balanced is None:
        yield "min_balancedness: unknown, for there is no trace: give one, or leave the threshold out"
    elif lowest is not None and balanced is not None and balanced < lowest:
        yield f"min_balancedness: {balanced:.3f}, below {lowest:g}"
    yield from _held_out(checks, plan)
    if checks.max_gap is not None and plan.solver.gap > checks.max_gap:
        yield f"max_gap: {format_percent(plan.solver.gap, 2)}, above {format_percent(checks.max_gap, 2)}"
    if checks.max_step is not None and plan.predicted.step_s > checks.max_step:
        yield f"max_step: {format_seconds(plan.predicted.step_s)}, above {format_seconds(checks.max_step)}"


def memory_headroom(plan: Plan, usable_G: NDArray[np.int64]) -> float:
    """Part of what the engine may use that is free on the fullest GPU."""
    return 1 - float((np.array(plan.predicted.memory_bytes) / usable_G).max())


def _held_out(checks: ChecksSection, plan: Plan) -> Iterator[str]:
    most = checks.max_held_out_imbalance
    if most is None:
        return
    if plan.held_out is None:
        yield "max_held_out_imbalance: unknown, for nothing was held out: it takes a trace of two windows and ep > 1"
    elif (found := plan.held_out.imbalance["plan"]) > most:
        yield f"max_held_out_imbalance: {found:.3f}, above {most:g}"
