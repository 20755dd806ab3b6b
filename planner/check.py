"""The solver-free checker: re-derives every rule and every booked figure of a plan.

It runs inside `solve` before anything is written, and as `ep-plan check`. It shares the cost model
with the solver, because that is the truth both are about, and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.baselines import score
from planner.cost.booking import book
from planner.cost.instance import Instance
from planner.cost.notes import notes
from planner.cost.step import SplitCost, split_cost
from planner.inputs.units import format_bytes
from planner.plan.placement import Placement, slots_of_ranks, violations
from planner.plan.plan import CandidateRecord, Plan
from planner.plan.split import Split
from planner.rules import Limits, Shares, broken_rules, torn_group

Ints = NDArray[np.int64]

_CLOSE = 1e-9
"""Relative difference allowed between a booked and a re-derived time: other machines may round the
last digit of an exponential differently. Counts and bytes must agree exactly."""
_OPTIMAL = 1e-6
_TIE = 1e-5
"""Where step times are within 1e-6 of each other balance and traffic decide; several ties may follow."""


@dataclass(frozen=True)
class Finding:
    """A rule that a plan breaks or a figure that it books wrongly."""

    rule: str
    message: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.message}"


def check(plan: Plan, instance: Instance) -> list[Finding]:
    """Everything that is wrong with a plan; empty if nothing is.

    Args:
        plan: as read from its file.
        instance: rebuilt from the plan's inputs and the traces that it names.
    """
    findings = structure(plan, instance)
    if findings:
        return findings  # nothing else has a meaning
    split = split_of(plan)
    limits = Limits(
        plan.inputs.rules,
        plan.inputs.engine or "engine",
        keep_groups=plan.inputs.keep_groups == "node",
        for_checkpoint=plan.inputs.target == "checkpoint",
    )
    shares = Shares(tuple(stage.gpus for stage in plan.stages), slots_of(plan))
    broken = broken_rules(instance, split, plan.placement.redundant_experts, limits, shares)
    findings += [Finding(rule.rule, rule.detail) for rule in broken]
    cost = split_cost(instance, split, plan.placement.redundant_experts, shares.gpus, shares.slots_KR)
    findings += _groups(plan, cost)
    findings += _whole_groups(plan)
    findings += _figures(plan, cost)
    findings += _solver(plan)
    findings += _candidates(plan, instance, limits)
    if plan.notes != (again := notes(instance, plan.solver.stopped_by, plan.solver.gap)):
        findings.append(Finding("notes", f"booked {list(plan.notes)}, re-derived {list(again)}"))
    return findings


def structure(plan: Plan, instance: Instance) -> list[Finding]:
    """What is wrong with the ranks, the stages and the slots; without these a plan cannot be priced."""
    return [*_grid(plan, instance), *_layers(plan, instance)] or [*_placement(plan, instance)]


def split_of(plan: Plan) -> Split:
    """The plan's split."""
    return Split(**plan.split.model_dump())


def placement_of(plan: Plan) -> Placement:
    """The plan's placement as arrays."""
    record = plan.placement
    expert_LP = np.array(record.physical_to_logical, dtype=np.int64)
    return Placement(record.layer_ids, record.slots_per_rank, expert_LP)


def slots_of(plan: Plan) -> tuple[Ints, ...]:
    """Filled slots of each EP rank, by stage, as in the stage's first MoE layer; even where it has none."""
    record, ep = plan.placement, plan.split.ep
    found = []
    for stage in plan.stages:
        rows = [row for row, layer in enumerate(record.layer_ids) if stage.layers[0] <= layer < stage.layers[1]]
        if rows:
            filled_P = np.array(record.physical_to_logical[rows[0]]) >= 0
            found.append(filled_P.reshape(ep, -1).sum(axis=1))
        else:
            found.append(slots_of_ranks(plan.inputs.model.moe.num_experts + record.redundant_experts, ep))
    return tuple(found)


def cuts_of(plan: Plan) -> tuple[range, ...]:
    """Hidden layers of each stage."""
    return tuple(range(*stage.layers) for stage in plan.stages)


# --- the grid -------------------------------------------------------------------------------------


def _grid(plan: Plan, instance: Instance) -> Iterator[Finding]:
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


def _layers(plan: Plan, instance: Instance) -> Iterator[Finding]:
    expected = 0
    for number, stage in enumerate(plan.stages):
        first, end = stage.layers
        if first != expected or end <= first:
            yield Finding("layers", f"stage {number} has layers [{first}, {end}), expected to begin at {expected}")
        expected = end
    if expected != instance.model.num_layers:
        yield Finding("layers", f"the stages end at layer {expected} of {instance.model.num_layers}")


