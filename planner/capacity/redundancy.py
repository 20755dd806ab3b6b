"""Redundant experts: what each more of them gains in balance and time, against the KV cache it costs.

The knee is where the curve stands highest above the straight line from the fewest redundant experts to the number
with the least step time (the rule of "Kneedle", Satopaa et al. 2011): before it each copy gains more than the mean
one, after it less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from planner.plan.plan import Plan

_NOTHING: Final = 1e-3
"""Gains below this part of the step are none: the search itself is no more exact."""


@dataclass(frozen=True)
class Copies:
    """A number of redundant experts, and what it gives."""

    redundant_experts: int
    step_s: float
    max_over_mean: float | None
    spare_kv_tokens: int | None
    """Of a data-parallel rank; None: nothing grows with the tokens."""
    is_bound: bool = False
    """Whether the step is only bounded: at best that fast."""


@dataclass(frozen=True)
class Gain:
    """What a number of redundant experts brings over the fewest, and what it costs."""

    redundant_experts: int
    step_s: float
    """Shorter step; negative: longer."""
    step_s_per_expert: float
    """For each redundant expert more than the number before; 0 for the fewest."""
    max_over_mean: float | None
    """Lower max/mean of the ranks' rows."""
    kv_tokens: int | None
    """Spare KV tokens of a data-parallel rank that are gone."""


def gains(curve: Sequence[Copies]) -> list[Gain]:
    """Gains along a curve of rising numbers, over its first."""
    found = []
    first = curve[0]
    for before, one in zip([first, *curve], curve, strict=False):
        more = one.redundant_experts - before.redundant_experts
        both = one.max_over_mean is not None and first.max_over_mean is not None
        kept = one.spare_kv_tokens is not None and first.spare_kv_tokens is not None
        found.append(
            Gain(
                redundant_experts=one.redundant_experts,
                step_s=first.step_s - one.step_s,
                step_s_per_expert=(before.step_s - one.step_s) / more if more else 0.0,
                max_over_mean=first.max_over_mean - one.max_over_mean if both else None,  # type: ignore[operator]
                kv_tokens=first.spare_kv_tokens - one.spare_kv_tokens if kept else None,  # type: ignore[operator]
            )
        )
    return found


def knee(curve: Sequence[Copies]) -> int | None:
    """The number of redundant experts at the knee of a curve; None where they gain nothing."""
    first = curve[0]
    best = min(curve, key=lambda one: (one.step_s, one.redundant_experts))
    gained, more = first.step_s - best.step_s, best.redundant_experts - first.redundant_experts
    if gained <= _NOTHING * first.step_s:
        return None

    def above(one: Copies) -> float:
        return (first.step_s - one.step_s) / gained - (one.redundant_experts - first.redundant_experts) / more

    inside = [one for one in curve if first.redundant_experts < one.redundant_experts < best.redundant_experts]
    bend = max(inside, key=lambda one: (above(one), -one.redundant_experts), default=best)
    return (bend if bend is not best and above(bend) > 0 else best).redundant_experts


def curve_of(plan: Plan) -> list[Copies]:
    """What a search over numbers of redundant experts (`auto`) found for the plan's own split.

    Numbers that cannot be faster than the plan have a bound instead of a step time. Balance is booked for the plan
    alone.
    """
    found: dict[int, Copies] = {}
    for record in plan.candidates:
        step_s = record.bound_s if record.step_s is None else record.step_s
        if record.split != plan.split or record.outcome == "rejected" or step_s is None:
            continue
        one = Copies(record.redundant_experts, step_s, None, record.spare_kv_tokens, record.step_s is None)
        before = found.get(one.redundant_experts)
        found[one.redundant_experts] = one if before is None or one.step_s < before.step_s else before
    return [found[number] for number in sorted(found)]
