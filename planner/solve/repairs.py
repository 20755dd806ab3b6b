"""Changes that would help where nothing fits; each one offered was tried: with it some split breaks no rule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

from planner.cost.instance import Instance
from planner.inputs.deployment import load_kernel
from planner.inputs.gpu import Gpu
from planner.inputs.kernels import KernelLimits
from planner.inputs.precision import WEIGHTS, Precision
from planner.inputs.sourced import Sourced
from planner.inputs.topology import resolve
from planner.inputs.workload import Workload
from planner.rules.grid import SearchSpace
from planner.solve.candidates import Candidate, feasible_split
from planner.solve.watch import Watch

_MOST_NODES = 16


@dataclass(frozen=True)
class _Case:
    """What does not fit."""

    instance: Instance
    space: SearchSpace
    candidates: list[Candidate]
    check_time: Callable[[], None]

    def fits(self, changed: Instance) -> bool:
        """Whether some split breaks no rule with another instance."""
        return feasible_split(changed, self.space, self.check_time) is not None

    def fits_in(self, space: SearchSpace) -> bool:
        """Whether some of other splits breaks no rule."""
        return feasible_split(self.instance, space, self.check_time) is not None


def repairs(
    instance: Instance,
    space: SearchSpace,
    candidates: list[Candidate],
    watch: Watch,
    check_time: Callable[[], None] = lambda: None,
) -> Iterator[str]:
    """Changes of one thing each with which some split breaks no rule; every one was tried.

    Args:
        instance: model, machine and work.
        space: which splits were looked at.
        candidates: all of them, with what they break.
        watch: who looks on.
        check_time: called often; may raise to end the work.
    """
    case = _Case(instance, space, candidates, check_time)
    kinds = (_other_splits, _more_nodes, _larger_gpus, _formats, _engine_settings, _less_work)
    watch.begin("looking for repairs", len(kinds))
    for kind in kinds:
        yield from kind(case)
        watch.advance()


def _other_splits(case: _Case) -> Iterator[str]:
    space = case.space
    if space.pins and case.fits_in(replace(space, pins={})):
        pins = ", ".join(f"{name}={value}" for name, value in space.pins.items())
        yield f"without {pins}"
    if space.redundant_experts and case.fits_in(replace(space, redundant_experts=0)):
        yield "no redundant experts"


def _more_nodes(case: _Case) -> Iterator[str]:
    """The least number of nodes that fits, up to a few times as many."""
    now = case.instance.topology.file.num_nodes
    for nodes in range(now + 1, min(now * 4, now + _MOST_NODES) + 1):
        changed = _with_nodes(case.instance, nodes)
        if changed is case.instance:
            return
        if case.fits(changed):
            yield f"{nodes} nodes ({changed.topology.num_gpus} GPUs)"
            return


def _with_nodes(instance: Instance, nodes: int) -> Instance:
    file = instance.topology.file
    if file.groups or (len(file.links) == 1 and file.nodes == 1):
        return instance  # it is not known which nodes to add, or by what they would be linked
    return replace(instance, topology=resolve(file.model_copy(update={"nodes": nodes})), windows=None)


def _larger_gpus(case: _Case) -> Iterator[str]:
    """The least memory in whole GiB of every GPU with which a split fits that breaks no other rule."""
    instance = case.instance
    file, kinds = instance.topology.file, instance.topology.kinds
    over = [-c.free_bytes for c in case.candidates if c.held and all("memory" in reason.rule for reason in c.reasons)]
    if len(kinds) > 1 or not isinstance(file.gpu, Gpu) or not over:
        return
    share = Fraction(str(instance.constants.engine_memory.share.value))
    gib = math.ceil((kinds[0].memory.value + min(over) / share) / (1 << 30))
    memory = Sourced[int](value=gib << 30)
    larger = file.model_copy(update={"gpu": file.gpu.model_copy(update={"memory": memory})})
    if case.fits(replace(instance, topology=resolve(larger, instance.topology.num_gpus))):
        yield f"GPUs of {gib} GiB"


def _formats(case: _Case) -> Iterator[str]:
    precision = case.instance.constants.precision
    if WEIGHTS[precision.experts].bits > 8.5:
        smaller = precision.model_copy(update={"experts": "fp8", "dense": "fp8"})
        if _fits_with(case, smaller):
            yield "precision: {weights: fp8}"
    if precision.kv_cache != "fp8" and _fits_with(case, precision.model_copy(update={"kv_cache": "fp8"})):
        yield "precision: {kv_cache: fp8}"


def _fits_with(case: _Case, precision: Precision) -> bool:
    constants = case.instance.constants.model_copy(update={"precision": precision})
    return case.fits(replace(case.instance, constants=constants))


def _engine_settings(case: _Case) -> Iterator[str]:
    """The least share of memory in whole percent that fits, and a library without limits."""
    constants = case.instance.constants
    memory, kernel = constants.engine_memory, constants.kernel

    def fits(percent: int) -> bool:
        share = memory.share.model_copy(update={"value": percent / 100})
        given = constants.model_copy(update={"engine_memory": memory.model_copy(update={"share": share})})
        return case.fits(replace(case.instance, constants=given))

    least = next((p for p in range(int(memory.share.value * 100) + 1, 101) if fits(p)), None)
    if least is not None:
        yield f"memory_share: {least}%"
    if kernel.limits != KernelLimits():
        generic = constants.communication.model_copy(update={"kernel": "all-to-all"})
        given = constants.model_copy(update={"kernel": load_kernel("all-to-all"), "communication": generic})
        if case.fits(replace(case.instance, constants=given)):
            yield "communication: {kernel: all-to-all}"


def _less_work(case: _Case) -> Iterator[str]:
    for name, text in (("context_length", "context_length {:,}"), ("tokens_per_gpu", "tokens_per_gpu {:,}")):
        value = _largest(case, name)
        if value is not None:
            yield text.format(value)


def _largest(case: _Case, name: str) -> int | None:
    """The largest smaller value of a workload figure that fits, to two digits; None if none does."""

    def fits(value: int) -> bool:
        work: Workload = case.instance.workload.model_copy(update={name: value})
        return case.fits(replace(case.instance, workload=work, windows=None))

    upper = getattr(case.instance.workload, name)
    if upper <= 1 or not fits(1):
        return None
    lower = 1
    while upper - lower > max(1, lower // 64):
        middle = (lower + upper) // 2
        lower, upper = (middle, upper) if fits(middle) else (lower, middle)
    return int(lower)
