"""Which splits are legal: every rule of a split with its verdict, so that all broken ones are told at once.

`shapes` holds what the model asks for, `engine` what an engine can run, `kernel` what a communication
library can run, `groups` whether routing groups can stay on nodes, `checkpoint` what permuting a
checkpoint realises; `memory` is kept apart, because it takes more work. `grid` says which splits there
are, `ruled` holds all of them against all of this.
"""

from __future__ import annotations

from dataclasses import dataclass

from planner.cost.instance import Instance
from planner.inputs.engines import EngineRules
from planner.plan.split import Split
from planner.rules import checkpoint, engine, kernel, shapes
from planner.rules.checkpoint import group_blocks, torn_group
from planner.rules.groups import group_limits, groups_fit, kept_groups
from planner.rules.shares import Shares, even_shares
from planner.rules.verdict import Verdict

__all__ = [
    "Limits",
    "Shares",
    "Verdict",
    "broken_rules",
    "group_blocks",
    "group_limits",
    "groups_fit",
    "torn_group",
    "verdicts",
]


@dataclass(frozen=True)
class Limits:
    """What the user and the engine allow."""

    rules: EngineRules
    engine_name: str
    keep_groups: bool
    for_checkpoint: bool = False
    """Only what permuting a checkpoint realises."""


def verdicts(
    instance: Instance, split: Split, redundant: int, limits: Limits, shares: Shares | None = None
) -> list[Verdict]:
    """Every rule that applies to a split, memory left out, with whether it holds.

    Args:
        instance: model, machine and work.
        split: the degrees.
        redundant: redundant experts per layer.
        limits: what user and engine allow.
        shares: GPUs and slots of each stage; default: consecutive GPUs, slots as even as possible.
    """
    if split.ep > instance.model.moe.num_experts + redundant:
        shares = None  # some ranks are empty, and slots have no meaning
    found = [
        *shapes.attention(instance, split),
        *shapes.vocabulary(instance, split, limits.rules),
        *shapes.widths(instance, split),
        *shapes.experts(instance, split, redundant, limits.rules, shares),
    ]
    laid = shares or even_shares(instance, split, redundant)
    if limits.keep_groups and split.ep > 1 and not any(one.rule in ("experts", "slots") for one in broken(found)):
        found += kept_groups(instance, split, laid)
    if limits.for_checkpoint:
        found += checkpoint.verdicts(instance, split, redundant, laid, keep_groups=limits.keep_groups)
    found += engine.verdicts(split, redundant, limits.rules, limits.engine_name)
    grids = laid.grids(split, instance)
    found += engine.order(split, limits.rules, limits.engine_name, grids)
    found += kernel.verdicts(instance, split, redundant, limits.rules, grids)
    return [*found, *shapes.work(instance, split)]


def broken_rules(
    instance: Instance, split: Split, redundant: int, limits: Limits, shares: Shares | None = None
) -> list[Verdict]:
    """All rules, memory left out, that a split breaks; arguments as of `verdicts`."""
    return broken(verdicts(instance, split, redundant, limits, shares))


def broken(found: list[Verdict]) -> list[Verdict]:
    """Those that do not hold."""
    return [one for one in found if not one.holds]
