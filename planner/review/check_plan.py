"""A plan file checked: one that `ep-plan solve` wrote is derived again, one made by hand is priced."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from planner.check import check
from planner.cost.prepare import from_deployment, from_plan, load
from planner.errors import InputError, Place, Problem
from planner.inputs.deployment import Overrides
from planner.inputs.units import format_bytes, format_seconds
from planner.plan.hand import HandPlan, read_any_plan
from planner.review.checked import Checked
from planner.review.pricing import Priced, price
from planner.solve.request import search_space


def check_plan(path: Path, traces: Sequence[Path] | None) -> Checked:
    """Check one plan file.

    Args:
        path: the plan.
        traces: where its traces are; default: where it says, or those of its deployment.

    Raises:
        PlannerError: it cannot be read, or its inputs are not there.
    """
    plan = read_any_plan(path)
    if isinstance(plan, HandPlan):
        return _by_hand(path, plan, traces)
    findings = check(plan, from_plan(plan, path, traces).instance)
    return Checked(path, "plan", tuple(map(str, findings)), summary="every rule and figure holds")


def _by_hand(path: Path, plan: HandPlan, traces: Sequence[Path] | None) -> Checked:
    """Rules hold, and the figures that such a plan does not book are told."""
    deployment = path.parent / plan.deployment
    if not deployment.is_file():
        hint = "give the path of the deployment.yaml that it is for, relative to the plan"
        raise InputError(Problem(f"{deployment}: no such file", Place(str(path), key="deployment"), hint))
    loaded = load(deployment, Overrides(traces=tuple(map(str, traces or ()))))
    prepared = from_deployment(loaded)
    decided = plan.decision(path, prepared.instance.model, prepared.instance.copy_rule)
    priced = price(decided, prepared.instance, search_space(loaded))
    told = f"made by hand, no rule is broken: {decided.split.text}"
    findings = tuple(map(str, priced.findings))
    return Checked(path, "plan", findings, notes=(*prepared.warnings, *_figures(priced)), summary=told)


def _figures(priced: Priced) -> list[str]:
    predicted, baselines = priced.predicted, priced.baselines
    if predicted is None or baselines is None:
        return []
    others = ", ".join(f"{name} {format_seconds(record.step_s)}" for name, record in baselines.items())
    balance = "" if predicted.balancedness is None else f"; balancedness {predicted.balancedness:.3f}"
    fullest = format_bytes(max(predicted.memory_bytes))
    return [f"{format_seconds(predicted.step_s)} per step ({others}){balance}; {fullest} on the fullest GPU"]
