"""What changes if an input does: solve again, and hold the two plans against each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from planner.capacity.case import Case
from planner.capacity.figures import Change, Figures, OldSplit, changes, figures_of, old_split, term_changes
from planner.capacity.jobs import job_of, plan_of
from planner.capacity.loss import Loss, loss_of
from planner.capacity.repair import Repair, repair, repaired_plan
from planner.inputs.deployment import Deployment
from planner.inputs.edits import Setting, edited
from planner.inputs.units import format_number_of
from planner.plan.plan import Plan
from planner.rules.grid import splits_of
from planner.solve.request import plan_inputs, search_space
from planner.solve.watch import Watch
from planner.solve.workers import Workers


@dataclass(frozen=True)
class WhatIf:
    """Two plans, and what differs between them."""

    settings: tuple[str, ...]
    """What was set or lost, in words."""
    before: Figures
    after: Figures
    changes: tuple[Change, ...]
    terms: tuple[Change, ...]
    """Parts of the step that take longer or shorter, the largest difference first; seconds."""
    old_split: OldSplit | None
    """None if the plan after has the split of the plan before."""
    loss: Loss | None
    repair: Repair | None
    """The fewest weights brought; None if no node is lost."""
    plan: Plan
    repaired: Plan | None
    """The cheapest repair as a plan, if it was asked for and there is one."""


def what_if(
    case: Case,
    settings: Sequence[Setting],
    lost_nodes: tuple[int, ...],
    output: Path,
    workers: Workers,
    watch: Watch,
    *,
    repaired: Path | None = None,
) -> WhatIf:
    """Solve a case again with values set and nodes lost.

    Args:
        case: where to start; a deployment is solved as it stands first.
        settings: what is set.
        lost_nodes: nodes taken out of service.
        output: where the new plan would lie: its traces are named relative to it.
        workers: who places layers.
        watch: who looks on.
        repaired: where the cheapest repair would lie, if it is wanted as a plan.

    Raises:
        UsageError: a path or a value is wrong.
        InfeasibleError: nothing fits any more, with reasons and repairs.
    """
    changed, freed = without_nodes(case.deployment, settings, lost_nodes)
    job = job_of(changed, output)
    before = case.plan or plan_of(job_of(case.deployment, output), workers, watch)
    after = plan_of(job, workers, watch)
    instance, space = job.prepared.instance, search_space(changed)
    found = repair(before, lost_nodes, after, instance, space) if lost_nodes else None
    made = None
    if repaired is not None and found is not None and found.given is not None:
        inputs = plan_inputs(changed, job.prepared, repaired)
        made = repaired_plan(found, inputs, instance, space, workers, watch)
    return WhatIf(
        settings=(*(setting.text for setting in settings), *(f"node {node} lost" for node in lost_nodes), *freed),
        before=figures_of(before),
        after=figures_of(after),
        changes=tuple(changes(before, after)),
        terms=tuple(term_changes(before, after)),
        old_split=old_split(before, after),
        loss=loss_of(before, lost_nodes) if lost_nodes else None,
        repair=found,
        plan=after,
        repaired=made,
    )


def without_nodes(
    deployment: Deployment, settings: Sequence[Setting], lost_nodes: Sequence[int]
) -> tuple[Deployment, tuple[str, ...]]:
    """The deployment with values set and nodes lost, and in words which pinned degrees became smaller for that.

    Degrees that were pinned for all nodes may not divide the GPUs that are left. Then each becomes the largest that
    does, but for those that `settings` pin.
    """
    changed = edited(deployment, settings, lost_nodes)
    pins, gpus = changed.file.solve.split.pinned(), changed.topology.num_gpus
    if not lost_nodes or not pins or any(splits_of(gpus, pins)):
        return changed, ()
    kept = {str(one.key[-1]) for one in settings if one.key[:2] == ("solve", "split")}
    fixed = {name: value for name, value in pins.items() if name in kept}
    lower = [split for split in splits_of(gpus, fixed) if all(getattr(split, name) <= pins[name] for name in pins)]
    if not lower:
        return changed, ()  # solving says why there is none
    near = max(lower, key=lambda split: math.prod(getattr(split, name) for name in pins))
    values = {name: getattr(near, name) for name in pins if getattr(near, name) != pins[name]}
    instead = [Setting(f"solve.split.{n}={v}", ("solve", "split", n), v) for n, v in values.items()]
    left = f"{format_number_of(gpus, 'GPU')} {'is' if gpus == 1 else 'are'} left"
    told = tuple(f"{name}={pins[name]} becomes {value}: {left}" for name, value in values.items())
    return edited(deployment, [*settings, *instead], lost_nodes), told
