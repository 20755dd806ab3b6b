"""A deployment judged by its own `checks:` section: solved, and held against its thresholds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from planner.cost.prepare import from_deployment, load
from planner.inputs.deployment import ChecksSection
from planner.inputs.units import format_percent
from planner.plan.plan import Plan
from planner.solve.request import solve_deployment
from planner.solve.watch import NoWatch
from planner.solve.workers import Workers


def check_deployment(path: Path) -> tuple[str, ...]:
    """What a deployment's thresholds say; it is solved only if it names any.

    Raises:
        PlannerError: an input is invalid.
    """
    loaded = load(path)
    prepared = from_deployment(loaded)
    checks = loaded.file.checks
    if checks == ChecksSection():
        return ()
    with Workers() as workers:
        plan = solve_deployment(loaded, prepared, path, workers, NoWatch()).plan
    if plan is not None and plan.solver.stopped_by == "interrupt":
        raise KeyboardInterrupt  # nobody waits for a verdict any more, and a plan cut short would be a false one
    if plan is None:
        expected = checks.expect == "infeasible"
        return () if expected else ("expect: infeasible (ep-plan solve says why)",)
    if checks.expect == "infeasible":
        return (f"expect: should be infeasible, but a plan with ep={plan.split.ep} fits",)
    return tuple(_thresholds(checks, plan, prepared.instance.usable_G))


def _thresholds(checks: ChecksSection, plan: Plan, usable_G: NDArray[np.int64]) -> Iterator[str]:
    headroom = 1 - float((np.array(plan.predicted.memory_bytes) / usable_G).max())
    least = checks.min_memory_headroom
    if least is not None and headroom < least:
        yield f"min_memory_headroom: {format_percent(headroom)} free on the fullest GPU, below {format_percent(least)}"
    balanced, lowest = plan.predicted.balancedness, checks.min_balancedness
    if lowest is not None and balanced is not None and balanced < lowest:
        yield f"min_balancedness: {balanced:.3f}, below {lowest:g}"
