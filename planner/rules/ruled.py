"""Every split held against every rule and against memory, in every way in which it is laid on the machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from planner.cost.instance import Instance
from planner.cost.step import SplitCost, split_cost
from planner.plan.split import Split
from planner.rules import Limits, broken_rules
from planner.rules.grid import SearchSpace, points
from planner.rules.layouts import Stages, orders, unequal_slots
from planner.rules.memory import Occupancy, memory_verdict, occupancy
from planner.rules.shares import Ints, Shares, even_shares
from planner.rules.verdict import Verdict

_SENSELESS = ("slots", "stages", "batch")
"""Rules without which a grid has no meaning, and its memory neither."""


@dataclass
class RuledSplit:
    """A split on the machine, and what it breaks."""

    instance: Instance
    split: Split
    redundant_experts: int
    shares: Shares
    reasons: tuple[Verdict, ...]
    """The rules that it breaks, memory last."""
    layout: str = ""
    """How it is laid on unequal GPUs, in words; empty: stages of consecutive GPUs, slots as even as possible."""
    held: Occupancy | None = None
    """What its GPUs hold; None if the grid makes no sense."""

    @property
    def is_feasible(self) -> bool:
        """Whether no rule is broken."""
        return not self.reasons

    @property
    def free_bytes(self) -> int:
        """Memory left on the fullest GPU under the cuts that need least; only where the grid makes sense."""
        assert self.held is not None
        return -self.held.excess[0]

    @cached_property
    def cost(self) -> SplitCost:
        """The instance bound to the split; only where the grid makes sense."""
        assert self.held is not None
        return split_cost(self.instance, self.split, self.redundant_experts, self.shares.gpus, self.shares.slots_KR)


def all_ruled(instance: Instance, space: SearchSpace) -> Iterator[RuledSplit]:
    """Every point of the grid in every layout."""
    for split, redundant in points(instance, space):
        yield from laid_out(instance, split, redundant, space.limits)


def laid_out(instance: Instance, split: Split, redundant: int, limits: Limits) -> Iterator[RuledSplit]:
    """One split in every way in which it is laid on the machine, checked against all rules and memory."""
    several = instance.topology.is_mixed
    for name, gpus in orders(instance.topology, split).items():
        even = ruled(instance, split, redundant, limits, gpus=gpus)
        even.layout = name
        yield even
        if not several or even.held is None or split.ep == 1 or limits.rules.uneven_experts != "always":
            continue
        if limits.for_checkpoint:  # linear layout gives all ranks equally many
            continue
        for how, slots_KR in unequal_slots(even.cost, even.held.memories):
            other = ruled(instance, split, redundant, limits, gpus=gpus, slots_KR=slots_KR)
            other.layout = ", ".join(words for words in (name, how) if words)
            yield other


def ruled(
    instance: Instance,
    split: Split,
    redundant: int,
    limits: Limits,
    *,
    gpus: Stages | None = None,
    slots_KR: tuple[Ints, ...] | None = None,
) -> RuledSplit:
    """Check one split, on these GPUs with these slots, against all rules and memory."""
    even = even_shares(instance, split, redundant)
    shares = Shares(gpus or even.gpus, slots_KR or even.slots_KR)
    reasons = broken_rules(instance, split, redundant, limits, None if gpus is None else shares)
    if any(broken.rule in _SENSELESS for broken in reasons):
        return RuledSplit(instance, split, redundant, shares, tuple(reasons))
    held = occupancy(instance, split, redundant, shares, even_cuts=limits.rules.even_cuts)
    over = memory_verdict(held)
    return RuledSplit(instance, split, redundant, shares, (*reasons, *([over] if over else ())), held=held)
