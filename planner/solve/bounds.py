"""Lower bounds on a layer's time that hold for every placement (docs/model.md, "Bounds").

Per window, the most loaded rank is at least as slow as
(B1) the mean rank: the expert time is convex, so a rank with mean rows and mean touched experts
     is no slower than the slowest (Jensen);
(B2) the rank of the hottest copy: with N spare slots the least possible largest copy is what giving
     copies one by one to the largest reaches;
(B3) without spare slots, some rank holds j + 1 of the j * R + 1 hottest experts (pigeonhole), and
     fills its other slots with at least the coldest ones;
(B7) with spare slots and few ways of giving them, the least that (B3) says of any of these.
The rows of (B2), (B3) and (B7) are in `fullest.py`; the rank that serves them touches at least the
experts that are touched least.
Ranks of several classes share the work so that each is busy as long at best (B5), and each has at
least the coldest experts in its slots (B6). Traffic is at least that of balanced ranks (B4), or where
the nearest copy serves what no number of copies spares (B8, `crossing.py`). The mean over windows of
these is the bound.

Legend: S windows, E experts, R ranks, C classes of ranks, U ports or uplinks.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from planner.cost.blocks import RANKS, Block
from planner.solve.crossing import crossing_volume_S
from planner.solve.fullest import largest_rows_S
from planner.solve.problem import LayerProblem, tangent

Floats = NDArray[np.float64]


def bound_parts_S(problem: LayerProblem) -> tuple[Floats, Floats]:
    """Least expert seconds, and least traffic seconds per byte of a copy, in each window."""
    rows_S = largest_rows_S(problem)
    expert_S = np.maximum(_mean_rank(problem), _hottest(problem, rows_S))
    mean_S = problem.rows_SE.sum(axis=1) / problem.num_ranks
    gather_S = np.maximum(rows_S, mean_S) * problem.moe.gather_s_per_row_byte
    return expert_S, _volume(problem, rows_S) + gather_S


def layer_bound_S(problem: LayerProblem) -> Floats:
    """Seconds that no placement of this layer can beat by its first kernel, in each window."""
    return problem.moe.times(*bound_parts_S(problem)).total_S


def layer_bounds(problem: LayerProblem, layers: int) -> Floats:
    """Seconds that no placement of so many layers can beat by any kernel, on average over the windows of each.

    Args:
        problem: the layers as one, their windows one after the other.
        layers: how many they are.
    """
    by_kernel = [layer_bound_S(way).reshape(layers, -1).mean(axis=1) for way in problem.ways]
    return np.asarray(np.min(by_kernel, axis=0))


def layer_bound(problem: LayerProblem) -> float:
    """Seconds that no placement of this layer can beat by any kernel, on average over windows."""
    return float(layer_bounds(problem, 1)[0])


def _mean_rank(problem: LayerProblem) -> Floats:
    """(B1) for ranks of one class, (B5) for others."""
    if problem.moe.num_classes > 1:
        return np.maximum(_weighted_ranks(problem), _coldest(problem))
    ranks = problem.num_ranks
    rows_S = problem.rows_SE.sum(axis=1) / ranks
    touched_S = least_touched_S(problem) / ranks
    return problem.moe.class_s(0, rows_S, touched_S, problem.num_slots / ranks)


def _weighted_ranks(problem: LayerProblem) -> Floats:
    """(B5): any weighted mean of the ranks' times, their tangents at the ratio of all rows and touches."""
    moe = problem.moe
    rows_S, touched_S = problem.rows_SE.sum(axis=1), least_touched_S(problem)
    plane = tangent(moe, rows_S, touched_S)
    constant_R = np.array([moe.kernels_C[c].base_s + moe.kernels_C[c].per_expert_s * q for c, q in _ranks(problem)])
    at_mean_CS = plane.per_row_CS * rows_S + plane.per_touched_CS * touched_S
    best_S = np.zeros_like(rows_S)
    for slow_CS in (at_mean_CS, plane.per_row_CS, plane.per_touched_CS):
        if (slow_CS <= 0).any():
            continue
        weight_CS = 1.0 / slow_CS
        weight_CS = weight_CS / weight_CS[moe.class_R].sum(axis=0)
        least_S = np.einsum("r,rs->s", constant_R, weight_CS[moe.class_R])
        least_S += (weight_CS * plane.per_row_CS).min(axis=0) * rows_S
        least_S += (weight_CS * plane.per_touched_CS).min(axis=0) * touched_S
        best_S = np.maximum(best_S, least_S)
    return np.asarray(best_S)


def _coldest(problem: LayerProblem) -> Floats:
    """(B6): a rank serves at least its part of the coldest experts that fill its slots."""
    rows_SE = np.cumsum(np.sort(problem.rows_SE * problem.least_part, axis=1), axis=1)
    touched_SE = _coldest_touched(problem)
    best_S = np.zeros(len(rows_SE))
    for number, slots in dict.fromkeys(_ranks(problem)):
        if slots:
            seconds_S = problem.moe.class_s(number, rows_SE[:, slots - 1], touched_SE[:, slots - 1], float(slots))
            best_S = np.maximum(best_S, seconds_S)
    return best_S


def _ranks(problem: LayerProblem) -> list[tuple[int, int]]:
    """Class and slots of each rank."""
    return list(zip(problem.moe.class_R.tolist(), problem.slots_R.tolist(), strict=True))


