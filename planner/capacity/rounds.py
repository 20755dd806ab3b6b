"""The order in which experts of one layer change ranks, so that no rank ever holds more than it has room for.

A rank may hold some experts more than it has slots for, as its free memory allows. Experts travel in rounds. Before a
round experts that a rank no longer needs give way, if a copy stays on another rank; in a round as many travel as there
is room for. So every expert has a copy at any time, and weights that are copies can be overwritten in place.

An order is found wherever one of the ranks that are left waiting has room for one expert more: were all of them full of
experts that only they hold, as many would have to leave them as arrive, and none would have room. Without such room
the moves that let another rank go on come first, those on a circle of ranks before all others.

Legend: R EP ranks, E experts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Travel:
    """An expert from one rank to another."""

    expert: int
    source: int
    target: int


@dataclass(frozen=True)
class Round:
    """What happens at once."""

    gives_way: tuple[tuple[int, int], ...]
    """Experts, each with the rank whose copy is dropped beforehand."""
    travels: tuple[Travel, ...]


@dataclass(frozen=True)
class Order:
    """All rounds of a layer."""

    rounds: tuple[Round, ...]
    most_R: tuple[int, ...]
    """Experts that a rank holds at most beyond its slots."""
    lacking: tuple[int, ...]
    """Ranks that were given room for one expert more than they have, as no order exists without."""


class _Layer:
    """Who holds what on the way."""

    def __init__(self, held: Sequence[set[int]], wanted: Sequence[set[int]], free_R: Sequence[int]) -> None:
        self.held = [set(experts) for experts in held]
        self.wanted = wanted
        self.slots = [len(experts) for experts in held]
        self.free = list(free_R)
        self.most = [0] * len(held)
        self.copies = Counter(expert for experts in held for expert in experts)
        self.waiting = [(expert, rank) for rank, new in enumerate(wanted) for expert in sorted(new - held[rank])]

    def holders(self, expert: int) -> list[int]:
        """Ranks that hold an expert."""
        return [rank for rank, experts in enumerate(self.held) if expert in experts]

    def room(self, rank: int) -> int:
        """Experts that a rank can take besides."""
        return self.slots[rank] + self.free[rank] - len(self.held[rank])

    def spare(self, rank: int, locked: set[tuple[int, int]]) -> int | None:
        """An expert that a rank can drop: not wanted, not being sent, and another copy stays; the commonest first."""
        found = [
            expert
            for expert in sorted(self.held[rank] - self.wanted[rank])
            if self.copies[expert] > 1 and (expert, rank) not in locked
        ]
        return max(found, key=lambda expert: self.copies[expert], default=None)

    def drop(self, expert: int, rank: int) -> None:
        """A copy is gone."""
        self.held[rank].remove(expert)
        self.copies[expert] -= 1

    def ranked(self) -> list[tuple[int, int]]:
        """Who waits, those first whose arrival lets another rank go on, and of these those on a circle."""
        if all(self.room(rank) > 0 for _, rank in self.waiting):
            return self.waiting
        ranks = len(self.held)
        frees_RR = np.zeros((ranks, ranks), dtype=bool)
        single = {}
        for expert, target in self.waiting:
            holders = self.holders(expert)
            if len(holders) == 1 and expert not in self.wanted[holders[0]]:
                single[expert, target] = holders[0]
                frees_RR[holders[0], target] = True
        reach_RR = _reached(frees_RR)

        def turn(one: tuple[int, int]) -> tuple[int, int, int]:
            source = single.get(one)
            rank = 2 if source is None else 0 if reach_RR[one[1], source] else 1
            return rank, one[1], one[0]

        return sorted(self.waiting, key=turn)

    def step(self, level_RR: Ints, at_once: int) -> Round | None:
        """One round of so many travels at most; None if nothing can travel."""
        gone: list[tuple[int, int]] = []
        travels: list[Travel] = []
        locked: set[tuple[int, int]] = set()
        sends: Counter[int] = Counter()
        coming: Counter[int] = Counter()
        awaited = {expert for expert, _ in self.waiting}
        for rank in range(len(self.held)):
            for expert in sorted(self.held[rank] - self.wanted[rank] - awaited):
                if len(self.held[rank]) > self.slots[rank] and self.copies[expert] > 1:
                    self.drop(expert, rank)
                    gone.append((expert, rank))
        for expert, target in self.ranked():
            if len(travels) == at_once:
                break
            holders = self.holders(expert)
            source = min(holders, key=lambda rank: (level_RR[rank, target], sends[rank], rank))
            if self.room(target) - coming[target] < 1:
                spare = self.spare(target, locked)
                if spare is None:
                    continue
                self.drop(spare, target)
                gone.append((spare, target))
            locked.add((expert, source))
            sends[source] += 1
            coming[target] += 1
            travels.append(Travel(expert, source, target))
        for one in travels:
            self.held[one.target].add(one.expert)
            self.copies[one.expert] += 1
        for rank, experts in enumerate(self.held):
            self.most[rank] = max(self.most[rank], len(experts) - self.slots[rank])
        done = {(one.expert, one.target) for one in travels}
        self.waiting = [one for one in self.waiting if one not in done]
        return Round(tuple(gone), tuple(travels)) if travels else None


def in_rounds(held: Sequence[set[int]], wanted: Sequence[set[int]], free_R: Sequence[int], level_RR: Ints) -> Order:
    """The order of one layer's moves.

    Args:
        held: experts of each rank now.
        wanted: experts of each rank afterwards; each rank as many as now.
        free_R: experts that each rank has room for beyond its slots.
        level_RR: how far ranks are from each other.
    """
    many = sum(map(len, wanted))
    found = _order(_Layer(held, wanted, free_R), level_RR, many)
    if not found.lacking:
        return found
    slow = _order(_Layer(held, wanted, free_R), level_RR, 1)  # where there is next to no room, one by one finds more
    return found if slow.lacking else slow


def _order(layer: _Layer, level_RR: Ints, at_once: int) -> Order:
    rounds, lacking = [], []
    while layer.waiting:
        done = layer.step(level_RR, at_once)
        if done is not None:
            rounds.append(done)
            continue
        rank = min(target for _, target in layer.waiting)
        layer.free[rank] += 1
        lacking.append(rank)
    return Order(tuple(rounds), tuple(layer.most), tuple(lacking))


def _reached(edge_RR: Bools) -> Bools:
    """Which ranks can be reached from which over one or more edges."""
    reach_RR = edge_RR.copy()
    for _ in range(len(edge_RR).bit_length()):
        reach_RR |= np.einsum("ab,bc->ac", reach_RR, reach_RR, dtype=np.int64) > 0
    return reach_RR
