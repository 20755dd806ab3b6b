"""A deployment solved, held against its own `checks:` and against the golden plan beside it."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from planner.cost.prepare import Prepared, from_deployment, load
from planner.errors import InputError, Place, Problem
from planner.files import write_whole
from planner.inputs.deployment import Deployment, Overrides
from planner.inputs.units import format_percent, format_seconds
from planner.plan.plan import Plan
from planner.review.checked import Checked
from planner.review.compare_golden import Compared, compare_golden, golden_text
from planner.review.golden import golden_beside, read_golden
from planner.review.pricing import price
from planner.review.thresholds import memory_headroom, thresholds
from planner.solve.diagnosis import infeasible
from planner.solve.request import search_space, solve_deployment
from planner.solve.solver import Solved
from planner.solve.watch import Watch
from planner.solve.workers import Workers


def check_deployment(path: Path, traces: tuple[str, ...], watch: Watch, *, update: bool = False) -> Checked:
    """Validate a deployment; solve it if it has `checks:` or a golden plan, or is to get one.

    Args:
        path: the deployment file.
        traces: recorded routing that counts instead of the deployment's.
        watch: who looks on.
        update: write the plan found as golden plan, unless it misses a threshold.

    Raises:
        PlannerError: an input is invalid, or no plan was found in time.
    """
    started = time.monotonic()
    loaded = load(path, Overrides(traces=traces))
    prepared = from_deployment(loaded)
    checks, golden = loaded.file.checks, golden_beside(path)
    has_checks = "checks" in loaded.file.model_fields_set
    if not (has_checks or update or golden.exists()):
        return Checked(path, "deployment", notes=prepared.warnings, summary="inputs are valid; no golden plan")
    limit_s = loaded.file.solve.time_limit
    with Workers(deadline=None if limit_s is None else started + limit_s) as workers:
        solved = solve_deployment(loaded, prepared, golden, workers, watch)
    if solved.plan is None:
        return _without_plan(loaded, prepared, solved, golden, watch, workers.deadline)
    if solved.plan.solver.stopped_by == "interrupt":
        raise KeyboardInterrupt  # nobody waits for a verdict any more, and a plan cut short would be a false one
    if checks.expect == "infeasible":
        found = f"expect: should be infeasible, but {solved.plan.split.text} fits"
        return Checked(path, "deployment", (found,), notes=prepared.warnings)
    return _with_plan(loaded, prepared, solved.plan, golden, update=update)


def _with_plan(loaded: Deployment, prepared: Prepared, plan: Plan, golden: Path, *, update: bool) -> Checked:
    """Thresholds, then the golden plan."""
    missed = tuple(thresholds(loaded.file.checks, plan, prepared.instance.usable_G))
    compared = None
    if update and missed:
        missed = (*missed, f"{golden.name} was not written: a plan that misses a threshold is no golden plan")
    elif update:
        compared = _renewed(loaded, prepared, plan, golden)
    elif golden.exists():
        compared = _compared(loaded, prepared, plan, golden)
    summary = _summary(plan, memory_headroom(plan, prepared.instance.usable_G), compared)
    return Checked(loaded.path, "deployment", missed, notes=prepared.warnings, summary=summary, compared=compared)


def _without_plan(
    loaded: Deployment, prepared: Prepared, solved: Solved, golden: Path, watch: Watch, deadline: float | None
) -> Checked:
    """Nothing fits: as expected, or with the reasons in words."""
    path = loaded.path
    if loaded.file.checks.expect == "infeasible":
        left = (f"expect: infeasible, but {golden.name} lies beside it: remove one of them",) if golden.exists() else ()
        return Checked(path, "deployment", left, notes=prepared.warnings, summary="nothing fits, as expected")
    error = infeasible(prepared.instance, search_space(loaded), solved.solution.candidates, watch, deadline)
    if error.data.get("repairs_stopped_by") == "interrupt":
        raise KeyboardInterrupt  # the files that follow are not to be checked, either
    problem = error.problems[0]
    notes = (*problem.hint.splitlines(), "if that is meant: checks: {expect: infeasible}")
    return Checked(path, "deployment", (f"infeasible: {problem.message}",), notes=(*prepared.warnings, *notes))


def _compared(loaded: Deployment, prepared: Prepared, plan: Plan, golden: Path) -> Compared:
    if golden.read_bytes() == golden_text(plan).encode():
        return Compared(golden, "same")  # the solver has checked the plan, so the golden plan is right, too
    today = price(plan, prepared.instance, search_space(loaded))
    return compare_golden(read_golden(golden, loaded, prepared.instance), plan, today, loaded)


def _renewed(loaded: Deployment, prepared: Prepared, plan: Plan, golden: Path) -> Compared:
    """Write the golden plan; what it was before is told as a diff, and why that was out of date as notes."""
    if plan.solver.stopped_by == "time_limit":
        hint = "give solve.time_limit more, or leave it out: the search ends by itself"
        message = "the time limit stopped the search: such a plan cannot be made again, so it is no golden plan"
        raise InputError(Problem(message, Place(str(loaded.path), key="solve.time_limit"), hint))
    existed = golden.exists()
    try:
        before = _compared(loaded, prepared, plan, golden) if existed else None
    except InputError as error:
        before = Compared(golden, "renewed", notes=tuple(problem.message for problem in error.problems))
    if before is not None and before.status == "same" and golden.read_bytes() == golden_text(plan).encode():
        return replace(before, status="unchanged")
    write_whole(golden, golden_text(plan))
    if before is None:
        return Compared(golden, "created")
    notes = (*before.findings, *before.notes)
    return Compared(golden, "renewed", notes=notes, causes=before.causes, rows=before.rows)


def _summary(plan: Plan, headroom: float, compared: Compared | None) -> str:
    """The plan in a few words, and how it stands against the golden plan."""
    told = {
        None: "no golden plan",
        "same": "as the golden plan",
        "better": "better than the golden plan",
        "as good": "another plan than the golden one, as good",
        "regression": "",
        "created": "golden plan written",
        "renewed": "golden plan renewed",
        "unchanged": "golden plan up to date",
    }[compared.status if compared else None]
    figures = (
        f"{plan.split.text}, {format_seconds(plan.predicted.step_s)} per step, "
        f"gap {format_percent(plan.solver.gap, 2)}, {format_percent(headroom, 0)} memory free"
    )
    return f"{figures}; {told}" if told else figures
