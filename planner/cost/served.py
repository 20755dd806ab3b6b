"""How many choices each slot serves, in whole numbers, so that `ep-plan validate` can count them again.

Each choice is served by a pool of slots. even: all slots that hold the expert. nearest: those on the rank on which the
token starts (its home), else those on the node of that rank, else all. The choices of a window that share a pool are
numbered in order of token, then of choice, all copies of the expert grid together, and the i-th goes to slot i mod the
size of the pool, slots in ascending order. The same slots are the same pool, whichever homes it serves.

Legend: S windows, E experts, P slots, L MoE layers, R EP ranks, H homes (R, or 1 where they make no difference),
C experts with several copies, Q pools, M slots pool by pool, N choices, J columns that are summed, X places of pools:
ranks, then nodes, then the whole stage.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.cost.sharing import Sharing
from planner.cost.step import SplitCost, StageCost
from planner.plan.placement import Placement, copies_E
from planner.trace.homes import Spread

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Pools:
    """The slots among which the choices of one layer take turns."""

    pool_EH: Ints
    """Pool that serves the choices of an expert from a home; -1: the expert is placed nowhere."""
    slot_M: Ints
    first_Q: Ints
    """Where the slots of each pool begin."""
    size_Q: Ints

    @staticmethod
    def of(expert_P: Ints, num_experts: int, sharing: Sharing | None = None) -> Pools:
        """The pools of one layer.

        Args:
            expert_P: logical expert in each slot.
            num_experts: E.
            sharing: how copies share tokens; default: evenly.
        """
        filled = np.flatnonzero(expert_P >= 0)
        if sharing is None or sharing.rule == "even":
            width, places = 1, [np.zeros(len(filled), dtype=np.int64)]
        else:
            node_R = sharing.node_R
            ranks, nodes = len(node_R), int(node_R.max()) + 1
            rank = filled // (len(expert_P) // ranks)
            width = ranks + nodes + 1
            places = [rank, ranks + node_R[rank], np.full(len(filled), width - 1)]
        key_M = np.concatenate([expert_P[filled] * width + place for place in places])
        slot_M = np.tile(filled, len(places))
        order = np.lexsort((slot_M, key_M))
        key_Q, first_Q, size_Q = np.unique(key_M[order], return_index=True, return_counts=True)
        pool_EX = np.full((num_experts, width), -1, dtype=np.int64)
        pool_EX.reshape(-1)[key_Q] = np.arange(len(key_Q))
        pool_EH = pool_EX if width == 1 else _nearest(pool_EX, size_Q, node_R)
        return Pools(pool_EH, slot_M[order], first_Q, size_Q)

    def slots(self, expert_N: Ints, home_N: Ints) -> Ints:
        """The slot that serves each choice of a window, given in order; -1 for expert -1."""
        pool_N = np.where(expert_N < 0, -1, self.pool_EH[expert_N, home_N if self.pool_EH.shape[1] > 1 else 0])
        order = np.argsort(pool_N, kind="stable")
        sorted_N = pool_N[order]
        number_N = np.empty(len(pool_N), dtype=np.int64)  # which choice of its pool each one is
        number_N[order] = np.arange(len(pool_N)) - np.searchsorted(sorted_N, sorted_N, side="left")
        slot_N = self.slot_M[self.first_Q[pool_N] + number_N % self.size_Q[pool_N]]
        return np.where(pool_N < 0, -1, slot_N)

    def served(self, chosen_SEH: NDArray[Any], num_slots: int) -> Ints:
        """Choices that each slot serves in each window [S, P], given choices by expert and home."""
        windows = len(chosen_SEH)
        chosen_SQ = _summed(chosen_SEH.reshape(windows, -1), self.pool_EH.reshape(-1), len(self.size_Q))
        pool_M = np.repeat(np.arange(len(self.size_Q)), self.size_Q)
        turn_M = np.arange(len(pool_M)) - self.first_Q[pool_M]
        size_M = self.size_Q[pool_M]
        served_SM = (chosen_SQ[:, pool_M] + size_M - 1 - turn_M) // size_M
        return _summed(served_SM, self.slot_M, num_slots)


def _nearest(pool_EX: Ints, size_Q: Ints, node_R: Ints) -> Ints:
    """The pool of each expert and home: of the rank, else of its node, else of all slots."""
    size_EX = np.append(size_Q, 0)[pool_EX]  # the last one is for no pool
    own, node, everywhere = np.arange(len(node_R)), len(node_R) + node_R, np.full(len(node_R), -1)
    place_EH = np.where(size_EX[:, own] > 0, own, np.where(size_EX[:, node] > 0, node, everywhere))
    size_EH = np.take_along_axis(size_EX, place_EH, axis=1)
    for wider in (node, everywhere):  # the same slots are the same pool
        place_EH = np.where(size_EH == size_EX[:, wider], wider, place_EH)
    return np.take_along_axis(pool_EX, place_EH, axis=1)


def _summed(value_SJ: NDArray[Any], key_J: Ints, num_keys: int) -> Ints:
    """Sums of the columns with the same key; those with key -1 are left out."""
    order = np.argsort(key_J, kind="stable")[np.count_nonzero(key_J < 0) :]
    total = np.zeros((len(value_SJ), num_keys), dtype=np.int64)
    keys, starts = np.unique(key_J[order], return_index=True)
    if len(keys):
        total[:, keys] = np.add.reduceat(value_SJ[:, order], starts, axis=1, dtype=np.int64)
    return total


@dataclass(frozen=True)
class ByHome:
    """Choices of some experts of a layer by the rank that their tokens start on."""

    sharing: Sharing
    expert_C: Ints
    """All that have several copies, ascending."""
    chosen_SCR: NDArray[Any]

    def of(self, experts: Ints) -> ByHome:
        """The same for some of these experts, ascending."""
        places = np.flatnonzero(np.isin(self.expert_C, experts))
        return ByHome(self.sharing, self.expert_C[places], self.chosen_SCR[:, places])


def slot_tokens(counts_SE: Ints, expert_P: Ints, by_home: ByHome | None = None) -> Ints:
    """Choices that each slot serves in each window [S, P], as recorded.

    Args:
        counts_SE: choices of the layer.
        expert_P: logical expert in each slot.
        by_home: where the nearest copy serves, the same of experts with several copies; default: copies share evenly.
    """
    experts = counts_SE.shape[1]
    served_SP = Pools.of(expert_P, experts).served(counts_SE[:, :, None], len(expert_P))
    if by_home is None:
        return served_SP
    column_E = np.full(experts + 1, -1, dtype=np.int64)  # the last entry is for empty slots
    column_E[by_home.expert_C] = np.arange(len(by_home.expert_C))
    column_P = column_E[expert_P]
    assert (copies_E(expert_P, experts)[column_E[:-1] < 0] <= 1).all(), "copies whose choices were not counted by home"
    pools = Pools.of(column_P, len(by_home.expert_C), by_home.sharing)
    return np.where(column_P < 0, served_SP, pools.served(by_home.chosen_SCR, len(expert_P)))


def rank_tokens(counts_SE: Ints, expert_P: Ints, slots_per_rank: int, by_home: ByHome | None = None) -> Ints:
    """Choices that each EP rank serves in each window [S, R], as recorded, all grid copies together."""
    served_SP = slot_tokens(counts_SE, expert_P, by_home)
    served: Ints = served_SP.reshape(len(counts_SE), -1, slots_per_rank).sum(axis=2)
    return served


# --- choices by home, where they are needed -------------------------------------------------------


def copies_by_home(cost: SplitCost, stage_of: Mapping[int, StageCost], placement: Placement) -> Iterator[ByHome | None]:
    """For each layer of a placement its copied experts' choices by home; None where they make no difference."""
    instance = cost.instance
    row_of = {} if instance.windows is None else {layer: row for row, layer in enumerate(instance.traced_layer_ids)}
    copied_L = [
        _copied(stage_of[layer], expert_P) if layer in row_of else np.zeros(0, dtype=np.int64)
        for layer, expert_P in zip(placement.layer_ids, placement.expert_LP, strict=True)
    ]
    of_layer = zip(placement.layer_ids, copied_L, strict=True)
    wanted = [(row_of[layer], expert_C) for layer, expert_C in of_layer if len(expert_C)]
    counted = _counted(cost, wanted)
    for layer, expert_C in zip(placement.layer_ids, copied_L, strict=True):
        yield ByHome(stage_of[layer].moe.sharing, expert_C, next(counted)) if len(expert_C) else None


