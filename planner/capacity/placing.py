"""Ways to place experts when nothing but recorded routing is known: no model, no machine, only rows per rank.

Legend: S windows, L layers, E experts, P slots, R ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner import baselines
from planner.errors import UsageError
from planner.plan.placement import linear, slots_of_ranks
from planner.solve.place import LayerJob
from planner.solve.problem import plain_load_problem
from planner.solve.workers import Workers
from planner.trace.windows import Windows

Ints = NDArray[np.int64]
Place = Callable[[Windows], Ints]
"""Makes a placement [L, P] from windows."""


@dataclass(frozen=True)
class Ranks:
    """The expert-parallel group for which balancing is judged."""

    ranks: int
    slots: int
    """Physical experts of each layer on all ranks."""


def ranks_for(num_experts: int, ranks: int | None, redundant: int | None) -> Ranks:
    """The group to judge for: default 8 ranks (fewer experts: as many as they are), one redundant expert each.

    Raises:
        UsageError: more ranks than experts, or slots that the ranks cannot share equally.
    """
    count = min(8, num_experts) if ranks is None else ranks
    if count > num_experts:
        raise UsageError(f"{count} ranks for {num_experts} experts", hint="at most one rank per expert")
    spare = _spare(num_experts, count) if redundant is None else redundant
    slots = num_experts + spare
    if slots % count:
        hint = f"redundant experts: {-num_experts % count}, or that plus a multiple of {count}"
        raise UsageError(f"{num_experts} + {spare} experts do not divide over {count} ranks", hint=hint)
    if slots // count > num_experts:
        raise UsageError(f"{slots // count} slots per rank, but there are {num_experts} experts")
    return Ranks(count, slots)


def _spare(num_experts: int, ranks: int) -> int:
    """The least that divides, and one more on each rank, unless it holds all experts already."""
    fill = -num_experts % ranks
    return fill + ranks if (num_experts + fill) // ranks < num_experts else fill


def eplb_place(group: Ranks) -> Place:
    """EPLB's placement of the summed load: what engines would load."""

    def place(windows: Windows) -> Ints:
        weight_LE = baselines.weights_of(windows)
        slots_R = np.full(group.ranks, group.slots // group.ranks)
        expert_LP = baselines.place("eplb", weight_LE, slots_R, num_groups=1, num_nodes=1)
        assert expert_LP is not None, "equal ranks, one group"
        return expert_LP

    return place


def linear_place(num_experts: int, num_layers: int, ranks: int) -> Ints:
    """What engines use unasked: experts in order, no copies."""
    return np.tile(linear(num_experts, slots_of_ranks(num_experts, ranks)), (num_layers, 1))


def search_place(group: Ranks, workers: Workers) -> Place:
    """The placement of `ep-plan solve`, if a rank's time were its rows: good on every window, not on their sum."""
    slots_R = np.full(group.ranks, group.slots // group.ranks)

    def place(windows: Windows) -> Ints:
        loads = windows.counts_SLE.transpose(1, 0, 2).astype(float)
        jobs = [LayerJob(plain_load_problem(load_SE, slots_R), effort=0.0, seed=0, gap=0.0) for load_SE in loads]
        placed = dict(workers.place(jobs))
        return np.stack([placed[layer].expert_P for layer in range(len(jobs))])

    return place
