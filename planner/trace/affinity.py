"""Which experts are chosen together, by one token in one layer and from one layer to the next.

Pairs within a layer are counted over all tokens, the rest on the tokens sampled into windows (`TokenSets`). What a
pair shows is held against chance: for
two experts of one layer their popularity alone, for two layers the same tokens shuffled within their
window, so that popularity and its drift stay.

Legend: N sampled tokens, L layers, K choices, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import comb
from typing import Final

import numpy as np
from numpy.typing import NDArray

from planner.trace.windows import TokenSets

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_COUNTED: Final = 5.0
"""Pairs expected less often than this are left out of lifts: their counts are noise."""
_TOP_PAIRS: Final = 0.1
_TOP_SUCCESSORS: Final = 0.2


@dataclass(frozen=True)
class CoActivation:
    """Lift: how much more often two experts of a layer are chosen together than their popularity alone would give."""

    median_lift: float
    p90_lift: float
    p99_lift: float
    top_pairs_mass: float
    """Part of all pairs that the most frequent tenth of the possible pairs holds."""
    chance_mass: float
    """The same if only popularity counted."""


@dataclass(frozen=True)
class NextLayer:
    """How much the choice in one traced layer tells of the choice in the next."""

    top_successors_mass: float
    """Part of the choices that go to the most frequent fifth of the experts, given an expert of the layer before."""
    chance_mass: float
    """The same for shuffled tokens."""


def chosen_NE(experts_NK: NDArray[np.int32], num_experts: int) -> NDArray[np.float32]:
    """1 where a token chose an expert [N, E]."""
    marks = np.zeros((len(experts_NK), num_experts + 1), dtype=np.float32)
    np.put_along_axis(marks, np.where(experts_NK < 0, num_experts, experts_NK), 1, axis=1)
    return marks[:, :num_experts]


def co_activation(pairs_LEE: Ints, popularity_LE: Ints) -> list[CoActivation]:
    """Pairs within each layer; empty where tokens choose one expert only.

    Args:
        pairs_LEE: how often two experts are chosen by the same token, symmetric (`aggregate.co_activation_counts`).
        popularity_LE: how often each expert is chosen.
    """
    if not pairs_LEE.any():
        return []
    upper = np.triu_indices(pairs_LEE.shape[1], 1)
    return [
        _pairs(pairs_EE[upper], popularity_E, upper)
        for pairs_EE, popularity_E in zip(pairs_LEE, popularity_LE, strict=True)
    ]


def _pairs(pairs_P: Ints, popularity_E: Ints, upper: tuple[Ints, Ints]) -> CoActivation:
    share_E = popularity_E / max(popularity_E.sum(), 1)
    expected_P = share_E[upper[0]] * share_E[upper[1]]
    expected_P *= pairs_P.sum() / max(expected_P.sum(), 1e-300)  # as many pairs as there are
    counted = expected_P >= min(_COUNTED, float(np.quantile(expected_P, 0.9)))
    lift = pairs_P[counted] / np.maximum(expected_P[counted], 1e-9)
    return CoActivation(
        median_lift=float(np.median(lift)),
        p90_lift=float(np.quantile(lift, 0.9)),
        p99_lift=float(np.quantile(lift, 0.99)),
        top_pairs_mass=_top_mass(pairs_P[None].astype(float), _TOP_PAIRS),
        chance_mass=_top_mass(expected_P[None], _TOP_PAIRS),
    )


def next_layer(sets: TokenSets, num_experts: int) -> list[NextLayer]:
    """From each traced layer to the next; one entry fewer than layers."""
    marks = [chosen_NE(experts_NK, num_experts) for experts_NK in sets.experts_NLK.transpose(1, 0, 2)]
    rng = np.random.default_rng(0)
    shuffled_N = np.lexsort((rng.random(len(sets.window_N)), sets.window_N))  # window_N ascends: stays within
    found = []
    for before, after in pairwise(marks):
        seen = before.T @ after
        chance = before.T @ after[shuffled_N]
        found.append(NextLayer(_top_mass(seen, _TOP_SUCCESSORS), _top_mass(chance, _TOP_SUCCESSORS)))
    return found


def _top_mass(counts: NDArray[np.float32] | Floats, part: float) -> float:
    """Part of the sum that the largest entries of each row hold, so many per row."""
    top = max(1, round(part * counts.shape[1]))
    largest = np.partition(counts, counts.shape[1] - top, axis=1)[:, counts.shape[1] - top :]
    total = float(counts.sum())
    return float(largest.sum()) / total if total else 0.0


def distinct_units(sets: TokenSets, unit_E: NDArray[np.int64]) -> Floats:
    """Units (nodes, GPUs) that a token's experts lie on, mean over tokens, in each layer [L].

    Args:
        sets: sampled tokens.
        unit_E: the unit of each expert.
    """
    units = int(unit_E.max()) + 1
    unit_NLK = np.where(sets.experts_NLK < 0, units, unit_E[sets.experts_NLK])
    visited = np.zeros((*unit_NLK.shape[:2], units + 1), dtype=bool)
    np.put_along_axis(visited, unit_NLK, values=True, axis=2)
    mean_L: Floats = visited[:, :, :units].sum(axis=2).mean(axis=0)
    return mean_L


def distinct_units_by_chance(unit_E: NDArray[np.int64], top_k: int) -> float:
    """The same if every set of `top_k` experts were equally likely: sum over units of 1 - C(E - e, K) / C(E, K)."""
    experts = len(unit_E)
    inside_V = np.bincount(unit_E)
    return float(sum(1 - comb(experts - inside, top_k) / comb(experts, top_k) for inside in inside_V.tolist()))
