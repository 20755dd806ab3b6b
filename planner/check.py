"""The solver-free checker: re-derives every rule and every booked figure of a plan.

It runs inside `solve` before anything is written, and as `ep-plan check`. It shares the cost model
with the solver, because that is the truth both are about, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from planner.baselines import score
from planner.certificate import certificate
from planner.cost.booking import book, memory_G
from planner.cost.instance import Instance
from planner.cost.notes import notes
from planner.cost.step import SplitCost, split_cost
from planner.errors import BadAnswerError
from planner.inputs.units import format_bytes
from planner.plan.decision import Decided, cuts_of, placement_of, slots_of, split_of
from planner.plan.finding import Finding, differences
from planner.plan.placement import Placement, slots_of_ranks, violations
from planner.plan.plan import Plan
from planner.rules import Limits, Shares, broken_rules, torn_group
from planner.rules.cuts import even_layers
from planner.rules.grid import SearchSpace

Ints = NDArray[np.int64]


def check(plan: Plan, instance: Instance) -> list[Finding]:
    """Everything that is wrong with a plan; empty if nothing is.

    Args:
        plan: as read from its file.
        instance: rebuilt from the plan's inputs and the traces that it names.
    """
    findings = structure(plan, instance)
    if findings:
        return findings  # nothing else has a meaning
    findings += _windows(plan, instance)
    space = space_of(plan)
    cost = cost_of(plan, instance)
    findings += broken_by(plan, cost, space.limits)
    findings += _figures(plan, cost)
    findings += certificate(plan, instance, space, cost)
    if plan.notes != (again := notes(instance, plan.solver.stopped_by, plan.solver.gap)):
        findings.append(Finding("notes", f"booked {list(plan.notes)}, re-derived {list(again)}"))
    return findings


def limits_of(plan: Plan) -> Limits:
    """The rules that a plan was made under."""
    return Limits(
        plan.inputs.rules,
        plan.inputs.engine or "engine",
        keep_groups=plan.inputs.keep_groups == "node",
        for_checkpoint=plan.inputs.target == "checkpoint",
    )


def space_of(plan: Plan) -> SearchSpace:
    """The splits that a plan was chosen from."""
    search = plan.inputs.search
    copies = search.redundant_experts
    return SearchSpace(limits_of(plan), search.pins, None if copies == "auto" else copies)


def cost_of(plan: Decided, instance: Instance) -> SplitCost:
    """The instance bound to the split of a plan whose structure is sound."""
    gpus = [stage.gpus for stage in plan.stages]
    return split_cost(instance, split_of(plan), plan.placement.redundant_experts, gpus, slots_of(plan))


def broken_by(plan: Decided, cost: SplitCost, limits: Limits) -> list[Finding]:
    """The rules of engines, libraries, routing groups and memory that a plan of sound structure breaks."""
    shares = Shares(tuple(stage.gpus for stage in plan.stages), slots_of(plan))
    broken = broken_rules(cost.instance, cost.split, plan.placement.redundant_experts, limits, shares)
    return [
        *(Finding(rule.rule, rule.detail) for rule in broken),
        *(_cuts(plan, limits) if limits.rules.even_cuts else ()),
        *(_groups(plan, cost) if limits.keep_groups else ()),
        *(_whole_groups(plan, cost.instance) if limits.for_checkpoint else ()),
        *_memory(plan, cost),
    ]


def structure(plan: Decided, instance: Instance) -> list[Finding]:
    """What is wrong with the ranks, the stages and the slots; without these a plan cannot be priced."""
    return [*_grid(plan, instance), *_layers(plan, instance)] or [*_placement(plan, instance)]


def refuse_broken(plan: Plan, instance: Instance, path: Path) -> None:
    """Raise `BadAnswerError` for a plan whose ranks, stages or slots do not go with each other."""
    broken = structure(plan, instance)
    if broken:
        raise BadAnswerError(f"{path}: {broken[0]}", hint=f"see: ep-plan check {path}")


def refuse_untellable(plan: Plan, path: Path) -> None:
    """Raise `BadAnswerError` for a plan that no report can tell; looks at no trace."""
    inputs = plan.inputs
    refuse_broken(plan, Instance(inputs.model, inputs.machine, inputs.workload, inputs.cost, None), path)
    broken = next(_untellable(plan), None)
    if broken is not None:
        raise BadAnswerError(f"{path}: {broken}", hint=f"see: ep-plan check {path}")


def _untellable(plan: Plan) -> Iterator[Finding]:
    """What reports count on besides: one split is the plan's, each stage has its memory, a step takes time."""
    chosen = sum(record.outcome == "chosen" for record in plan.candidates)
    if chosen != 1:
        yield Finding("candidates", f"{chosen} are chosen, expected one")
    if len(plan.predicted.memory) != len(plan.stages):
        detail = f"{len(plan.predicted.memory)} lists of lines, expected one for each of {len(plan.stages)} stages"
        yield Finding("predicted.memory", detail)
    if plan.predicted.step_s <= 0:
        yield Finding("predicted.step_s", f"{plan.predicted.step_s!r} is not above 0")


