"""Served choices against the figures that the plan books, and what would explain a difference.

The booked figures are per rank; receivers count per slot. So a wrong map shows as ranks that serve too much
or too little, and single changes of the map are tried out until one gives the booked figures exactly: two
experts swapped, a copy missing, a copy too many.

Legend: L layers, P slots, R EP ranks, E experts, S windows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from planner.cost.served import ByHome, rank_tokens
from planner.plan.placement import Placement, copies_E

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
    placement: Placement,
    booked_LR: Ints,
    served_LP: Ints,
    counts_SLE: Ints,
    layers: tuple[int, ...],
    by_home: Callable[[int], ByHome | None] = lambda _: None,
) -> list[CountFinding]:
    """Everything that receivers counted wrongly.

    Args:
        placement: the map under test.
        booked_LR: `rank_tokens` of the plan, for all its MoE layers.
        served_LP: choices that each slot served, for the replayed layers.
        counts_SLE: what was recorded, for the replayed layers.
        layers: the replayed hidden layers.
        by_home: choices of all experts of a layer by home; None where copies share evenly.
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
            tried = None
            if explain:
                tried = _Explanations(placement, expert_P, booked_LR[row], served_P, counts_SE, by_home(layer))
            found.append(_wrong(layer, placement, expert_P, booked_LR[row], served_P, tried))
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
    tried: _Explanations | None,
) -> CountFinding:
    served_R = served_P.reshape(placement.num_ranks, -1).sum(axis=1)
    difference_R = served_R - booked_R
    ranks = tuple(np.flatnonzero(difference_R).tolist())
    worst = sorted(ranks, key=lambda rank: -abs(int(difference_R[rank])))[:_SHOWN]
    figures = ", ".join(f"rank {r} served {served_R[r]:,} choices, {booked_R[r]:,} are booked" for r in worst)
    if len(ranks) > _SHOWN:
        figures += f", and {len(ranks) - _SHOWN} more ranks"
    why = [] if tried is None else list(islice(tried.all(), _SHOWN))
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
    by_home: ByHome | None

    def all(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Words and experts of each."""
        yield from self._swaps()
        yield from self._missing()
        yield from self._spare()

    def _fits(self, changed_P: Ints, slots: int, *experts: int) -> bool:
        """Whether a map in which these experts moved gives the booked figures."""
        wrong_R = self._unchanged_R != self.booked_R
        for map_P in (self.expert_P, changed_P):
            wrong_R &= ~np.isin(map_P, experts).reshape(len(wrong_R), -1).any(axis=1)
        if wrong_R.any():  # ranks that hold none of them, before or after
            return False
        before_R = self._served_R(self.expert_P, self.placement.slots_per_rank, experts)
        again_R = self._unchanged_R - before_R + self._served_R(changed_P, slots, experts)
        return bool(np.array_equal(again_R, self.booked_R))

    @cached_property
    def _unchanged_R(self) -> Ints:
        """What the map under test should serve."""
        return self._served_R(self.expert_P, self.placement.slots_per_rank, range(self.counts_SE.shape[1]))

    def _served_R(self, map_P: Ints, slots: int, experts: Sequence[int]) -> Ints:
        """Choices of some experts that each rank serves under a map."""
        some = np.array(sorted(experts))
        by_home = self.by_home and self.by_home.of(some)
        only_P = np.where(np.isin(map_P, some), map_P, -1)
        served: Ints = rank_tokens(self.counts_SE, only_P, slots, by_home).sum(axis=0)
        return served

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
        copied_P = copies_E(self.expert_P, self.counts_SE.shape[1])[self.expert_P] > 1
        for one in more.tolist():
            # sharing among copies rounds once per window, so served figures only guide the choice
            moved = self.served_P[one] - self.served_P[fewer]
            close = np.abs(moved - difference_R[rank_P[one]]) <= 2 * windows
            if self.by_home is not None:  # elsewhere a copy is the nearest to others, and serves another number
                close |= copied_P[one] | copied_P[fewer]
            for other in fewer[close].tolist():
                changed_P = self.expert_P.copy()
                changed_P[[one, other]] = changed_P[[other, one]]
                a, b = int(self.expert_P[one]), int(self.expert_P[other])
                if self._fits(changed_P, slots, a, b):
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
                if self._fits(changed.reshape(-1), slots + 1, expert):
                    yield f"one more copy of expert {expert} on rank {rank}", (expert,)

    def _spare(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        slots = self.placement.slots_per_rank
        rank_P = np.arange(len(self.expert_P)) // slots
        for slot in np.flatnonzero((self._difference_R[rank_P] > 0) & (self.expert_P >= 0)).tolist():
            changed_P = self.expert_P.copy()
            changed_P[slot] = -1
            expert = int(self.expert_P[slot])
            if (changed_P == expert).any() and self._fits(changed_P, slots, expert):
                yield f"no copy of expert {expert} on rank {rank_P[slot]}", (expert,)
