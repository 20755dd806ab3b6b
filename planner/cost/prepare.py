"""From files to an `Instance`: a deployment with its traces, or a plan with what it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from planner.cost.instance import Instance
from planner.errors import InputError, Place, Problem, ProblemLog, UsageError
from planner.files import sha256_of, why_no_file
from planner.inputs.constants import Constants
from planner.inputs.deployment import Deployment
from planner.inputs.model import Model
from planner.inputs.topology import resolve
from planner.inputs.workload import Workload
from planner.plan.plan import Plan
from planner.trace.choices import choice_problems
from planner.trace.consistency import against_model, not_routed, suspicions
from planner.trace.native import read_trace
from planner.trace.trace import TokenTrace
from planner.trace.windows import Windows, cut


@dataclass(frozen=True)
class Prepared:
    """An instance, the hashes of its traces, and what should be said about them."""

    instance: Instance
    hashes: tuple[str, ...]
    warnings: tuple[str, ...]


def from_deployment(deployment: Deployment) -> Prepared:
    """Read the traces of a deployment and fix all constants."""
    engine = deployment.engine
    constants = Constants(
        precision=deployment.precision,
        communication=deployment.communication,
        kernel=deployment.kernel,
        collectives=deployment.collectives,
        small_collectives=deployment.small_collectives,
        efficiency=deployment.default_efficiency,
        engine_memory=deployment.engine_memory,
        copy_rule=engine.copy_rule,
    )
    step_tokens = deployment.workload.tokens_per_gpu * deployment.topology.num_gpus
    windows, warnings = read_windows(deployment.trace_paths, deployment.model, deployment.workload, step_tokens)
    hashes = tuple(sha256_of(path) for path in deployment.trace_paths)
    instance = Instance(deployment.model, deployment.topology, deployment.workload, constants, windows)
    return Prepared(instance, hashes, (*deployment.warnings, *warnings))


def read_windows(
    paths: Sequence[Path], model: Model, workload: Workload, step_tokens: int
) -> tuple[Windows | None, tuple[str, ...]]:
    """Read traces, check them against the model, and cut them into windows."""
    if not paths:
        return None, ()
    log, traces = ProblemLog(), []
    warnings: list[str] = []
    for path in paths:
        try:
            read = read_trace(path)
        except InputError as error:
            log.extend(error.problems)
            continue
        traces.append(read.trace)
        warnings += (*read.warnings, *suspicions(read.trace))
        log.extend(against_model(read.trace, model))
    if log.problems:  # nothing will be cut, and only cutting looks at every choice
        for trace in traces:
            if isinstance(trace, TokenTrace):
                log.extend(choice_problems(trace))
    log.raise_if_any()
    windows = cut(traces, workload.phase, step_tokens)
    log.extend(not_routed(windows, traces))
    log.raise_if_any()
    return windows, tuple(warnings)


def from_plan(plan: Plan, path: Path, traces: Sequence[Path] | None = None) -> Prepared:
    """Rebuild the instance of a plan.

    Args:
        plan: the plan.
        path: its file; traces are named relative to it.
        traces: read these instead of the plan's own (their hash is not compared).

    Raises:
        InputError: a trace has changed since the plan was made, or does not fit.
        UsageError: a trace is not there.
    """
    inputs = plan.inputs
    topology = resolve(inputs.topology, inputs.gpus)
    own = traces is None
    paths = [path.parent / record.path for record in inputs.traces] if traces is None else list(traces)
    hashes = _hashes(plan, paths, own)
    step_tokens = inputs.workload.tokens_per_gpu * topology.num_gpus
    windows, warnings = read_windows(paths, inputs.model, inputs.workload, step_tokens)
    return Prepared(Instance(inputs.model, topology, inputs.workload, inputs.cost, windows), hashes, warnings)


def _hashes(plan: Plan, paths: Sequence[Path], own: bool) -> tuple[str, ...]:
    for path in paths:
        if not path.is_file():
            option = "" if own else "--trace: "
            raise UsageError(f"{option}{path}: {why_no_file(path)}", hint="give the trace with --trace" if own else "")
    hashes = tuple(sha256_of(path) for path in paths)
    if own:
        changed = [
            path
            for path, found, record in zip(paths, hashes, plan.inputs.traces, strict=True)
            if found != record.sha256
        ]
        if changed:
            hint = "solve again, or give the trace that the plan was made from with --trace"
            raise InputError(
                Problem("not the trace that the plan was made from", Place(str(path)), hint) for path in changed
            )
    return hashes
