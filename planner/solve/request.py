"""From a deployment to the solver: what it asks for, and what the plan will say about its inputs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from planner.check import windows_of
from planner.cost.prepare import Prepared
from planner.inputs.deployment import Deployment
from planner.plan.plan import PlanInputs, SearchRecord, TraceRecord
from planner.rules import Limits
from planner.rules.grid import SearchSpace
from planner.solve.solution import Options
from planner.solve.solver import Solved, solve
from planner.solve.watch import Watch
from planner.solve.workers import Workers


def solve_deployment(
    deployment: Deployment, prepared: Prepared, output: Path, workers: Workers, watch: Watch
) -> Solved:
    """Solve what a deployment asks for; `output` is where the plan will lie."""
    inputs = plan_inputs(deployment, prepared, output)
    return solve(prepared.instance, search_space(deployment), options_of(deployment), inputs, workers, watch)


def search_space(deployment: Deployment) -> SearchSpace:
    """Splits to look at."""
    section = deployment.file.solve
    redundant = section.redundant_experts
    return SearchSpace(
        limits=Limits(
            rules=deployment.engine.rules,
            engine_name=deployment.engine_name or "engine",
            keep_groups=section.keep_groups == "node",
            for_checkpoint=section.target == "checkpoint",
        ),
        pins=section.split.pinned(),
        redundant_experts=None if redundant == "auto" else redundant,
    )


def options_of(deployment: Deployment) -> Options:
    """What to minimise, and when to stop."""
    section = deployment.file.solve
    return Options(gap=section.gap, seed=section.seed, risk=section.risk)


def plan_inputs(deployment: Deployment, prepared: Prepared, output: Path) -> PlanInputs:
    """The resolved inputs as the plan keeps them; traces by path relative to the plan."""
    instance = prepared.instance
    section = deployment.file.solve
    return PlanInputs(
        name=instance.model.name,
        model=instance.model,
        topology=instance.topology.file,
        gpus=instance.topology.num_gpus,
        workload=instance.workload,
        cost=instance.constants,
        engine=deployment.engine_name,
        engine_version=deployment.engine.version if deployment.engine_name else None,
        rules=deployment.engine.rules,
        keep_groups=section.keep_groups,
        target=section.target,
        search=SearchRecord(
            pins=section.split.pinned(),
            redundant_experts=section.redundant_experts,
            gap=section.gap,
            seed=section.seed,
            risk=section.risk,
        ),
        traces=trace_records(deployment.trace_paths, prepared.hashes, output),
        traced_layer_ids=instance.traced_layer_ids if instance.windows is not None else (),
        windows=windows_of(instance),
    )


def trace_records(traces: Sequence[Path], hashes: Sequence[str], output: Path) -> tuple[TraceRecord, ...]:
    """Traces as a plan at `output` names them: by path relative to it, and hash."""
    folder = output.resolve().parent
    return tuple(
        TraceRecord(path=Path(os.path.relpath(path.resolve(), folder)).as_posix(), sha256=digest)
        for path, digest in zip(traces, hashes, strict=True)
    )
