"""How the copies of an expert share its tokens, once it is known where tokens start.

even: a copy is as likely as any other. nearest: a token goes to a copy on its own rank; where that has none, to
one on its own node; where that has none either, to any copy; among those in question evenly. (SGLang's static
dispatch, python/sglang/srt/eplb/expert_location_dispatch.py at 0.5.23, does the last two steps by a fixed draw.)

Tokens start evenly spread over the ranks (homes are uniform). On one node both rules load ranks alike: what a copy
gains at home it loses elsewhere. Over several nodes a copy that is alone on its node serves more than one of two.

Legend: E experts, B some experts, R EP ranks, H home ranks, N nodes, P slots.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from planner.inputs.workload import CopyRule

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Sharing:
    """The rule, and the nodes that it looks at."""

    rule: CopyRule
    node_R: Ints
    """Node of each EP rank."""

    @cached_property
    def loads_evenly(self) -> bool:
        """Whether all copies of an expert serve equally many of its tokens, wherever they are."""
        return self.rule == "even" or bool((self.node_R == self.node_R[0]).all())

    def is_even(self, expert_P: Ints) -> bool:
        """Whether where a token starts makes no difference for this placement: no expert has several copies."""
        held = expert_P[expert_P >= 0]
        return self.rule == "even" or len(np.unique(held)) == len(held)

    def part_P(self, expert_P: Ints) -> Floats:
        """Part of its expert's tokens that each slot serves; 0 for empty slots."""
        near = _Near.of(self.node_R, expert_P)
        ranks = len(self.node_R)
        size_N = np.bincount(self.node_R)
        lacking_EN = size_N - near.on_ranks_EN  # ranks of a node that have no copy themselves
        has_node_EN = near.count_EN > 0
        homeless_E = np.where(has_node_EN, 0, size_N).sum(axis=1)
        expert, node = near.expert_P, self.node_R[near.rank_P]
        homes_P = 1.0 / near.count_ER[expert, near.rank_P]
        homes_P += lacking_EN[expert, node] / near.count_EN[expert, node]
        homes_P += homeless_E[expert] / near.count_EN.sum(axis=1)[expert]
        part_P = np.zeros(len(expert_P))
        part_P[near.slot_P] = homes_P / ranks
        return part_P

    def part_PR(self, expert_P: Ints) -> Floats:
        """Part of its expert's tokens from each home rank that each slot serves [P, R]; 0 for empty slots."""
        near = _Near.of(self.node_R, expert_P)
        expert, node = near.expert_P, self.node_R[near.rank_P]
        same_rank = near.rank_P[:, None] == np.arange(len(self.node_R))
        same_node = node[:, None] == self.node_R
        home_has = near.count_ER[expert] > 0
        node_has = (near.count_EN > 0)[expert][:, self.node_R]
        own = same_rank / near.count_ER[expert, near.rank_P][:, None]
        inside = (same_node & ~home_has) / near.count_EN[expert, node][:, None]
        anywhere = ~node_has / near.count_EN.sum(axis=1)[expert][:, None]
        part_PR = np.zeros((len(expert_P), len(self.node_R)))
        part_PR[near.slot_P] = own + inside + anywhere
        return part_PR

    def part_BRH(self, member_BR: Bools) -> Floats:
        """Part of the tokens of each home that each rank serves [B, R, H], of experts that these ranks hold once."""
        node_R = self.node_R
        node_RN = (node_R[:, None] == np.arange(node_R.max() + 1)).astype(float)
        count_BN = np.einsum("br,rn->bn", member_BR.astype(float), node_RN)
        count_BH, count_B = count_BN[:, node_R], count_BN.sum(axis=1)
        # A home sends its tokens to itself, to its node, or to all; of those, evenly to the ranks that hold the expert.
        pool_BH = np.where(member_BR, 1.0, np.where(count_BH > 0, count_BH, count_B[:, None]))
        same_node = node_R[:, None] == node_R
        itself = np.eye(len(node_R), dtype=bool)
        reach = np.where(member_BR[:, None, :], itself, (count_BH > 0)[:, None, :] <= same_node)
        return np.asarray((member_BR[:, :, None] & reach) / pool_BH[:, None, :])


@dataclass(frozen=True)
class _Near:
    """Filled slots, and how many copies of each expert ranks and nodes hold."""

    slot_P: Ints
    expert_P: Ints
    rank_P: Ints
    count_ER: Ints
    count_EN: Ints
    on_ranks_EN: Ints
    """Ranks of a node that hold the expert."""

    @staticmethod
    def of(node_R: Ints, expert_P: Ints) -> _Near:
        slot_P = np.flatnonzero(expert_P >= 0)
        expert, rank = expert_P[slot_P], slot_P // (len(expert_P) // len(node_R))
        experts = int(expert.max()) + 1
        count_ER = np.zeros((experts, len(node_R)), dtype=np.int64)
        np.add.at(count_ER, (expert, rank), 1)
        in_node_RN = (node_R[:, None] == np.arange(node_R.max() + 1)).astype(np.int64)
        on_ranks_EN = (count_ER > 0).astype(np.int64) @ in_node_RN
        return _Near(slot_P, expert, rank, count_ER, count_ER @ in_node_RN, on_ranks_EN)
