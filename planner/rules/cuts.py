"""Where the layers are cut into stages: dynamic programming over contiguous runs of layers.

The slowest stage counts, so its time is minimised first; memory of every stage is a hard limit
(docs/model.md, "Cuts").

Legend: K stages, L hidden layers, Q kinds of ranks of a stage by memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from planner.plan.placement import slots_of_ranks

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class StageLimits:
    """Seconds and bytes of each layer on each stage, and what each stage has besides."""

    layer_s_KL: Floats
    extra_s_K: Floats
    layer_bytes_KQL: Ints
    base_bytes_K: Ints
    capacity_KQ: Ints
    layers_K: tuple[int, ...] | None = None
    """Layers of each stage where there is no choice."""


def even_layers(layers: int, stages: int) -> tuple[int, ...]:
    """Layers of each stage, as equally many as can be, the first stages longer."""
    return tuple(slots_of_ranks(layers, stages).tolist())


@dataclass(frozen=True)
class BestCuts:
    """Cuts with the least slowest stage, its seconds, and the least sum of all stages of any cuts."""

    cuts: tuple[range, ...]
    slowest_s: float
    least_sum_s: float


def best_cuts(limits: StageLimits) -> BestCuts | None:
    """The cuts whose slowest stage is fastest among those that fit in memory; None if none fits.

    Among equally good cuts the last stages are the longest.
    """
    stages, layers = limits.layer_s_KL.shape
    slowest = np.full(layers + 1, np.inf)
    least_sum = np.full(layers + 1, np.inf)
    slowest[0] = least_sum[0] = 0.0
    choices = []
    for stage in range(stages):
        cost_ij, fits_ij = _segments(limits, stage)
        worst_ij = np.where(fits_ij, np.maximum(slowest[:, None], cost_ij), np.inf)
        total_ij = np.where(fits_ij, least_sum[:, None] + cost_ij, np.inf)
        choices.append(worst_ij.argmin(axis=0))
        slowest, least_sum = worst_ij.min(axis=0), total_ij.min(axis=0)
    if not np.isfinite(slowest[layers]):
        return None
    cuts = _followed_back(choices, layers)
    return BestCuts(cuts, float(slowest[layers]), float(least_sum[layers]))


def _segments(limits: StageLimits, stage: int) -> tuple[Floats, NDArray[np.bool_]]:
    """Seconds of the layers [i, j) on a stage, and whether they fit; at least one layer each."""
    seconds = np.concatenate([[0.0], np.cumsum(limits.layer_s_KL[stage])])
    cost_ij = seconds[None, :] - seconds[:, None] + limits.extra_s_K[stage]
    index = np.arange(len(seconds))
    fits_ij = (_over(limits, stage) <= 0) & (index[:, None] < index[None, :])
    if limits.layers_K is not None:
        first, count = sum(limits.layers_K[:stage]), limits.layers_K[stage]
        fits_ij &= (index[:, None] == first) & (index[None, :] == first + count)
    return cost_ij, fits_ij


def _over(limits: StageLimits, stage: int) -> Ints:
    """Bytes by which the rank that lacks most is over its memory with the layers [i, j); below 0 if it has room."""
    none_Q = np.zeros((limits.layer_bytes_KQL.shape[1], 1), dtype=np.int64)
    num_bytes = np.concatenate([none_Q, np.cumsum(limits.layer_bytes_KQL[stage], axis=1)], axis=1)
    room_Q = limits.capacity_KQ[stage] - limits.base_bytes_K[stage]
    over_Qij = num_bytes[:, None, :] - num_bytes[:, :, None] - room_Q[:, None, None]
    return np.asarray(over_Qij.max(axis=0))


def least_memory_excess(limits: StageLimits) -> tuple[int, int, int]:
    """How far the fullest rank is over its memory under the cuts that need least, its stage, and its kind."""
    over = []
    for k, layers in enumerate(cuts_of_least_memory(limits)):
        num_bytes_Q = limits.layer_bytes_KQL[k, :, layers.start : layers.stop].sum(axis=1) + limits.base_bytes_K[k]
        over_Q = num_bytes_Q - limits.capacity_KQ[k]
        over.append((int(over_Q.max()), k, int(over_Q.argmax())))
    return max(over, key=lambda found: found[0])


def cuts_of_least_memory(limits: StageLimits) -> tuple[range, ...]:
    """The cuts whose fullest stage has most room (or lacks least), where there is a choice."""
    stages, _, layers = limits.layer_bytes_KQL.shape
    if stages == 1:
        return (range(layers),)
    if limits.layers_K is not None:
        ends = np.cumsum([0, *limits.layers_K]).tolist()
        return tuple(range(first, end) for first, end in pairwise(ends))
    never = np.iinfo(np.int64).max // 2
    excess = np.full(layers + 1, never, dtype=np.int64)
    excess[0] = -never
    index = np.arange(layers + 1)
    choices = []
    for stage in range(stages):
        worst_ij = np.where(index[:, None] < index[None, :], np.maximum(excess[:, None], _over(limits, stage)), never)
        choices.append(worst_ij.argmin(axis=0))
        excess = worst_ij.min(axis=0)
    return _followed_back(choices, layers)


def _followed_back(choices: list[Ints], layers: int) -> tuple[range, ...]:
    """Stages from the choices of each step of the dynamic program."""
    ends = [layers]
    for choice in reversed(choices):
        ends.append(int(choice[ends[-1]]))
    ends.reverse()
    return tuple(range(first, end) for first, end in pairwise(ends))
