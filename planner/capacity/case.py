"""What a capacity question starts from: a deployment, or a plan as the deployment that would give it again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from planner.cost.prepare import constants_of, load, traces_of
from planner.errors import InputError, Place, Problem
from planner.files import read_text
from planner.inputs.deployment import (
    CommunicationSection,
    Deployment,
    DeploymentFile,
    Found,
    Overrides,
    PrecisionSection,
    SolveSection,
    SplitPins,
    assembled,
)
from planner.inputs.workload import Communication
from planner.plan.plan import Plan, PlanInputs
from planner.plan.plan_file import SCHEMA, read_plan

_HEAD: Final = 4096
_LIMIT_BYTES: Final = 256 << 20


@dataclass(frozen=True)
class Case:
    """A deployment, and the plan that was given for it, if one was."""

    deployment: Deployment
    plan: Plan | None
    path: Path
    """Of the file that was given."""


def case_of(path: Path, traces: Sequence[Path] = ()) -> Case:
    """Read a plan or a deployment, whichever the file is.

    Args:
        path: the file.
        traces: of a plan: where its traces are now; of a deployment: instead of its own.

    Raises:
        InputError: it is neither, or was made with other constants than this version has.
    """
    head = read_text(path, limit_bytes=_LIMIT_BYTES)[:_HEAD]
    if f'"{SCHEMA}"' in head:
        plan = read_plan(path)
        found, _ = traces_of(plan, path, traces or None)
        return Case(deployment_of(plan.inputs, path, found), plan, path)
    return Case(load(path, Overrides(traces=tuple(map(str, traces)))), None, path)


def deployment_of(inputs: PlanInputs, path: Path, traces: Sequence[Path] = ()) -> Deployment:
    """The deployment that gives what a plan was made from, with as little written out as does so.

    What equals the default of engine, model and phase is left out, so that an edit moves what depends on it as it
    would in a file that never said it.

    Args:
        inputs: of the plan.
        path: its file.
        traces: where its traces are.

    Raises:
        InputError: it was made with other constants than this version has.
    """
    machine = inputs.machine
    found = Found(inputs.model, machine, tuple(traces), (path, *traces))
    plain = _file(inputs, PrecisionSection(), CommunicationSection(), None)
    left_out = assembled(path, plain, found)
    share = inputs.cost.engine_memory.share.value
    precision = _precision(inputs, left_out)
    memory_share = None if left_out.engine_memory.share.value == share else share
    communication = _communication(inputs.cost.communication, left_out.communication)
    made = assembled(path, _file(inputs, precision, communication, memory_share), found)
    if made.copy_rule != inputs.cost.copy_rule:  # whose default is the engine's, or the kernel's
        communication = communication.model_copy(update={"copies": inputs.cost.copy_rule})
        made = assembled(path, _file(inputs, precision, communication, memory_share), found)
    if constants_of(made) != inputs.cost or made.engine.rules != inputs.rules:
        message = "made with other constants than this version of ep-plan has"
        raise InputError(Problem(message, Place(str(path)), "solve its deployment again, or give that"))
    return made


def _file(
    inputs: PlanInputs, precision: PrecisionSection, communication: CommunicationSection, share: float | None
) -> DeploymentFile:
    search = inputs.search
    made = DeploymentFile(
        model=inputs.name,
        topology=inputs.topology.counts(),
        traces=tuple(trace.path for trace in inputs.traces),
        engine=inputs.engine,
        precision=precision,
        communication=communication,
        workload=inputs.workload,
    )
    solve = SolveSection().model_copy(
        update={
            "redundant_experts": search.redundant_experts,
            "split": SplitPins(**search.pins),
            "keep_groups": inputs.keep_groups,
            "target": inputs.target,
            "gap": search.gap,
            "seed": search.seed,
            "risk": search.risk,
        }
    )
    return made.model_copy(update={"memory_share": share, "solve": solve})


def _precision(inputs: PlanInputs, left_out: Deployment) -> PrecisionSection:
    wanted, plain = inputs.cost.precision, left_out.precision
    weights: dict[str, str] = {}
    if wanted.experts != plain.experts and wanted.experts == wanted.dense:
        weights["weights"] = wanted.experts
    else:
        weights |= {name: getattr(wanted, name) for name in ("experts", "dense") if _differs(wanted, plain, name)}
    section = PrecisionSection.model_validate(weights)
    found = Found(left_out.model, left_out.topology, (), ())
    again = assembled(left_out.path, left_out.file.model_copy(update={"precision": section}), found).precision
    rest = {n: getattr(wanted, n) for n in ("kv_cache", "dispatch", "combine") if _differs(wanted, again, n)}
    return PrecisionSection.model_validate(weights | rest)


def _differs(wanted: object, plain: object, name: str) -> bool:
    return bool(getattr(wanted, name) != getattr(plain, name))


def _communication(wanted: Communication, plain: Communication) -> CommunicationSection:
    names = [name for name in ("kernel", "dedup", "overlap") if getattr(wanted, name) != getattr(plain, name)]
    if "kernel" in names:  # the default of dedup is the kernel's
        names = sorted({*names, "dedup"})
    return CommunicationSection.model_validate({name: getattr(wanted, name) for name in names})