def least_touched_S(problem: LayerProblem) -> Floats:
    """Least sum over ranks of the experts touched, however copies are given.

    However its copies share an expert, they are touched at least as often together as one that serves all or,
    with less than one choice in the step, as its rows say. k copies that share evenly are touched k * t(k)
    times. With at least one choice in the step that grows with k by ever less, so the spare slots add at least
    the last increments, at the most copies possible, of the coldest experts.
    """
    touched_S = problem.touched_SE(1.0).sum(axis=1)
    spare, most = problem.num_slots - problem.num_experts, problem.most_copies
    if spare == 0 or most == 1:
        return np.asarray(touched_S)
    choices_S = problem.load.choices_S * problem.moe.tokens
    fewest_S = np.minimum(problem.rows_SE.sum(axis=1), touched_S)
    if not problem.loads_evenly:
        return np.asarray(np.where(choices_S >= 1, touched_S, fewest_S))
    last_SE = most * problem.touched_SE(float(most)) - (most - 1) * problem.touched_SE(float(most - 1))
    coldest_SE = np.sort(np.maximum(last_SE, 0.0), axis=1)
    experts, rest = divmod(spare, most - 1)
    added_S = coldest_SE[:, :experts].sum(axis=1) * (most - 1)
    if rest:
        added_S = added_S + coldest_SE[:, experts] * rest
    return np.asarray(np.where(choices_S >= 1, touched_S + added_S, fewest_S))


def _hottest(problem: LayerProblem, rows_S: Floats) -> Floats:
    """Expert time of the fastest rank with at least so many rows; its slots hold at least the least touched experts."""
    fewest = int(problem.slots_R.min())
    touched_S = _coldest_touched(problem)[:, fewest - 1] if fewest else np.zeros_like(rows_S)
    classes = [problem.moe.class_s(c, rows_S, touched_S, float(fewest)) for c in range(problem.moe.num_classes)]
    return np.asarray(np.min(classes, axis=0))


def _coldest_touched(problem: LayerProblem) -> Floats:
    """Touches of the 1, 2, ... experts that are touched least, with one copy or as many as there can be [S, E]."""
    one_copy_SE, many_copies_SE = problem.touched_SE(1.0), problem.touched_SE(1.0 / problem.least_part)
    return np.cumsum(np.sort(np.minimum(one_copy_SE, many_copies_SE), axis=1), axis=1)


def _volume(problem: LayerProblem, rows_S: Floats) -> Floats:
    """(B4): seconds per byte on the slowest unit, whatever the placement."""
    moe, exchange = problem.moe, problem.moe.exchange
    shard = 1.0 / moe.etp
    worst_S = np.zeros_like(rows_S)
    if not moe.has_exchange:
        return worst_S
    if problem.serves_nearest:
        return crossing_volume_S(problem)
    arriving: dict[int, tuple[Floats, Floats]] = {}
    if exchange.ranks_share_volume:
        arriving[RANKS] = problem.rows_SE.sum(axis=1), rows_S
    elif not exchange.partitions:  # else all of a token's experts may share its home's rank
        arriving[RANKS] = _visits(problem, exchange.num_ranks)
    for number, domain_R in enumerate(exchange.partitions):
        arriving[number] = _visits(problem, int(domain_R.max()) + 1)
    for block in exchange.blocks:
        slowest = float(block.seconds_U.max())
        least_S = _busiest(block, slowest, arriving, np.zeros_like(rows_S))
        worst_S = np.maximum(worst_S, least_S * (slowest * shard))
    return worst_S


def _busiest(block: Block, slowest: float, arriving: dict[int, tuple[Floats, Floats]], none_S: Floats) -> Floats:
    """Least volume of the busiest unit of a block, in copies on its slowest unit.

    The busiest unit has at least any weighted mean of all, and the mean grows with every copy at
    least by the least coefficient: with even weights, and for units that receive with weights that
    make all coefficients equal. And whoever has the most copies brings them all to some unit.
    """
    parts = {key: table * (block.seconds_U / slowest) for key, table in block.parts.items() if key in arriving}
    even_S, spread_S, peak_S = none_S, none_S, none_S
    if not parts:
        return none_S
    if all(table.ndim == 1 for table in parts.values()):
        ((key, table),) = parts.items()
        total_S, top_S = arriving[key]
        spread_S = total_S / (1.0 / table).sum() if (table > 0).all() else none_S
        return np.asarray(np.maximum(spread_S, top_S * table.min()))
    weight_U = _leveling(list(parts.values())) if block.receives else None
    for key, table in parts.items():
        total_S, top_S = arriving[key]
        even_S = even_S + total_S * table.mean(axis=1).min()
        peak_S = np.maximum(peak_S, top_S * table.max(axis=1).min())
        if weight_U is not None:
            spread_S = spread_S + total_S * float((table @ weight_U).min())
    return np.asarray(np.maximum(np.maximum(even_S, spread_S), peak_S))


def _leveling(tables: list[Floats]) -> Floats:
    """Weights of units, summing to 1, with which the largest coefficients of all are equal."""
    largest_U = np.max([table.max(axis=0) for table in tables], axis=0)
    weight_U = np.divide(1.0, largest_U, out=np.zeros_like(largest_U), where=largest_U > 0)
    return np.asarray(weight_U / max(weight_U.sum(), 1e-300))


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
    chosen_SE = load.chosen_SE
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
