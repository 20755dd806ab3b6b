"""A placement that replaces the one in force, as a plan of its own: the same split, priced on the new traces."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from planner.check import space_of, windows_of
from planner.cost.prepare import from_plan
from planner.plan.decision import cuts_of, split_of
from planner.plan.placement import Placement
from planner.plan.plan import Plan
from planner.solve.request import trace_records
from planner.solve.solution import Options
from planner.solve.solver import GivenPlacement, booked_placement
from planner.solve.watch import Watch
from planner.solve.workers import Workers


def plan_after(
    plan: Plan, path: Path, traces: Sequence[Path], placement: Placement, output: Path, watch: Watch
) -> Plan:
    """The plan with another placement, judged on other traces.

    Args:
        plan: the plan in force.
        path: its file.
        traces: what the new placement was made from.
        placement: the new placement.
        output: where the new plan will lie.
        watch: who looks on.
    """
    prepared = from_plan(plan, path, traces, others=True)
    instance, inputs = prepared.instance, plan.inputs
    update = {
        "traces": trace_records(traces, prepared.hashes, output),
        "traced_layer_ids": instance.traced_layer_ids,
        "windows": windows_of(instance),
    }
    given = GivenPlacement(split_of(plan), cuts_of(plan), tuple(stage.gpus for stage in plan.stages), placement)
    with Workers() as workers:
        return booked_placement(
            instance,
            space_of(plan),
            Options.of(inputs.search),
            inputs.model_copy(update=update),
            given,
            workers,
            watch,
        )
