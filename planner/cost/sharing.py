"""How the copies of an expert share its tokens, once it is known where tokens start.

even: a copy is as likely as any other. nearest: a token goes to a copy on its own rank; where that has none, to
one on its own node; where that has none either, to any copy; among those in question evenly. (SGLang's static
dispatch, python/sglang/srt/eplb/expert_location_dispatch.py at 0.5.23, does the last two steps by a fixed draw.)

Tokens start evenly spread over the ranks (homes are uniform). On one node both rules load ranks alike: what a copy
gains at home it loses elsewhere. Over several nodes a copy that is alone on its node serves more than one of two.

Legend: E experts, B sets of ranks, R EP ranks, H home ranks, N nodes, P slots, J filled slots.
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
        return np.asarray(self.part_PR(expert_P).mean(axis=1))

    def part_PR(self, expert_P: Ints) -> Floats:
        """Part of its expert's tokens from each home rank that each slot serves [P, R]; 0 for empty slots."""
        slot_J = np.flatnonzero(expert_P >= 0)
        expert_J, rank_J = expert_P[slot_J], slot_J // (len(expert_P) // len(self.node_R))
        count_ER = np.zeros((int(expert_P.max()) + 1, len(self.node_R)), dtype=np.int64)
        np.add.at(count_ER, (expert_J, rank_J), 1)
        part_PR = np.zeros((len(expert_P), len(self.node_R)))
        part_PR[slot_J] = self._parts(count_ER, expert_J, rank_J)
        return part_PR

    def part_BRH(self, member_BR: Bools) -> Floats:
        """Part of the tokens of each home that each rank serves [B, R, H], of experts that these ranks hold once."""
        set_J, rank_J = np.nonzero(member_BR)
        part_BRH = np.zeros((*member_BR.shape, len(self.node_R)))
        part_BRH[set_J, rank_J] = self._parts(member_BR.astype(np.int64), set_J, rank_J)
        return part_BRH

    def _parts(self, count_ER: Ints, expert_J: Ints, rank_J: Ints) -> Floats:
        """Part of an expert's tokens from each home that one of its copies serves [J, H].

        Args:
            count_ER: copies of each expert on each rank.
            expert_J: whose copy it is.
            rank_J: and where.
        """
        node_R = self.node_R
        count_EN = count_ER @ (node_R[:, None] == np.arange(node_R.max() + 1)).astype(np.int64)
        home_has, node_has = count_ER[expert_J] > 0, (count_EN > 0)[expert_J][:, node_R]
        same_rank, same_node = rank_J[:, None] == np.arange(len(node_R)), node_R[rank_J][:, None] == node_R
        own = same_rank / count_ER[expert_J, rank_J][:, None]
        inside = (same_node & ~home_has) / count_EN[expert_J, node_R[rank_J]][:, None]
        anywhere = ~node_has / count_EN.sum(axis=1)[expert_J][:, None]
        return np.asarray(own + inside + anywhere)
