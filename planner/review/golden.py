"""A golden plan: the plan beside a deployment that the next one must not be worse than.

It carries its own inputs, so what went wrong can be told apart by pricing its decision three times: as
booked; by today's cost model on its own inputs; on today's inputs. The first step shows a changed cost
model or an edited file, the second changed inputs, and what remains is the search (`compare_golden.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from planner.check import check, cost_of, structure
from planner.cost.booking import book
from planner.cost.instance import Instance
from planner.cost.prepare import from_plan
from planner.errors import InputError, Place, PlannerError, Problem
from planner.inputs.deployment import Deployment
from planner.plan.decision import cuts_of, placement_of
from planner.plan.finding import Finding
from planner.plan.hand import HandPlan, read_any_plan
from planner.plan.plan import Plan, Predicted
from planner.review.plan_changes import Side
from planner.review.pricing import Priced, price
from planner.solve.request import search_space

NAME: Final = "plan.golden.json"


@dataclass(frozen=True)
class Golden:
    """A golden plan and what can be said of it today."""

    path: Path
    plan: Plan | None
    """As written by `ep-plan check --update`; None if it was made by hand."""
    side: Side | None
    """Its decision and figures; None for one made by hand that makes no sense today."""
    stale: tuple[Finding, ...]
    """What speaks against it by today's rules and cost model, on its own inputs."""
    again: Predicted | None
    """Its figures by today's cost model on its own inputs, where they are not the booked ones."""
    traces_gone: bool
    """Whether its own traces are not what they were, so that nothing could be derived from them."""
    today: Priced
    """Its decision on today's inputs."""


def golden_beside(deployment: Path) -> Path:
    """Where the golden plan of a deployment lies, or would lie.

    That of deployment.yaml is plan.golden.json, that of NAME.yaml NAME.plan.golden.json, so that
    deployments can share a folder; a plan.golden.json without a deployment.yaml beside it is anybody's.
    """
    shared = deployment.with_name(NAME)
    if deployment.stem == "deployment":
        return shared
    own = deployment.with_name(f"{deployment.stem}.{NAME}")
    taken = own.exists() or not shared.exists() or deployment.with_name("deployment.yaml").exists()
    return own if taken else shared


def read_golden(path: Path, deployment: Deployment, instance: Instance) -> Golden:
    """Read a golden plan and derive its figures again.

    Args:
        path: the golden plan.
        deployment: what it lies beside.
        instance: today's.

    Raises:
        InputError: it is no plan that this version can read, or is for another deployment.
    """
    try:
        found = read_any_plan(path)
    except InputError as error:
        hint = f"to make it again: ep-plan check --update {deployment.path}"
        raise InputError([*error.problems, Problem("the golden plan cannot be used", Place(str(path)), hint)]) from None
    space = search_space(deployment)
    if isinstance(found, HandPlan):
        return _by_hand(path, found, deployment, instance)
    own = _own_instance(found, path)
    if own is None:
        side = Side(found, found.predicted, None, found.solver, found.held_out)
        return Golden(path, found, side, (), None, traces_gone=True, today=price(found, instance, space))
    stale = tuple(check(found, own))
    cost = None if structure(found, own) else cost_of(found, own)
    again = book(cost, cuts_of(found), placement_of(found)) if stale and cost else None
    side = Side(found, found.predicted, cost, found.solver, found.held_out)
    return Golden(path, found, side, stale, again, traces_gone=False, today=price(found, instance, space))


def _by_hand(path: Path, found: HandPlan, deployment: Deployment, instance: Instance) -> Golden:
    if (path.parent / found.deployment).resolve() != deployment.path.resolve():
        message = f"is for {found.deployment}, but lies beside {deployment.path.name}"
        raise InputError(Problem(message, Place(str(path), key="deployment"), f'say "{deployment.path.name}"'))
    decided = found.decision(path, instance.model, instance.copy_rule)
    today = price(decided, instance, search_space(deployment))
    side = None if today.predicted is None else Side(decided, today.predicted, today.cost)
    return Golden(path, None, side, (), None, traces_gone=False, today=today)


def _own_instance(plan: Plan, path: Path) -> Instance | None:
    """What the plan was made for; None where a trace is not there any more, or is another one."""
    try:
        return from_plan(plan, path).instance
    except PlannerError:
        return None
