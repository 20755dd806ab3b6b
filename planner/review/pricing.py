"""Any plan's decision on any instance: which rules it breaks there, and what it is predicted to do."""

from __future__ import annotations

from dataclasses import dataclass

from planner.baselines import score
from planner.check import broken_by, cost_of, structure
from planner.cost.booking import book
from planner.cost.instance import Instance
from planner.cost.step import SplitCost
from planner.plan.decision import Decided, cuts_of, placement_of
from planner.plan.finding import Finding
from planner.plan.plan import BaselineRecord, Predicted
from planner.rules.grid import SearchSpace


@dataclass(frozen=True)
class Priced:
    """A decision on an instance; without figures where its structure makes no sense there."""

    findings: tuple[Finding, ...]
    cost: SplitCost | None = None
    predicted: Predicted | None = None
    baselines: dict[str, BaselineRecord] | None = None


def price(decided: Decided, instance: Instance, space: SearchSpace) -> Priced:
    """Hold a decision against the rules of a deployment, and book what it would do.

    Args:
        decided: split, stages and slots.
        instance: model, machine, work and routing.
        space: limits and pinned degrees of the deployment.
    """
    broken = structure(decided, instance)
    if broken:
        return Priced(tuple(broken))
    cost = cost_of(decided, instance)
    findings = [*_pins(decided, space), *broken_by(decided, cost, space.limits)]
    if any(finding.rule == "batch" for finding in findings):
        return Priced(tuple(findings))  # a rank without tokens has no step time
    cuts = cuts_of(decided)
    return Priced(tuple(findings), cost, book(cost, cuts, placement_of(decided)), score(cost, cuts))


def _pins(decided: Decided, space: SearchSpace) -> list[Finding]:
    """Degrees and copies that the deployment gives."""
    found = [
        Finding("split", f"{name} is {have}, and the deployment says {name}={wanted}")
        for name, wanted in space.pins.items()
        if (have := getattr(decided.split, name)) != wanted
    ]
    copies, wanted = decided.placement.redundant_experts, space.redundant_experts
    if wanted is not None and copies != wanted and decided.split.ep > 1:
        found.append(Finding("redundant experts", f"{copies} per layer, and the deployment says {wanted}"))
    return found
