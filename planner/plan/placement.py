"""Which expert sits in which slot: data and invariants.

Slot s of a layer lives on EP rank s // slots_per_rank. Where ranks hold unequal numbers, -1 is an
empty slot. Within a rank slots are in ascending order of expert, empty ones last.

Legend: L MoE layers, P physical slots = ep * slots_per_rank, E experts, R EP ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Placement:
    """One placement for every MoE layer."""

    layer_ids: tuple[int, ...]
    slots_per_rank: int
    expert_LP: Ints
    """Logical expert in each slot, -1 if empty."""

    @property
    def num_ranks(self) -> int:
        """EP ranks."""
        return int(self.expert_LP.shape[1]) // self.slots_per_rank


def copies_E(expert_P: Ints, num_experts: int) -> Ints:
    """Copies of each expert in one layer."""
    counts: Ints = np.bincount(expert_P[expert_P >= 0], minlength=num_experts)
    return counts


def ordered(expert_P: Ints, slots_per_rank: int) -> Ints:
    """The slots of one layer in canonical order: ascending in each rank, empty ones last."""
    by_rank = expert_P.reshape(-1, slots_per_rank)
    last = np.iinfo(np.int64).max
    filled = np.sort(np.where(by_rank < 0, last, by_rank), axis=1)
    return np.where(filled == last, -1, filled).reshape(-1)


def from_ranks(experts_R: Sequence[Sequence[int]], slots_per_rank: int) -> Ints:
    """One layer's slots from the list of experts of each rank."""
    expert_P = np.full(len(experts_R) * slots_per_rank, -1, dtype=np.int64)
    for rank, experts in enumerate(experts_R):
        expert_P[rank * slots_per_rank : rank * slots_per_rank + len(experts)] = sorted(experts)
    return expert_P


def slots_of_ranks(num_slots: int, num_ranks: int) -> Ints:
    """Filled slots of each rank when they are spread as evenly as possible, longer ranks first."""
    base, longer = divmod(num_slots, num_ranks)
    return base + (np.arange(num_ranks, dtype=np.int64) < longer)


def linear(num_experts: int, slots_R: Ints, slots_per_rank: int | None = None) -> Ints:
    """The layout that engines use unasked: slots in order take experts 0, 1, ..., E-1, 0, 1, ...

    Args:
        num_experts: logical experts.
        slots_R: filled slots of each rank; at most `num_experts`, so no rank holds one twice.
        slots_per_rank: slots of a rank, empty ones counted; default: of the longest.
    """
    experts = np.arange(slots_R.sum(), dtype=np.int64) % num_experts
    width = int(slots_R.max()) if slots_per_rank is None else slots_per_rank
    return from_ranks([part.tolist() for part in np.split(experts, np.cumsum(slots_R)[:-1])], width)


def widened(expert_P: Ints, num_ranks: int, slots_per_rank: int) -> Ints:
    """The same layer with more (empty) slots on each rank."""
    by_rank = expert_P.reshape(num_ranks, -1)
    return np.pad(by_rank, ((0, 0), (0, slots_per_rank - by_rank.shape[1])), constant_values=-1).reshape(-1)


@dataclass(frozen=True)
class Violation:
    """A broken rule of a placement, in words."""

    rule: str
    message: str


def violations(placement: Placement, num_experts: int, *, own_plan: bool = True) -> list[Violation]:
    """Every broken rule of a placement.

    Args:
        placement: what is examined.
        num_experts: logical experts of the model.
        own_plan: also the rules that only our own plans keep (no expert twice on a rank, canonical
            order); maps of engines may break them.
    """
    found: list[Violation] = []
    for layer_id, expert_P in zip(placement.layer_ids, placement.expert_LP, strict=True):
        found += _layer_violations(layer_id, expert_P, placement, num_experts, own_plan)
    return found


def _layer_violations(
    layer_id: int, expert_P: Ints, placement: Placement, num_experts: int, own_plan: bool
) -> list[Violation]:
    wrong = expert_P[(expert_P < -1) | (expert_P >= num_experts)]
    if len(wrong):
        ids = f"expert id {wrong[0]}, but the model has {num_experts} experts (0..{num_experts - 1})"
        return [Violation("expert ids", f"layer {layer_id}: {ids}")]
    found = []
    missing = np.flatnonzero(copies_E(expert_P, num_experts) == 0)
    if len(missing):
        text = f"layer {layer_id}: {_some(missing)} placed nowhere"
        found.append(Violation("every expert placed", text))
    if not own_plan:
        return found
    for rank, experts in enumerate(expert_P.reshape(-1, placement.slots_per_rank)):
        held, counts = np.unique(experts[experts >= 0], return_counts=True)
        if (counts > 1).any():
            text = f"layer {layer_id}: {_some(held[counts > 1])} twice on rank {rank}"
            found.append(Violation("no expert twice on a rank", text))
    if not np.array_equal(expert_P, ordered(expert_P, placement.slots_per_rank)):
        text = f"layer {layer_id}: slots within a rank are not in ascending order of expert"
        found.append(Violation("slot order", text))
    return found


def _some(experts: Ints) -> str:
    shown = ", ".join(str(expert) for expert in experts[:5])
    more = f" and {len(experts) - 5} more" if len(experts) > 5 else ""
    return f"expert{'s' if len(experts) > 1 else ''} {shown}{more}"
