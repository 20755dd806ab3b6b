"""Whether a format can say what a plan needs; everything that it cannot, by name."""

from __future__ import annotations

from collections.abc import Iterator

from planner.errors import InputError, Place, Problem, UsageError
from planner.export.layout import Layout
from planner.export.table import Format, Need
from planner.inputs.engines import load_engine
from planner.plan.placement import linear, slots_of_ranks
from planner.rules import engine


def needs(layout: Layout) -> dict[Need, tuple[str, str]]:
    """What the plan asks of a format beyond one list of experts for equal ranks: the key, and how."""
    split, placement = layout.split, layout.placement
    found: dict[Need, tuple[str, str]] = {}
    if layout.redundant_experts:
        count = layout.redundant_experts
        found["copies"] = "placement.redundant_experts", f"{count} redundant experts per layer"
    empty = int((placement.expert_LP < 0).sum())
    if empty:
        found["uneven ranks"] = "placement.physical_to_logical", "ranks hold unequal numbers of experts"
    if (placement.expert_LP != placement.expert_LP[0]).any():
        found["layers that differ"] = "placement.physical_to_logical", "layers are placed differently"
    if split.pp > 1:
        found["several stages"] = "split.pp", f"{split.pp} pipeline stages"
    if split.ep == 1:
        found["no expert parallelism"] = "split.ep", "ep is 1: every rank holds all experts"
    if split.dp == 1:
        found["attention without data parallelism"] = "split.dp", "attention is not data parallel (dp 1)"
    if not layout.for_checkpoint and not is_linear(layout):
        found["any placement"] = "placement.physical_to_logical", "experts are not laid out in order"
    return found


def is_linear(layout: Layout) -> bool:
    """Whether every layer is laid out as engines do unasked."""
    placement, experts = layout.placement, layout.num_experts
    slots_R = slots_of_ranks(experts + layout.redundant_experts, layout.split.ep)
    if slots_R.max() > min(placement.slots_per_rank, experts):
        return False
    return bool((placement.expert_LP == linear(experts, slots_R, placement.slots_per_rank)).all())


def served_linearly(layout: Layout) -> bool:
    """Whether engines lay experts out as the plan says without being told."""
    return layout.split.ep == 1 or (not layout.redundant_experts and (layout.for_checkpoint or is_linear(layout)))


def check_fits(layout: Layout, name: str, kind: Format, file: str) -> None:
    """Raise `InputError` with everything that a format cannot say of a plan."""
    problems = list(_problems(layout, name, kind, file))
    if problems:
        raise InputError(problems)


def _problems(layout: Layout, name: str, kind: Format, file: str) -> Iterator[Problem]:
    for need, (key, how) in needs(layout).items():
        if need in kind.cannot:
            yield Problem(f"{how}, which {name} cannot say", Place(file, key=key), kind.cannot[need])
    if kind.family and layout.model.family != kind.family:
        message = f"the model is {layout.model.family}, but {name} is read for {kind.family} alone"
        yield Problem(message, Place(file, key="inputs.model.family"), "vllm-pr49572 takes any model")
    if kind.engine is not None:
        yield from grid_problems(layout, kind.engine, file)


def grid_problems(layout: Layout, engine_name: str, file: str) -> Iterator[Problem]:
    """The rules of an engine that the plan's split breaks, whatever engine it was solved for."""
    rules = load_engine(engine_name).rules
    for verdict in engine.verdicts(layout.split, layout.redundant_experts, rules, engine_name):
        if not verdict.holds:
            hint = f"solve with engine: {engine_name} ({verdict.source})"
            yield Problem(f"{engine_name} cannot run this split: {verdict.detail}", Place(file, key="split"), hint)


def check_version(name: str, kind: Format, version: str | None) -> str:
    """The engine version written for; raises `UsageError` for one whose reader nobody looked at."""
    known = ", ".join(kind.versions)
    if version is None:
        return kind.versions[0] if kind.versions else ""
    if not kind.versions:
        raise UsageError(f"--engine-version: no engine reads {name}", hint="leave it out")
    if version in kind.versions:
        return version
    if version in kind.gone:
        raise UsageError(f"--engine-version {version}: {kind.gone[version]}", hint=f"{name} is known for: {known}")
    message = f"--engine-version {version}: nobody has compared {name} with what that version reads"
    raise UsageError(message, hint=f"known: {known}; formats change without notice, so no guess is made")