def all_by_home(cost: SplitCost, stage_of: Mapping[int, StageCost], layer: int) -> ByHome | None:
    """Choices of all experts of a traced layer by home, for any placement; None where they make no difference."""
    sharing = stage_of[layer].moe.sharing
    if sharing.rule == "even" or cost.split.ep == 1:
        return None
    expert_C = np.arange(cost.instance.model.moe.num_experts)
    row = cost.instance.traced_layer_ids.index(layer)
    return ByHome(sharing, expert_C, next(_counted(cost, [(row, expert_C)])))


def _copied(stage: StageCost, expert_P: Ints) -> Ints:
    """Experts of a layer whose copies do not share evenly."""
    if stage.moe.sharing.is_even(expert_P) or stage.moe.num_ranks == 1:
        return np.zeros(0, dtype=np.int64)
    return np.flatnonzero(np.bincount(expert_P[expert_P >= 0]) > 1)


def _counted(cost: SplitCost, wanted: list[tuple[int, Ints]]) -> Iterator[NDArray[Any]]:
    windows = cost.instance.windows
    if windows is None or not wanted:  # nothing recorded, or nothing to count
        return iter(())
    assert windows.homes is not None, "windows that were joined cannot be counted by home"
    return windows.homes.counts(Spread(cost.split.ep, cost.split.etp), wanted)
