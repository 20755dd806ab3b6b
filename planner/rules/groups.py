"""Whether the experts of a routing group can stay on one node.

Legend: R EP ranks, N nodes.
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


def kept_groups(instance: Instance, split: Split, shares: Shares) -> Iterator[Verdict]:
    """The first stage where groups cannot be kept, or that they can."""
    experts, groups = instance.model.moe.num_experts, instance.model.moe.num_groups
    each = f"{groups} groups of {experts // groups}"
    level = instance.topology.file.node_level
    for grid, slots_R in zip(shares.grids(split, instance), shares.slots_KR, strict=True):
        node_R, *others = (group.unit_VR[level] for group in grid.ep_groups)
        nodes = int(node_R.max()) + 1
        limit = f"whole on {nodes} node{'s' if nodes > 1 else ''}"
        if any((other != node_R).any() for other in others):
            detail = "the copies of the expert grid lie differently on the nodes"
            yield Verdict("keep_groups", each, limit, holds=False, detail=detail)
            return
        if not groups_fit(experts, groups, slots_R, node_R):
            detail = f"{each} cannot be kept on {nodes} nodes"
            yield Verdict("keep_groups", each, limit, holds=False, detail=detail)
            return
    yield Verdict("keep_groups", each, limit, holds=True, detail=f"{each} {limit}")


def group_limits(num_experts: int, num_groups: int, slots_R: Ints, node_R: Ints) -> tuple[Ints, Ints]:
    """Fewest and most whole routing groups that each node can keep.

    A node needs a slot for each of its experts, and enough experts that no rank must hold one twice.
    """
    per_group = num_experts // num_groups
    slots_N = np.bincount(node_R, weights=slots_R).astype(np.int64)
    longest_N = np.zeros_like(slots_N)
    np.maximum.at(longest_N, node_R, slots_R)
    return np.maximum(-(-longest_N // per_group), 1), slots_N // per_group


def groups_fit(num_experts: int, num_groups: int, slots_R: Ints, node_R: Ints) -> bool:
    """Whether every routing group can be kept on a node, and every node can fill its slots."""
    fewest_N, most_N = group_limits(num_experts, num_groups, slots_R, node_R)
    return bool((fewest_N <= most_N).all() and fewest_N.sum() <= num_groups <= most_N.sum())