def windows_of(instance: Instance) -> str:
    """How the windows were made, as a plan says it."""
    return "no trace: uniform routing" if instance.windows is None else instance.windows.how


# --- the grid -------------------------------------------------------------------------------------


def _grid(plan: Decided, instance: Instance) -> Iterator[Finding]:
    s = plan.split
    if s.tp * s.dp != s.etp * s.ep * s.edp:
        detail = f"tp {s.tp} x dp {s.dp} is not etp {s.etp} x ep {s.ep} x edp {s.edp}"
        yield Finding("split", detail)
    if s.pp != len(plan.stages):
        yield Finding("stages", f"pp is {s.pp}, but there are {len(plan.stages)} stages")
    for number, stage in enumerate(plan.stages):
        if len(stage.gpus) != s.tp * s.dp:
            yield Finding("stages", f"stage {number} has {len(stage.gpus)} GPUs, tp x dp is {s.tp * s.dp}")
    used = sorted(gpu for stage in plan.stages for gpu in stage.gpus)
    if used != list(range(instance.topology.num_gpus)):
        detail = f"every GPU 0..{instance.topology.num_gpus - 1} must be in exactly one stage"
        yield Finding("GPUs", detail)


def _layers(plan: Decided, instance: Instance) -> Iterator[Finding]:
    expected = 0
    for number, stage in enumerate(plan.stages):
        first, end = stage.layers
        if first != expected or end <= first:
            yield Finding("layers", f"stage {number} has layers [{first}, {end}), expected to begin at {expected}")
        expected = end
    if expected != instance.model.num_layers:
        yield Finding("layers", f"the stages end at layer {expected} of {instance.model.num_layers}")


def _placement(plan: Decided, instance: Instance) -> Iterator[Finding]:
    record, moe = plan.placement, instance.model.moe
    if record.layer_ids != instance.model.moe_layer_ids:
        yield Finding("layer_ids", "these are not the MoE layers of the model")
        return
    width = plan.split.ep * record.slots_per_rank
    wrong = [
        layer for layer, row in zip(record.layer_ids, record.physical_to_logical, strict=False) if len(row) != width
    ]
    if wrong or len(record.physical_to_logical) != len(record.layer_ids):
        detail = f"expected {len(record.layer_ids)} rows of ep x slots_per_rank = {width} slots"
        yield Finding("slots", f"{detail}; layer {wrong[0]} has another length" if wrong else detail)
        return
    copy_rule = instance.copy_rule(split_of(plan))
    if record.copy_rule != copy_rule:
        yield Finding("copy_rule", f"copies share tokens as {record.copy_rule}, here {copy_rule}")
    placement = placement_of(plan)
    broken = violations(placement, moe.num_experts)
    yield from (Finding(violation.rule, violation.message) for violation in broken)
    yield from _slots(plan, instance, placement)


