"""From files to an `Instance`: a deployment with its traces, or a plan with what it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from planner.cost.instance import Instance
from planner.errors import InputError, Place, Problem, ProblemLog, UsageError
from planner.files import sha256_of, why_no_file
from planner.inputs.constants import Constants
from planner.inputs.deployment import Deployment, Overrides, load_deployment
from planner.inputs.model import Model
from planner.inputs.named_files import TRACE_OPTION, named_twice
from planner.inputs.workload import Workload
from planner.plan.plan import Plan
from planner.trace.choices import choice_problems
from planner.trace.consistency import against_model, not_routed, suspicions
from planner.trace.native import read_trace
from planner.trace.trace import TokenTrace, Trace
from planner.trace.windows import Windows, cut


@dataclass(frozen=True)
class Prepared:
    """An instance, the hashes of its traces, and what should be said about them."""

    instance: Instance
    hashes: tuple[str, ...]
    warnings: tuple[str, ...]


def load(path: Path, overrides: Overrides | None = None) -> Deployment:
    """Read a deployment; if anything is wrong with it, its traces are looked at as well.

    Raises:
        InputError, UsageError: with the problems of all files.
    """

    def look(paths: Sequence[Path], model: Model | None) -> list[Problem]:
        traces, _, problems = _read_traces(paths, model)
        return problems + _choices(traces)

    return load_deployment(path, overrides, look)


def constants_of(deployment: Deployment) -> Constants:
    """What the cost model uses besides model, machine and work."""
    return Constants(
        precision=deployment.precision,
        communication=deployment.communication,
        kernel=deployment.kernel,
        collectives=deployment.collectives,
        small_collectives=deployment.small_collectives,
        efficiency=deployment.default_efficiency,
        own_kernels=deployment.engine_name if deployment.engine.own_kernels_only else None,
        exchange_needs_dp=deployment.engine.rules.exchange_needs_dp,
        engine_memory=deployment.engine_memory,
        copy_rule=deployment.copy_rule,
    )


def from_deployment(deployment: Deployment) -> Prepared:
    """Read the traces of a deployment and fix all constants."""
    constants = constants_of(deployment)
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
    traces, warnings, problems = _read_traces(paths, model)
    if problems:  # nothing will be cut, and only cutting looks at every choice
        raise InputError(problems + _choices(traces))
    windows = cut(traces, workload.phase, step_tokens)
    problems += not_routed(windows, traces)
    if problems:
        raise InputError(problems)
    return windows, tuple(warnings)


def _read_traces(paths: Sequence[Path], model: Model | None) -> tuple[list[Trace], list[str], list[Problem]]:
    """The traces that can be read, warnings, and what is wrong with the others or does not go with the model."""
    traces: list[Trace] = []
    warnings: list[str] = []
    problems: list[Problem] = []
    for path in paths:
        try:
            read = read_trace(path)
        except InputError as error:
            problems += error.problems
            continue
        traces.append(read.trace)
        warnings += (*read.warnings, *suspicions(read.trace))
        problems += against_model(read.trace, model) if model else ()
    return traces, warnings, problems


def _choices(traces: Sequence[Trace]) -> list[Problem]:
    return [problem for trace in traces if isinstance(trace, TokenTrace) for problem in choice_problems(trace)]


def from_plan(plan: Plan, path: Path, traces: Sequence[Path] | None = None, *, others: bool = False) -> Prepared:
    """Rebuild the instance of a plan.

    Args:
        plan: the plan.
        path: its file; traces are named relative to it.
        traces: where the plan's own traces are now, or the others to judge it on.
        others: whether they may be others than those it was made from.

    Raises:
        InputError: a trace is not there any more, has changed since the plan was made, or does not fit.
        UsageError: a trace of the command line is not there, or is named twice.
    """
    inputs = plan.inputs
    topology = inputs.machine
    paths, hashes = traces_of(plan, path, traces, others=others)
    step_tokens = inputs.workload.tokens_per_gpu * topology.num_gpus
    windows, warnings = read_windows(paths, inputs.model, inputs.workload, step_tokens)
    return Prepared(Instance(inputs.model, topology, inputs.workload, inputs.cost, windows), hashes, warnings)


def traces_of(
    plan: Plan, path: Path, traces: Sequence[Path] | None = None, *, others: bool = False
) -> tuple[list[Path], tuple[str, ...]]:
    """The traces of a plan and their hashes; arguments and errors as of `from_plan`."""
    paths = _own_paths(plan, path) if traces is None else _existing(traces)
    hashes = tuple(sha256_of(path) for path in paths)
    return (paths, hashes) if others else _as_recorded(plan, paths, hashes)


def _own_paths(plan: Plan, path: Path) -> list[Path]:
    """Where the plan says that its traces are."""
    log, paths = ProblemLog(), [path.parent / record.path for record in plan.inputs.traces]
    for index, own in enumerate(paths):
        if not own.is_file():
            where = Place(str(path), key=f"inputs.traces[{index}]")
            log.add(f"{own}: {why_no_file(own)}", where=where, hint="give the trace with --trace")
    log.raise_if_any()
    return paths


def _existing(paths: Sequence[Path]) -> list[Path]:
    problems = [Problem(f"{path}: {why_no_file(path)}", TRACE_OPTION) for path in paths if not path.is_file()]
    problems += named_twice(paths)
    if problems:
        raise UsageError.of(problems)
    return list(paths)


def _as_recorded(plan: Plan, paths: list[Path], hashes: Sequence[str]) -> tuple[list[Path], tuple[str, ...]]:
    """The traces in the order in which the plan was made from them; refuses all others."""
    recorded = [record.sha256 for record in plan.inputs.traces]
    hint = "solve again, or give the trace that the plan was made from with --trace"
    wrong = [path for path, found in zip(paths, hashes, strict=True) if found not in recorded]
    if wrong:
        raise InputError(Problem("not a trace that the plan was made from", Place(str(path)), hint) for path in wrong)
    if sorted(hashes) != sorted(recorded):
        message = f"the plan was made from {len(recorded)} traces, {len(set(hashes))} of them are given"
        raise InputError(Problem(message, TRACE_OPTION, "give each of them once"))
    by_hash = dict(zip(hashes, paths, strict=True))
    return [by_hash[one] for one in recorded], tuple(recorded)
