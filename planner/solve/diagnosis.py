"""Saying no: which rules every split breaks, by how much, and what would help.

The grid is small, so every candidate is listed with its reason instead of a minimal conflict, the
nearest to fitting first. Each repair offered was tried: with it some split breaks no rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from typing import Any

from planner.cost.instance import Instance
from planner.errors import InfeasibleError
from planner.inputs.deployment import load_kernel
from planner.inputs.gpu import Gpu
from planner.inputs.kernels import KernelLimits
from planner.inputs.precision import WEIGHTS, Precision
from planner.inputs.sourced import Sourced
from planner.inputs.topology import resolve
from planner.inputs.units import format_bytes
from planner.inputs.workload import Workload
from planner.rules import Verdict
from planner.rules.grid import SearchSpace, all_splits
from planner.solve.candidates import Candidate, feasible_split

_SHOWN = 8
_MOST_NODES = 16


@dataclass(frozen=True)
class Short:
    """Why no split can run, in a line."""

    message: str
    nearest: str
    """The first rule that the split nearest to fitting breaks; empty if there is no split at all."""


def in_short(instance: Instance, space: SearchSpace, candidates: list[Candidate]) -> Short:
    """Why no split can run, for those who look at many machines: no table, and no repairs are tried."""
    if not candidates:
        return Short(_none_message(instance, space), "")
    nearest = sorted(candidates, key=_distance)
    return Short(_message(instance, _rows(nearest)), nearest[0].reasons[0].detail)


def infeasible(instance: Instance, space: SearchSpace, candidates: list[Candidate]) -> InfeasibleError:
    """The error that explains why no split can run."""
    if not candidates:
        return _no_split(instance, space)
    nearest = sorted(candidates, key=_distance)
    rows = _rows(nearest)
    lines = [*_table(rows), *_arithmetic(instance, nearest[0])]
    lines += [f"try: {repair}" for repair in repairs(instance, space, candidates)]
    error = InfeasibleError(_message(instance, rows), hint="\n".join(lines))
    error.data = {"candidates": [_as_data(candidate) for candidate in nearest]}
    return error


def _message(instance: Instance, rows: dict[str, tuple[Verdict, ...]]) -> str:
    gpus = instance.topology.num_gpus
    return f"no split of {gpus} GPU{'s' if gpus > 1 else ''} fits ({len(rows)} tried)"


def _none_message(instance: Instance, space: SearchSpace) -> str:
    pins = ", ".join(f"{name}={value}" for name, value in space.pins.items())
    return f"no split of {instance.topology.num_gpus} GPUs has {pins}"


def _as_data(candidate: Candidate) -> dict[str, Any]:
    """A rejected split with the table of the rules that it breaks."""
    return {
        "split": asdict(candidate.split),
        "redundant_experts": candidate.redundant_experts,
        "rules": [asdict(reason) for reason in candidate.reasons],
    }


def _no_split(instance: Instance, space: SearchSpace) -> InfeasibleError:
    hint = "per stage tp x dp = etp x ep x edp = GPUs / pp, so every degree must divide it"
    for name, value in space.pins.items():
        others = {other: degree for other, degree in space.pins.items() if other != name}
        values = sorted({getattr(split, name) for split in all_splits(instance, others)})
        if values:
            hint += f"\ntry: instead of {name}={value}, one of {', '.join(map(str, values[:_SHOWN]))}"
    if "try" not in hint:
        hint += f"\ntry: without {' or '.join(space.pins)}"
    return InfeasibleError(_none_message(instance, space), hint=hint)


def _distance(candidate: Candidate) -> tuple[int, int, tuple[int, ...]]:
    """Fewest rules broken first, then least memory over."""
    return len(candidate.reasons), 0 if candidate.held is None else max(0, -candidate.free_bytes), candidate.order


def _rows(nearest: list[Candidate]) -> dict[str, tuple[Verdict, ...]]:
    """What every split breaks at its best: numbers of micro-batches and of copies are not told apart."""
    rows: dict[str, tuple[Verdict, ...]] = {}
    for candidate in nearest:
        s = candidate.split
        rows.setdefault(f"tp={s.tp} dp={s.dp} ep={s.ep} etp={s.etp} pp={s.pp}", candidate.reasons)
    return rows


def _table(broken: dict[str, tuple[Verdict, ...]]) -> Iterator[str]:
    """A row for each rule that a split breaks: value, what it must fit, verdict."""
    rows = [("split", "rule", "value", "must be", "verdict")]
    for name, reasons in list(broken.items())[:_SHOWN]:
        for number, one in enumerate(reasons):
            rows.append(("" if number else name, one.rule, one.value, one.limit, f"✗ {one.detail}"))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        yield "  ".join([*(f"{text:<{width}}" for text, width in zip(row, widths, strict=False)), row[4]])
    if len(broken) > _SHOWN:
        yield f"and {len(broken) - _SHOWN} more"


def _arithmetic(instance: Instance, candidate: Candidate) -> Iterator[str]:
    """The memory lines of the fullest GPU of the split that comes nearest."""
    held = candidate.held
    if held is None or not any("memory" in reason.rule for reason in candidate.reasons):
        return
    _, fullest, capacity = held.excess
    layers, memory = held.cuts[fullest], held.memories[fullest]
    slots = dict(held.fullest_ranks(fullest))[capacity]
    filled = slots * len(set(instance.model.moe_layer_ids).intersection(layers))
    where = f", stage {fullest} (layers {layers.start} to {layers.stop - 1})" if len(held.cuts) > 1 else ""
    yield f"memory of GPU {held.fullest_gpu(fullest, capacity)}{where}, the fullest, with {candidate.split}:"
    for line in sorted(memory.lines(layers, filled), key=lambda line: -line.num_bytes):
        yield f"  {line.name:<44} {format_bytes(line.num_bytes):>10}  {line.basis}"
    yield f"  {'needs':<44} {format_bytes(memory.total(layers, filled)):>10}, has {format_bytes(capacity)}"


# --- repairs ----------------------------------------------------------------------------------------


def repairs(instance: Instance, space: SearchSpace, candidates: list[Candidate]) -> Iterator[str]:
    """Changes of one thing each with which some split breaks no rule; every one was tried."""
    if space.pins and feasible_split(instance, replace(space, pins={})):
        pins = ", ".join(f"{name}={value}" for name, value in space.pins.items())
        yield f"without {pins}"
    if space.redundant_experts and feasible_split(instance, replace(space, redundant_experts=0)):
        yield "no redundant experts"
    nodes = _fewest(lambda count: _with_nodes(instance, count), instance, space)
    if nodes is not None:
        yield f"{nodes} nodes ({_with_nodes(instance, nodes).topology.num_gpus} GPUs)"
    gib = _least_memory_gib(instance, space, candidates)
    if gib is not None:
        yield f"GPUs of {gib} GiB"
    yield from _formats(instance, space)
    yield from _engine_settings(instance, space)
    for name, text in (("context_length", "context_length {:,}"), ("tokens_per_gpu", "tokens_per_gpu {:,}")):
        value = _largest(instance, space, name)
        if value is not None:
            yield text.format(value)


def _with_nodes(instance: Instance, nodes: int) -> Instance:
    file = instance.topology.file
    if file.groups or (len(file.links) == 1 and file.nodes == 1):
        return instance  # it is not known which nodes to add, or by what they would be linked
    return replace(instance, topology=resolve(file.model_copy(update={"nodes": nodes})), windows=None)


def _fewest(change: Callable[[int], Instance], instance: Instance, space: SearchSpace) -> int | None:
    """The least number of nodes that fits, up to a few times as many."""
    now = instance.topology.file.num_nodes
    for nodes in range(now + 1, min(now * 4, now + _MOST_NODES) + 1):
        changed = change(nodes)
        if changed is instance:
            return None
        if feasible_split(changed, space):
            return nodes
    return None


def _least_memory_gib(instance: Instance, space: SearchSpace, candidates: list[Candidate]) -> int | None:
    """The least memory in whole GiB of every GPU with which a split fits that breaks no other rule."""
    file, kinds = instance.topology.file, instance.topology.kinds
    over = [-c.free_bytes for c in candidates if c.held and all("memory" in reason.rule for reason in c.reasons)]
    if len(kinds) > 1 or not isinstance(file.gpu, Gpu) or not over:
        return None
    share = Fraction(str(instance.constants.engine_memory.share.value))
    gib = math.ceil((kinds[0].memory.value + min(over) / share) / (1 << 30))
    memory = Sourced[int](value=gib << 30)
    larger = file.model_copy(update={"gpu": file.gpu.model_copy(update={"memory": memory})})
    changed = replace(instance, topology=resolve(larger, instance.topology.num_gpus))
    return gib if feasible_split(changed, space) else None


def _formats(instance: Instance, space: SearchSpace) -> Iterator[str]:
    precision = instance.constants.precision
    if WEIGHTS[precision.experts].bits > 8.5:
        smaller = precision.model_copy(update={"experts": "fp8", "dense": "fp8"})
        if _fits_with(instance, space, smaller):
            yield "precision: {weights: fp8}"
    if precision.kv_cache != "fp8" and _fits_with(instance, space, precision.model_copy(update={"kv_cache": "fp8"})):
        yield "precision: {kv_cache: fp8}"


def _engine_settings(instance: Instance, space: SearchSpace) -> Iterator[str]:
    """The least share of memory in whole percent that fits, and a library without limits."""
    constants = instance.constants
    memory, kernel = constants.engine_memory, constants.kernel

    def fits(percent: int) -> bool:
        share = memory.share.model_copy(update={"value": percent / 100})
        given = constants.model_copy(update={"engine_memory": memory.model_copy(update={"share": share})})
        return feasible_split(replace(instance, constants=given), space) is not None

    least = next((p for p in range(int(memory.share.value * 100) + 1, 101) if fits(p)), None)
    if least is not None:
        yield f"memory_share: {least}%"
    if kernel.limits != KernelLimits():
        generic = constants.communication.model_copy(update={"kernel": "all-to-all"})
        given = constants.model_copy(update={"kernel": load_kernel("all-to-all"), "communication": generic})
        if feasible_split(replace(instance, constants=given), space):
            yield "communication: {kernel: all-to-all}"


def _fits_with(instance: Instance, space: SearchSpace, precision: Precision) -> bool:
    constants = instance.constants.model_copy(update={"precision": precision})
    return feasible_split(replace(instance, constants=constants), space) is not None


def _largest(instance: Instance, space: SearchSpace, name: str) -> int | None:
    """The largest smaller value of a workload figure that fits, to two digits; None if none does."""

    def fits(value: int) -> bool:
        work: Workload = instance.workload.model_copy(update={name: value})
        return feasible_split(replace(instance, workload=work, windows=None), space) is not None

    upper = getattr(instance.workload, name)
    if upper <= 1 or not fits(1):
        return None
    lower = 1
    while upper - lower > max(1, lower // 64):
        middle = (lower + upper) // 2
        lower, upper = (middle, upper) if fits(middle) else (lower, middle)
    return int(lower)