def _slots(plan: Decided, instance: Instance, placement: Placement) -> Iterator[Finding]:
    """Ranks of equal GPUs fill equal numbers of slots; unequal ones the same in all layers of a stage."""
    record, moe = plan.placement, instance.model.moe
    total = moe.num_experts + record.redundant_experts
    even_R = slots_of_ranks(total, plan.split.ep)
    slots_KR = slots_of(plan) if instance.topology.is_mixed else (even_R,) * len(plan.stages)
    stage_of = {layer: k for k, stage in enumerate(plan.stages) for layer in range(*stage.layers)}
    slots_LR = np.stack([slots_KR[stage_of[layer]] for layer in record.layer_ids])
    filled_LR = (placement.expert_LP >= 0).reshape(len(record.layer_ids), plan.split.ep, -1).sum(axis=2)
    if record.slots_per_rank != slots_LR.max():
        yield Finding("slots", f"slots_per_rank is {record.slots_per_rank}, the experts need {slots_LR.max()}")
    for row in np.flatnonzero((filled_LR != slots_LR).any(axis=1))[:3]:
        rank = int(np.flatnonzero(filled_LR[row] != slots_LR[row])[0])
        detail = f"rank {rank} fills {filled_LR[row, rank]} slots, expected {slots_LR[row, rank]}"
        yield Finding("slots of a rank", f"layer {record.layer_ids[row]}: {detail}")
    for number, slots_R in enumerate(slots_KR):
        if slots_R.sum() != total:
            yield Finding("slots", f"stage {number} fills {slots_R.sum()} slots, experts and copies need {total}")


def _cuts(plan: Decided, limits: Limits) -> Iterator[Finding]:
    own = tuple(len(cut) for cut in cuts_of(plan))
    if own != (even := even_layers(sum(own), len(own))):
        yield Finding("stages", f"layers {list(own)}, but {limits.engine_name} cuts {list(even)}")


def _groups(plan: Decided, cost: SplitCost) -> Iterator[Finding]:
    if plan.split.ep == 1:
        return
    moe = cost.instance.model.moe
    per_group = moe.num_experts // moe.num_groups
    for stage, layers in zip(cost.stages, cuts_of(plan), strict=True):
        for layer, row in zip(plan.placement.layer_ids, plan.placement.physical_to_logical, strict=True):
            if layer not in layers:
                continue
            expert_P = np.array(row)
            rank_P = np.arange(len(row)) // plan.placement.slots_per_rank
            for pattern, group in product(stage.grid.ep_groups, range(moe.num_groups)):
                node_P = pattern.unit_VR[cost.instance.topology.file.node_level][rank_P]
                nodes = np.unique(node_P[(expert_P >= 0) & (expert_P // per_group == group)])
                if len(nodes) > 1:
                    yield Finding("keep_groups", f"layer {layer}: group {group} is on nodes {nodes.tolist()}")


def _whole_groups(plan: Decided, instance: Instance) -> Iterator[Finding]:
    """For a permuted checkpoint: the router takes consecutive experts as a group, so groups move as a whole."""
    moe = instance.model.moe
    if moe.num_groups == 1:
        return
    for layer, row in zip(plan.placement.layer_ids, plan.placement.physical_to_logical, strict=True):
        if len(row) != moe.num_experts or min(row) < 0:
            continue  # copies or unequal ranks, which break rules of their own
        torn = torn_group(np.array(row), moe.num_experts, moe.num_groups)
        if torn is not None:
            detail = f"layer {layer}: positions of group {torn} hold experts of several routing groups"
            yield Finding("checkpoint groups", detail)


def _memory(plan: Decided, cost: SplitCost) -> Iterator[Finding]:
    """The first GPU that does not hold what it must."""
    used_G = memory_G(cost, cuts_of(plan), placement_of(plan)).tolist()
    for gpu, (num_bytes, capacity) in enumerate(zip(used_G, cost.instance.usable_G.tolist(), strict=True)):
        if num_bytes > capacity:
            over = f"needs {format_bytes(num_bytes)} ({num_bytes:,} B), has {format_bytes(capacity)} ({capacity:,} B)"
            yield Finding("memory", f"GPU {gpu} {over}")
            return


def _windows(plan: Plan, instance: Instance) -> Iterator[Finding]:
    """What the plan says about its routing is what the traces hold."""
    traced = () if instance.windows is None else instance.traced_layer_ids
    yield from differences("inputs.traced_layer_ids", plan.inputs.traced_layer_ids, traced)
    yield from differences("inputs.windows", plan.inputs.windows, windows_of(instance))


# --- booked figures -------------------------------------------------------------------------------


def _figures(plan: Plan, cost: SplitCost) -> Iterator[Finding]:
    cuts = cuts_of(plan)
    again = book(cost, cuts, placement_of(plan))
    yield from differences("predicted", plan.predicted.model_dump(), again.model_dump())
    baselines = {name: record.model_dump() for name, record in score(cost, cuts).items()}
    yield from differences("baselines", {k: v.model_dump() for k, v in plan.baselines.items()}, baselines)
