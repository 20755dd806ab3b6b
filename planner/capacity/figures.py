"""What people compare plans by, and what differs between two of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Final

from planner.inputs.units import format_number_of
from planner.plan.decision import split_of
from planner.plan.plan import Plan

_SAME: Final = 1e-12
"""Relative difference below which two figures are the same."""


@dataclass(frozen=True)
class Figures:
    """What people compare plans by."""

    split: str
    redundant_experts: int
    """Per layer, over all ranks."""
    gpus: int
    step_s: float
    bound_s: float
    """No plan over all splits allowed is faster."""
    tokens_per_s: float
    tokens_per_s_per_gpu: float
    time_per_output_token_s: float | None
    time_to_first_token_s: float | None
    max_over_mean: float | None
    """Rows of the fullest rank over those of the mean one, mean over layers and windows; None without a trace."""
    fullest_gpu: float
    """Part of the usable memory that is taken on the fullest GPU."""
    spare_kv_tokens: int | None
    """Tokens that the KV cache of a data-parallel rank could hold besides; None: nothing grows with them."""
    most_sequences: int | None
    """Most sequences that fit, all ranks together (prefill: tokens of a step); None: nothing limits them."""


@dataclass(frozen=True)
class Change:
    """A figure, or a part of the step's time in seconds, before and after."""

    name: str
    before: Any
    after: Any


@dataclass(frozen=True)
class OldSplit:
    """What becomes of a split under other inputs."""

    step_s: float | None
    """Of the best plan found with it; None if it was not priced."""
    bound_s: float | None
    """No plan with it is faster."""
    reasons: tuple[str, ...]
    """Rules that it breaks; that there is no such split of so many GPUs is one of them."""


def figures_of(plan: Plan) -> Figures:
    """The figures of a plan."""
    predicted, inputs = plan.predicted, plan.inputs
    room, imbalance = plan.chosen, predicted.layer_imbalance
    machine, memory = inputs.machine, inputs.cost.engine_memory
    usable_G = [memory.usable_bytes(num_bytes) for num_bytes in machine.memory_G.tolist()]
    return Figures(
        split=str(split_of(plan)),
        redundant_experts=plan.placement.redundant_experts,
        gpus=inputs.gpus,
        step_s=predicted.step_s,
        bound_s=plan.solver.bound_s,
        tokens_per_s=predicted.tokens_per_s,
        tokens_per_s_per_gpu=predicted.tokens_per_s / inputs.gpus,
        time_per_output_token_s=predicted.time_per_output_token_s,
        time_to_first_token_s=predicted.time_to_first_token_s,
        max_over_mean=math.fsum(imbalance) / len(imbalance) if imbalance else None,
        fullest_gpu=max(used / has for used, has in zip(predicted.memory_bytes, usable_G, strict=True)),
        spare_kv_tokens=room.spare_kv_tokens,
        most_sequences=room.most_sequences,
    )


def changes(before: Plan, after: Plan) -> Iterator[Change]:
    """Figures that differ; whether experts lie elsewhere is told last."""
    one, other = figures_of(before), figures_of(after)
    for field in fields(Figures):
        pair = getattr(one, field.name), getattr(other, field.name)
        if not _same(*pair):
            yield Change(field.name, *pair)
    if before.placement != after.placement:
        yield Change("placement", "as it was", "another one")


def term_changes(before: Plan, after: Plan) -> list[Change]:
    """Parts of the step that take another time, the largest difference first; 0 where there is no such part."""
    one, other = ({term.name: term.seconds for term in plan.predicted.terms} for plan in (before, after))
    found = [Change(name, one.get(name, 0.0), other.get(name, 0.0)) for name in {**one, **other}]
    return sorted((c for c in found if not _same(c.before, c.after)), key=lambda c: -abs(c.after - c.before))


def old_split(before: Plan, after: Plan) -> OldSplit | None:
    """What the inputs of the plan after make of the split before; None if that is its split, too."""
    copies = before.placement.redundant_experts
    same = [record for record in after.candidates if record.split == before.split]
    if not same:
        gpus = after.inputs.gpus
        return OldSplit(None, None, (f"no split of {format_number_of(gpus, 'GPU')} has {split_of(before)}",))
    nearest = min(same, key=lambda record: (record.redundant_experts != copies, record.outcome == "rejected"))
    if nearest.outcome == "chosen":
        return None
    return OldSplit(nearest.step_s, nearest.bound_s, nearest.reasons)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=_SAME, abs_tol=0.0)
    return bool(one == other)
