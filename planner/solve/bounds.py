"""Lower bounds on a layer's time that hold for every placement (docs/model.md, "Bounds").

Per window, the most loaded rank is at least as slow as
(B1) the mean rank: the expert time is convex, so a rank with mean rows and mean touched experts
     is no slower than the slowest (Jensen);
(B2) the rank of the hottest copy: with N spare slots the least possible largest copy is what giving
     copies one by one to the largest reaches;
(B3) without spare slots, some rank holds j + 1 of the j * R + 1 hottest experts (pigeonhole), and
     fills its other slots with at least the coldest ones.
Traffic is at least that of balanced ranks (B4). The mean over windows of these is the bound.

Legend: S windows, E experts, R ranks, D domains.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from planner.cost.traffic import Exchange
from planner.solve.problem import LayerProblem

Floats = NDArray[np.float64]


def bound_parts_S(problem: LayerProblem) -> tuple[Floats, Floats]:
    """Least expert seconds, and least traffic seconds per byte of a copy, in each window."""
    rows_S = _largest_rows(problem)
    expert_S = np.maximum(_mean_rank(problem), _hottest(problem, rows_S))
    mean_S = problem.rows_SE.sum(axis=1) / problem.num_ranks
    gather_S = np.maximum(rows_S, mean_S) * problem.moe.gather_s_per_row_byte
    return expert_S, _volume(problem, rows_S) + gather_S


def layer_bound_S(problem: LayerProblem) -> Floats:
    """Seconds that no placement of this layer can beat, in each window."""
    return problem.moe.times(*bound_parts_S(problem)).total_S


def layer_bound(problem: LayerProblem) -> float:
    """Seconds that no placement of this layer can beat, on average over windows."""
    return float(layer_bound_S(problem).mean())


def _mean_rank(problem: LayerProblem) -> Floats:
    """(B1)."""
    ranks = problem.num_ranks
    rows_S = problem.rows_SE.sum(axis=1) / ranks
    touched_S = least_touched_S(problem) / ranks
    return problem.moe.expert_s(rows_S, touched_S, problem.num_slots / ranks)


def least_touched_S(problem: LayerProblem) -> Floats:
    """Least sum over ranks of the experts touched, however copies are given.

    k copies of an expert are touched k * t(k) times. With at least one choice in the step that grows
    with k by ever less, so the spare slots add at least the last increments, at the most copies
    possible, of the coldest experts. With less than one it falls towards the expert's rows.
    """
    touched_S = problem.touched_SE(1.0).sum(axis=1)
    spare, most = problem.num_slots - problem.num_experts, problem.most_copies
    if spare == 0 or most == 1:
        return np.asarray(touched_S)
    last_SE = most * problem.touched_SE(float(most)) - (most - 1) * problem.touched_SE(float(most - 1))
    coldest_SE = np.sort(np.maximum(last_SE, 0.0), axis=1)
    experts, rest = divmod(spare, most - 1)
    added_S = coldest_SE[:, :experts].sum(axis=1) * (most - 1)
    if rest:
        added_S = added_S + coldest_SE[:, experts] * rest
    choices_S = problem.load.choices_S * problem.moe.tokens
    fewest_S = np.minimum(problem.rows_SE.sum(axis=1), touched_S)
    return np.asarray(np.where(choices_S >= 1, touched_S + added_S, fewest_S))


def _largest_rows(problem: LayerProblem) -> Floats:
    """Rows that some rank must serve: (B2) and (B3)."""
    rows_SE = problem.rows_SE
    if problem.num_slots > problem.num_experts:
        return _smallest_largest_copy(rows_SE, problem.num_slots - problem.num_experts, problem.num_ranks)
    falling_SE = -np.sort(-rows_SE, axis=1)
    return _pigeonhole(falling_SE, problem.num_ranks, int(problem.slots_R.min()))


def _smallest_largest_copy(rows_SE: Floats, spare: int, ranks: int) -> Floats:
    """(B2): spare slots one by one to the largest copy, each window by itself."""
    copies_SE = np.ones(rows_SE.shape)
    window_S = np.arange(len(rows_SE))
    for _ in range(spare):
        copies_SE[window_S, (rows_SE / copies_SE).argmax(axis=1)] += 1
    return np.asarray((rows_SE / np.minimum(copies_SE, ranks)).max(axis=1))


def _pigeonhole(falling_SE: Floats, ranks: int, fewest_slots: int) -> Floats:
    """(B3) over all j; `falling_SE` sorted from large to small."""
    experts = falling_SE.shape[1]
    from_small = np.cumsum(falling_SE[:, ::-1], axis=1)
    from_large = np.cumsum(falling_SE, axis=1)
    best = falling_SE[:, 0].copy()
    for others in range((experts - 1) // ranks + 1):
        last = others * ranks
        together = from_large[:, last] - (from_large[:, last - others - 1] if last > others else 0.0)
        rest = fewest_slots - others - 1
        if rest < 0:
            break
        rest = min(rest, experts - last - 1)
        best = np.maximum(best, together + (from_small[:, rest - 1] if rest > 0 else 0.0))
    return best


def _hottest(problem: LayerProblem, rows_S: Floats) -> Floats:
    """Expert time of a rank with at least so many rows; its weights touched are at least none."""
    return problem.moe.expert_s(rows_S, np.zeros_like(rows_S), float(problem.slots_R.min()))


def _volume(problem: LayerProblem, rows_S: Floats) -> Floats:
    """(B4): seconds per byte on the slowest unit, whatever the placement."""
    moe = problem.moe
    shard = 1.0 / moe.etp
    worst_S = np.zeros_like(rows_S)
    if not moe.has_exchange:
        return worst_S
    for exchange in moe.exchanges:
        for level in exchange.group.levels_used:
            seconds = exchange.seconds_per_byte_V[level] * shard
            worst_S = np.maximum(worst_S, _level(problem, exchange, level, rows_S) * seconds)
    return worst_S


def _level(problem: LayerProblem, exchange: Exchange, level: int, rows_S: Floats) -> Floats:
    """Least volume of the busiest unit at one level."""
    if exchange.dedup == "node" and exchange.num_domains > 1:
        if level <= exchange.scale_up_level:
            return np.zeros_like(rows_S)  # all of a token's experts may share its home's rank
        return _between_domains(problem, exchange, level)
    if exchange.ranks_share_volume:
        total_S, peak_S = problem.rows_SE.sum(axis=1), rows_S
    else:
        total_S, peak_S = _visits(problem, exchange.num_ranks)
    reach_RR = exchange.reach_RR(level) / exchange.num_ranks
    received_R, sent_R = reach_RR.sum(axis=1), reach_RR.mean(axis=1)
    if (received_R <= 0).any():
        return np.zeros_like(rows_S)
    spread_S = total_S / (1.0 / received_R).sum()  # rows placed so that all ranks receive equally
    least: Floats = np.maximum(np.maximum(spread_S, total_S * sent_R.min()), peak_S * received_R.min())
    return least


def _between_domains(problem: LayerProblem, exchange: Exchange, level: int) -> Floats:
    """Copies that leave their home's domain, per GPU of the busiest domain.

    Homes are uniform, so of the tokens that visit a domain the part 1 - (its share of the ranks)
    comes from outside.
    """
    total_S, peak_S = _visits(problem, exchange.num_domains)
    if not _outermost(exchange, level):
        return np.zeros_like(total_S)
    ranks_D = exchange.in_domain_RD.sum(axis=0)
    away_D = 1.0 - ranks_D / exchange.num_ranks
    on_average_S = total_S * away_D.min() / exchange.num_ranks
    least: Floats = np.maximum(on_average_S, peak_S * (away_D / ranks_D).min())
    return least


def _visits(problem: LayerProblem, units: int) -> tuple[Floats, Floats]:
    """Least tokens visiting all units together, and visiting the busiest unit.

    Every token visits some unit. If experts are chosen independently, the busiest unit is visited
    with probability 1 - exp(-max_n g_n), g_n = sum_e -log(1 - p_e q_en), and the largest g is at
    least the mean; splitting an expert lowers its sum least when all its copies lie apart.
    """
    load, tokens = problem.load, problem.moe.tokens
    if load.sets is not None:
        total_S = _recorded_tokens(problem)
        return total_S * tokens, total_S * tokens / units
    chosen_SE = np.minimum(load.share_SE * load.choices_S[:, None], 1.0)
    apart = min(units, problem.most_copies)
    with np.errstate(divide="ignore"):
        sum_S = -(apart * np.log1p(-chosen_SE / apart)).sum(axis=1)
    peak_S = -np.expm1(-sum_S / units)
    return np.maximum(peak_S, -np.expm1(-sum_S)) * tokens, peak_S * tokens


def _recorded_tokens(problem: LayerProblem) -> Floats:
    """Part of each window's sampled tokens that chose any expert."""
    sets = problem.load.sets
    assert sets is not None
    some_N = (sets.experts_NLK[:, 0] >= 0).any(axis=1).astype(float)
    windows = problem.num_windows
    hits = np.bincount(sets.window_N, weights=some_N, minlength=windows)
    return np.asarray(hits / np.maximum(np.bincount(sets.window_N, minlength=windows), 1))


def _outermost(exchange: Exchange, level: int) -> bool:
    """Whether every message between domains loads the port at this level."""
    last = len(exchange.ports) - 1
    return level == exchange.scale_up_level + 1 and exchange.ports[last] == exchange.ports[level]
