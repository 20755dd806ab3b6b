"""Which splits there are: every divisor of the GPUs for pp, of a stage for tp, and of a stage for ep x etp.

The grid is small (tens to hundreds of points, thousands on hundreds of GPUs), so nothing of it is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from planner.cost.instance import Instance
from planner.plan.split import Split
from planner.rules import Limits

_MICRO_BATCH_FACTORS = (1, 2, 4)
_EXTRA_SLOTS = 4
"""With `redundant_experts: auto`: spare slots per rank that are tried, besides none."""


@dataclass(frozen=True)
class SearchSpace:
    """Which splits are looked at."""

    limits: Limits
    pins: dict[str, int]
    redundant_experts: int | None
    """None: the number with the least step time."""


def divisors(number: int) -> list[int]:
    """All divisors, ascending."""
    return [d for d in range(1, number + 1) if number % d == 0]


def all_splits(instance: Instance, pins: dict[str, int]) -> Iterator[Split]:
    """Every split that uses all GPUs in service and agrees with the pinned degrees."""
    in_turn = 2 if instance.constants.communication.overlap == "two_batch" else 1
    return splits_of(instance.topology.num_gpus, pins, in_turn)


def splits_of(gpus: int, pins: dict[str, int], in_turn: int = 1) -> Iterator[Split]:
    """Every split of so many GPUs that agrees with the pinned degrees; `in_turn` micro-batches share a stage."""
    for pp in _allowed(pins, "pp", divisors(gpus)):
        stage = gpus // pp
        factors = (1,) if pp == 1 else _MICRO_BATCH_FACTORS
        counts = [pins["micro_batches"]] if "micro_batches" in pins else [in_turn * pp * f for f in factors]
        for tp in _allowed(pins, "tp", divisors(stage)):
            if pins.get("dp", stage // tp) != stage // tp:
                continue
            for etp in _allowed(pins, "etp", divisors(stage)):
                for ep in _allowed(pins, "ep", divisors(stage // etp)):
                    edp = stage // etp // ep
                    if pins.get("edp", edp) != edp:
                        continue
                    for count in counts:
                        yield Split(tp, stage // tp, pp, ep, etp, edp, count)


def _allowed(pins: dict[str, int], name: str, values: list[int]) -> list[int]:
    return [value for value in values if pins.get(name, value) == value]


def redundancies(instance: Instance, split: Split, space: SearchSpace) -> list[int]:
    """Numbers of redundant experts to try for a split."""
    if split.ep == 1:
        return [0]
    if space.redundant_experts is not None:
        return [space.redundant_experts]
    experts = instance.model.moe.num_experts
    if not space.limits.rules.redundant_experts or space.limits.for_checkpoint:
        return [0]
    fewest = -(-experts // split.ep)
    most = min(fewest + _EXTRA_SLOTS, experts)
    tried = {slots * split.ep - experts for slots in range(fewest, most + 1)}
    return sorted(tried | {0})


def points(instance: Instance, space: SearchSpace) -> Iterator[tuple[Split, int]]:
    """Every split with every number of redundant experts."""
    for split in all_splits(instance, space.pins):
        for redundant in redundancies(instance, split, space):
            yield split, redundant
