"""What permuting a checkpoint realises: linear layout of reordered experts, and nothing else.

No expert has copies and all ranks hold equally many. Where a router is limited to groups, it takes
consecutive experts as a group, so groups may only change places as a whole: each rank then holds whole
groups, or is one of several consecutive ranks that share a group.

Legend: R EP ranks.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from planner.cost.instance import Instance
from planner.plan.split import Split
from planner.rules.shares import Shares
from planner.rules.verdict import Verdict

Ints = NDArray[np.int64]


def verdicts(
    instance: Instance, split: Split, redundant: int, shares: Shares, *, keep_groups: bool
) -> Iterator[Verdict]:
    """The rules of a permuted checkpoint over a split."""
    experts, groups = instance.model.moe.num_experts, instance.model.moe.num_groups
    detail = "a checkpoint holds each expert once" if redundant else "no redundant experts"
    yield Verdict("checkpoint copies", f"{redundant}", "0", not redundant, detail)
    rest = experts % split.ep
    even = not rest and all(len(set(slots_R.tolist())) == 1 for slots_R in shares.slots_KR)
    detail = f"{experts} mod ep {split.ep} = {rest}" if even or rest else "ranks hold unequal numbers of experts"
    yield Verdict("checkpoint ranks", f"{experts}", f"mod ep {split.ep}", even, detail)
    if groups == 1 or split.ep == 1:
        return
    fits = groups % split.ep == 0 or split.ep % groups == 0
    limit = f"ep {split.ep} divides {groups} groups, or the reverse"
    detail = limit if fits else f"ep {split.ep} neither divides {groups} routing groups nor is a multiple of them"
    yield Verdict("checkpoint groups", f"{groups}", limit, fits, detail)
    if keep_groups and fits:
        yield _on_nodes(instance, split, shares, groups)


def _on_nodes(instance: Instance, split: Split, shares: Shares, groups: int) -> Verdict:
    """With `keep_groups: node` as well, the ranks that share a group must be on one node."""
    block_R, level = group_blocks(groups, split.ep), instance.topology.file.node_level
    holds = True
    for grid in shares.grids(split, instance):
        for group in grid.ep_groups:
            pairs = set(zip(block_R.tolist(), group.unit_VR[level].tolist(), strict=True))
            holds &= len(pairs) == len(set(block_R.tolist()))
    detail = "the ranks that share a routing group are on " + ("one node" if holds else "several nodes")
    return Verdict("checkpoint groups on nodes", f"{groups}", "one node each", holds, detail)


def torn_group(expert_P: Ints, num_experts: int, num_groups: int) -> int | None:
    """The first group of positions that holds experts of several routing groups; None if none does.

    Args:
        expert_P: a permutation of the experts, by position.
        num_experts: logical experts.
        num_groups: routing groups, consecutive for the router.
    """
    per_group = num_experts // num_groups
    group_AE = (expert_P // per_group).reshape(num_groups, per_group)
    torn = np.flatnonzero((group_AE != group_AE[:, :1]).any(axis=1))
    return int(torn[0]) if len(torn) else None


def group_blocks(num_groups: int, ep: int) -> Ints:
    """For each EP rank the block of ranks that holds its routing groups, whole ones: [R]."""
    return np.arange(ep, dtype=np.int64) // max(1, ep // num_groups)
