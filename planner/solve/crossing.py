"""Copies of tokens that must travel where the nearest copy of an expert serves: (B8) of docs/model.md, "Bounds".

A home whose own rank holds an expert sends nothing, and one whose node does sends nothing over the links between
nodes. But a copy spares few homes: with k copies of an expert, all homes but those near one of the k send its
tokens over the level in question, and there are only so many copies to give away.

Legend: S windows, E experts, R ranks, K choices.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from planner.cost.blocks import PairBlock
from planner.cost.sends import Sends
from planner.solve.problem import LayerProblem

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def crossing_volume_S(problem: LayerProblem) -> Floats:
    """Seconds per byte on the slowest unit, whatever the placement, in each window."""
    exchange, worst_S = problem.moe.exchange, np.zeros(problem.num_windows)
    falling_of: dict[int, Floats] = {}
    for block in exchange.pair_blocks:
        if not isinstance(block, PairBlock):
            continue  # a slow pair may join ranks between which nothing need travel
        total_S = np.zeros(problem.num_windows)
        for one in block.passing:
            sends = exchange.sends[one.sends]
            if _by_rank(sends, one.passes_RR):
                slots = _most_slots(problem, sends)
                if slots not in falling_of:
                    falling_of[slots] = -np.sort(-_rows_SE(problem, slots), axis=1)
                total_S += _least_S(problem, falling_of[slots], one.passes_RR)
        # The busiest unit has at least the mean, weighted by what the units carry in a second.
        worst_S = np.maximum(worst_S, total_S / (1.0 / block.seconds_U).sum() / problem.moe.etp)
    return np.asarray(worst_S)


def _by_rank(sends: Sends, passes_RR: Bools) -> bool:
    """Whether what a rank is sent passes the level for sure: not if others forward it, or it enters elsewhere."""
    if sends.domain_RR is None:
        return True
    if (passes_RR & (sends.domain_R[:, None] == sends.domain_R)).any():
        return False
    _, first = np.unique(sends.domain_R, return_index=True)
    return bool((passes_RR == passes_RR[first[sends.domain_R]]).all())


def _rows_SE(problem: LayerProblem, slots: int) -> Floats:
    """Copies of tokens for each expert that travel for sure, if those of any of its homes do.

    Without de-duplication all rows. Else a copy serves all experts that a token needs on one rank (or domain), of
    which there are at most as many as its slots and as the token chose: that part of a copy is booked for each. If
    experts are chosen independently, with m of a token's choices on a rank on the mean, it is visited with probability
    1 - exp(-m) or more, and that is at least m (1 - exp(-M)) / M for the M of the experts that are chosen most.
    """
    load, moe = problem.load, problem.moe
    if moe.exchange.ranks_share_volume:
        return problem.rows_SE
    if load.sets is None:
        chosen_SE = load.chosen_SE
        most_S1 = -np.sort(-chosen_SE, axis=1)[:, :slots].sum(axis=1, keepdims=True)
        return np.asarray(chosen_SE * (-np.expm1(-most_S1) / most_S1) * moe.tokens)
    experts_NK = load.sets.experts_NLK[:, 0]
    chosen_SE = np.zeros(load.share_SE.shape)
    some_NK = experts_NK >= 0
    window_NK = np.broadcast_to(load.sets.window_N[:, None], experts_NK.shape)
    np.add.at(chosen_SE, (window_NK[some_NK], experts_NK[some_NK]), 1.0)
    tokens_S = np.maximum(np.bincount(load.sets.window_N, minlength=problem.num_windows), 1)
    return np.asarray(chosen_SE / tokens_S[:, None] / min(experts_NK.shape[1], slots) * moe.tokens)


def _most_slots(problem: LayerProblem, sends: Sends) -> int:
    """Slots of the largest rank, or of the largest domain where tokens travel once to a domain."""
    if sends.domain_RR is None:
        return int(problem.slots_R.max())
    return int(np.bincount(sends.domain_R, weights=problem.slots_R).max())


def _least_S(problem: LayerProblem, falling_SE: Floats, passes_RR: Bools) -> Floats:
    """Copies of all experts that pass a level at least, in one group.

    One copy spares the homes that it can serve without; each further one at most as many.

    Args:
        problem: the layer.
        falling_SE: what all homes of each expert together send, the most first.
        passes_RR: messages that pass the level.
    """
    ranks = problem.num_ranks
    spared = int((~passes_RR).sum(axis=1).max())
    if spared >= ranks:
        return np.zeros(len(falling_SE))
    left = ranks - spared
    most = min(problem.most_copies - 1, -(-left // spared))
    experts, rest = divmod(problem.num_slots - problem.num_experts, max(most, 1))
    saved_S = falling_SE[:, :experts].sum(axis=1) * min(most * spared, left)
    if rest and experts < problem.num_experts:
        saved_S = saved_S + falling_SE[:, experts] * min(rest * spared, left)
    return np.asarray(np.maximum(falling_SE.sum(axis=1) * left - saved_S, 0.0) / ranks)