def _placement(plan: Plan, instance: Instance) -> Iterator[Finding]:
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
    placement = placement_of(plan)
    broken = violations(placement, moe.num_experts)
    yield from (Finding(violation.rule, violation.message) for violation in broken)
    yield from _slots(plan, instance, placement)


def _slots(plan: Plan, instance: Instance, placement: Placement) -> Iterator[Finding]:
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


def _groups(plan: Plan, cost: SplitCost) -> Iterator[Finding]:
    if plan.inputs.keep_groups != "node" or plan.split.ep == 1:
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


def _whole_groups(plan: Plan) -> Iterator[Finding]:
    """For a permuted checkpoint: the router takes consecutive experts as a group, so groups move as a whole."""
    moe = plan.inputs.model.moe
    if plan.inputs.target != "checkpoint" or moe.num_groups == 1:
        return
    for layer, row in zip(plan.placement.layer_ids, plan.placement.physical_to_logical, strict=True):
        if len(row) != moe.num_experts or min(row) < 0:
            continue  # copies or unequal ranks, which break rules of their own
        torn = torn_group(np.array(row), moe.num_experts, moe.num_groups)
        if torn is not None:
            detail = f"layer {layer}: positions of group {torn} hold experts of several routing groups"
            yield Finding("checkpoint groups", detail)


# --- booked figures -------------------------------------------------------------------------------


def _figures(plan: Plan, cost: SplitCost) -> Iterator[Finding]:
    cuts = cuts_of(plan)
    capacity_G = cost.instance.usable_G.tolist()
    again = book(cost, cuts, placement_of(plan))
    for gpu, (num_bytes, capacity) in enumerate(zip(again.memory_bytes, capacity_G, strict=True)):
        if num_bytes > capacity:
            over = f"needs {format_bytes(num_bytes)} ({num_bytes:,} B), has {format_bytes(capacity)} ({capacity:,} B)"
            yield Finding("memory", f"GPU {gpu} {over}")
            break
    yield from _compare("predicted", plan.predicted.model_dump(), again.model_dump())
    baselines = {name: record.model_dump() for name, record in score(cost, cuts).items()}
    yield from _compare("baselines", {k: v.model_dump() for k, v in plan.baselines.items()}, baselines)


def _compare(key: str, booked: Any, again: Any) -> Iterator[Finding]:
    """Differences between two trees of plain data."""
    if isinstance(booked, dict) and isinstance(again, dict):
        for name in sorted(set(booked) | set(again)):
            if name not in booked or name not in again:
                missing = "booked" if name not in booked else "re-derived"
                yield Finding(f"{key}.{name}", f"not {missing}")
            else:
                yield from _compare(f"{key}.{name}", booked[name], again[name])
    elif isinstance(booked, Sequence) and isinstance(again, Sequence) and not isinstance(booked, str):
        if len(booked) != len(again):
            yield Finding(key, f"{len(booked)} entries are booked, {len(again)} re-derived")
            return
        for index, (one, other) in enumerate(zip(booked, again, strict=True)):
            yield from _compare(f"{key}[{index}]", one, other)
    elif not _equal(booked, again):
        yield Finding(key, f"booked {booked!r}, re-derived {again!r}")


def _equal(booked: Any, again: Any) -> bool:
    if isinstance(booked, float) and isinstance(again, float | int):
        return math.isclose(booked, again, rel_tol=_CLOSE, abs_tol=1e-18)
    return bool(booked == again)


# --- what is claimed about optimality ---------------------------------------------------------------


def _solver(plan: Plan) -> Iterator[Finding]:
    record = plan.solver
    if not _equal(record.objective_s, plan.predicted.step_s):
        detail = f"objective_s {record.objective_s!r} is not the predicted step_s {plan.predicted.step_s!r}"
        yield Finding("solver.objective_s", detail)
    if record.bound_s > record.objective_s * (1 + _CLOSE):
        yield Finding("solver.bound_s", f"{record.bound_s!r} is above the objective {record.objective_s!r}")
    gap = (record.objective_s - record.bound_s) / record.objective_s
    if not math.isclose(record.gap, max(0.0, gap), rel_tol=1e-6, abs_tol=1e-12):
        yield Finding("solver.gap", f"booked {record.gap!r}, objective and bound give {gap!r}")
    if (record.status == "optimal") != (gap <= _OPTIMAL):
        yield Finding("solver.status", f"{record.status!r} does not go with a gap of {gap:.3g}")
    bounds = [c.bound_s for c in plan.candidates if c.bound_s is not None]
    if bounds and not _equal(record.bound_s, least := min(record.objective_s, *bounds)):
        detail = f"{record.bound_s!r} is not the least of all bounds and the objective, {least!r}"
        yield Finding("solver.bound_s", detail)


