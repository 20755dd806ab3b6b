"""Served choices against the figures that the plan books, and what would explain a difference.

The booked figures are per rank; receivers count per slot. So a wrong map shows as ranks that serve too much
or too little, and single changes of the map are tried out until one gives the booked figures exactly: two
experts swapped, a copy missing, a copy too many.

Legend: L layers, P slots, R EP ranks, E experts, S windows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from planner.cost.served import rank_tokens
from planner.plan.placement import Placement

Ints = NDArray[np.int64]
_SHOWN = 3
_EXPLAINED = 4
"""Layers for which explanations are looked for; a wrong map is usually wrong in one place or everywhere."""


@dataclass(frozen=True)
class CountFinding:
    """A layer in which receivers counted something else than the plan books."""

    layer: int
    ranks: tuple[int, ...]
    experts: tuple[int, ...]
    message: str


def count_findings(
    placement: Placement, booked_LR: Ints, served_LP: Ints, counts_SLE: Ints, layers: tuple[int, ...]
) -> list[CountFinding]:
    """Everything that receivers counted wrongly.

    Args:
        placement: the map under test.
        booked_LR: `rank_tokens` of the plan, for all its MoE layers.
        served_LP: choices that each slot served, for the replayed layers.
        counts_SLE: what was recorded, for the replayed layers.
        layers: the replayed hidden layers.
    """
    found: list[CountFinding] = []
    for position, layer in enumerate(layers):
        row = placement.layer_ids.index(layer)
        expert_P = placement.expert_LP[row]
        counts_SE, served_P = counts_SLE[:, position], served_LP[position]
        found += _lost(layer, expert_P, served_P, counts_SE)
        served_R = served_P.reshape(placement.num_ranks, -1).sum(axis=1)
        difference_R = served_R - booked_LR[row]
        if difference_R.any():
            explain = sum(bool(finding.ranks) for finding in found) < _EXPLAINED
            found.append(_wrong(layer, placement, expert_P, booked_LR[row], served_P, counts_SE, explain=explain))
    return found


def _lost(layer: int, expert_P: Ints, served_P: Ints, counts_SE: Ints) -> Iterator[CountFinding]:
    """Experts whose copies together served another number than was recorded."""
    served_E = np.zeros(counts_SE.shape[1], dtype=np.int64)
    filled = expert_P >= 0
    np.add.at(served_E, expert_P[filled], served_P[filled])
    chosen_E = counts_SE.sum(axis=0)
    for expert in np.flatnonzero(served_E != chosen_E)[:_SHOWN].tolist():
        message = (
            f"layer {layer}: expert {expert} was chosen {chosen_E[expert]:,} times and served {served_E[expert]:,}"
        )
        yield CountFinding(layer, (), (expert,), message)


def _wrong(
    layer: int,
    placement: Placement,
    expert_P: Ints,
    booked_R: Ints,
    served_P: Ints,
    counts_SE: Ints,
    *,
    explain: bool,
) -> CountFinding:
    served_R = served_P.reshape(placement.num_ranks, -1).sum(axis=1)
    difference_R = served_R - booked_R
    ranks = tuple(np.flatnonzero(difference_R).tolist())
    worst = sorted(ranks, key=lambda rank: -abs(int(difference_R[rank])))[:_SHOWN]
    figures = ", ".join(f"rank {r} served {served_R[r]:,} choices, {booked_R[r]:,} are booked" for r in worst)
    if len(ranks) > _SHOWN:
        figures += f", and {len(ranks) - _SHOWN} more ranks"
    tried = _Explanations(placement, expert_P, booked_R, served_P, counts_SE)
    why = list(islice(tried.all(), _SHOWN)) if explain else []
    if not why:
        held = expert_P.reshape(placement.num_ranks, -1)[worst[0]]
        experts = tuple(expert for expert in held.tolist() if expert >= 0)
        names = ", ".join(map(str, experts[:16])) + (", ..." if len(experts) > 16 else "")
        return CountFinding(layer, ranks, experts, f"layer {layer}: {figures}; rank {worst[0]} holds experts {names}")
    experts = tuple(sorted({expert for _, named in why for expert in named}))
    text = " or ".join(words for words, _ in why)
    return CountFinding(layer, ranks, experts, f"layer {layer}: {figures}; the booked figures fit {text}")


@dataclass(frozen=True)
class _Explanations:
    """Single changes of one layer's map that give the booked figures exactly."""

    placement: Placement
    expert_P: Ints
    booked_R: Ints
    served_P: Ints
    counts_SE: Ints

    def all(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Words and experts of each."""
        yield from self._swaps()
        yield from self._missing()
        yield from self._spare()

    def _fits(self, changed_P: Ints, slots: int) -> bool:
        again_R = rank_tokens(self.counts_SE, changed_P, slots).sum(axis=0)
        return bool(np.array_equal(again_R, self.booked_R))

    @property
    def _difference_R(self) -> Ints:
        served_R: Ints = self.served_P.reshape(len(self.booked_R), -1).sum(axis=1)
        return served_R - self.booked_R

    def _swaps(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        slots, windows = self.placement.slots_per_rank, len(self.counts_SE)
        difference_R = self._difference_R
        rank_P = np.arange(len(self.expert_P)) // slots
        more = np.flatnonzero((difference_R[rank_P] > 0) & (self.expert_P >= 0))
        fewer = np.flatnonzero((difference_R[rank_P] < 0) & (self.expert_P >= 0))
        for one in more.tolist():
            # sharing among copies rounds once per window, so served figures only guide the choice
            moved = self.served_P[one] - self.served_P[fewer]
            close = np.abs(moved - difference_R[rank_P[one]]) <= 2 * windows
            for other in fewer[close].tolist():
                changed_P = self.expert_P.copy()
                changed_P[[one, other]] = changed_P[[other, one]]
                if self._fits(changed_P, slots):
                    a, b = int(self.expert_P[one]), int(self.expert_P[other])
                    yield (
                        f"experts {a} (rank {rank_P[one]}) and {b} (rank {rank_P[other]}) in each other's place",
                        (a, b),
                    )

    def _missing(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        slots = self.placement.slots_per_rank
        by_rank = self.expert_P.reshape(-1, slots)
        for rank in np.flatnonzero(self._difference_R < 0).tolist():
            for expert in range(self.counts_SE.shape[1]):
                if expert in by_rank[rank]:
                    continue
                changed = np.pad(by_rank, ((0, 0), (0, 1)), constant_values=-1)
                changed[rank, -1] = expert
                if self._fits(changed.reshape(-1), slots + 1):
                    yield f"one more copy of expert {expert} on rank {rank}", (expert,)

    def _spare(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        slots = self.placement.slots_per_rank
        rank_P = np.arange(len(self.expert_P)) // slots
        for slot in np.flatnonzero((self._difference_R[rank_P] > 0) & (self.expert_P >= 0)).tolist():
            changed_P = self.expert_P.copy()
            changed_P[slot] = -1
            if (changed_P == self.expert_P[slot]).any() and self._fits(changed_P, slots):
                expert = int(self.expert_P[slot])
                yield f"no copy of expert {expert} on rank {rank_P[slot]}", (expert,)