def _candidates(plan: Plan, instance: Instance, limits: Limits) -> Iterator[Finding]:
    """Every split that was looked at: its own figures agree, and the plan is the best of them."""
    chosen = [index for index, record in enumerate(plan.candidates) if record.outcome == "chosen"]
    if len(chosen) != 1:
        yield Finding("candidates", f"{len(chosen)} are chosen, expected one")
        return
    yield from _chosen(plan, instance, f"candidates[{chosen[0]}]", plan.candidates[chosen[0]])
    seen: set[tuple[Split, int, str]] = set()
    for index, record in enumerate(plan.candidates):
        key = f"candidates[{index}]"
        split = Split(**record.split.model_dump())
        laid = split, record.redundant_experts, record.layout
        if laid in seen:
            yield Finding(key, f"{split} stands twice")
        seen.add(laid)
        if split.tp * split.dp != split.etp * split.ep * split.edp or split.pp * split.stage_gpus != plan.inputs.gpus:
            yield Finding(f"{key}.split", f"{split} does not use {plan.inputs.gpus} GPUs")
            continue
        rules = None
        if not record.layout:
            rules = [str(rule) for rule in broken_rules(instance, split, record.redundant_experts, limits)]
        yield from _candidate(key, record, rules, plan.predicted.step_s)


def _chosen(plan: Plan, instance: Instance, key: str, record: CandidateRecord) -> Iterator[Finding]:
    """The figures of the chosen candidate are the plan's."""
    if record.split != plan.split:
        yield Finding("candidates", "the chosen candidate is not the plan's split")
    yield from _compare(f"{key}.redundant_experts", record.redundant_experts, plan.placement.redundant_experts)
    yield from _compare(f"{key}.step_s", record.step_s, plan.predicted.step_s)
    usable_G = instance.usable_G
    free = int((usable_G - np.array(plan.predicted.memory_bytes)).min())
    if plan.split.pp == 1:  # one way to cut only
        yield from _compare(f"{key}.free_bytes", record.free_bytes, free)
    elif record.free_bytes is None or not free <= record.free_bytes < usable_G.max():
        yield Finding(f"{key}.free_bytes", f"booked {record.free_bytes!r}, the plan itself leaves {free!r}")


def _candidate(key: str, record: CandidateRecord, rules: list[str] | None, best_s: float) -> Iterator[Finding]:
    """One candidate's outcome goes with its figures, and no other beats the plan; `rules`: those broken, if known."""
    bound_s, step_s, is_rejected = record.bound_s, record.step_s, record.outcome == "rejected"
    if rules is not None and list(record.reasons[: len(rules)]) != rules:
        yield Finding(f"{key}.reasons", f"booked {list(record.reasons)}, re-derived {rules}")
    if is_rejected != bool(record.reasons):
        detail = "rejected without a reason" if is_rejected else f"not rejected in spite of {record.reasons[0]}"
        yield Finding(f"{key}.reasons", detail)
    if is_rejected != (bound_s is None):
        yield Finding(f"{key}.bound_s", f"{bound_s!r} does not go with {record.outcome!r}")
    if (record.outcome in ("chosen", "priced")) != (step_s is not None):
        yield Finding(f"{key}.step_s", f"{step_s!r} does not go with {record.outcome!r}")
    if not is_rejected and (record.free_bytes is None or record.free_bytes < 0):
        yield Finding(f"{key}.free_bytes", f"{record.free_bytes!r} does not go with {record.outcome!r}")
    if bound_s is not None and bound_s <= 0:
        yield Finding(f"{key}.bound_s", f"{bound_s!r} is not above 0")
    if bound_s is not None and step_s is not None and bound_s > step_s * (1 + _CLOSE):
        yield Finding(f"{key}.bound_s", f"{bound_s!r} is above the step time {step_s!r}")
    if step_s is not None and step_s * (1 + _TIE) < best_s:
        yield Finding(f"{key}.step_s", f"{step_s!r} is less than that of the plan, {best_s!r}")
