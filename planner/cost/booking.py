"""What a plan promises: predicted figures in the form in which the plan file books them.

Solver and checker both call `book`; a plan is right if booking it again gives the same.

Legend: S windows, E experts, P slots, R EP ranks, L MoE layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from planner.cost.grid import Grid
from planner.cost.instance import Instance
from planner.cost.memory import StageMemory, stage_memories
from planner.cost.once import OncePerLayer
from planner.cost.served import copies_by_home, rank_tokens
from planner.cost.step import Cuts, Prediction, SplitCost, breakdown, predict, stage_of_layers
from planner.cost.term import Term
from planner.inputs.sourced import BASES
from planner.plan.placement import Placement
from planner.plan.plan import BasisRecord, ErrorRecord, MemoryRecord, Predicted, TermRecord, WindowRecord
from planner.trace.statistics import noise_floor

Ints = NDArray[np.int64]


def filled_slots_R(cost: SplitCost, layers: range, placement: Placement) -> Ints:
    """Expert slots that each EP rank fills over the MoE layers among these hidden layers."""
    rows = [row for row, layer in enumerate(placement.layer_ids) if layer in layers]
    filled = placement.expert_LP[rows].reshape(len(rows), cost.split.ep, placement.slots_per_rank) >= 0
    total: Ints = filled.sum(axis=(0, 2))
    return total


def memory_G(cost: SplitCost, cuts: Cuts, placement: Placement) -> Ints:
    """Bytes on each GPU, by global id."""
    num_bytes = np.zeros(cost.instance.topology.num_gpus, dtype=np.int64)
    for grid, memory, layers in _stages(cost, cuts):
        slots_R = filled_slots_R(cost, layers, placement)
        by_rank = [memory.total(layers, int(slots)) for slots in slots_R]
        for index, gpu in enumerate(grid.gpus):
            num_bytes[gpu] = by_rank[index // cost.split.etp % cost.split.ep]
    return num_bytes


def _stages(cost: SplitCost, cuts: Cuts) -> list[tuple[Grid, StageMemory, range]]:
    grids = [stage.grid for stage in cost.stages]
    memories = stage_memories(cost.instance, grids, cost.physical_experts)
    return [(grid, memory, layers) for grid, memory, layers in zip(grids, memories, cuts, strict=True)]


def steps_of_prompt(cost: SplitCost) -> int:
    """Steps of prefill until a prompt is through: several where a data-parallel rank has less than one in a step."""
    per_rank = cost.instance.step_tokens / cost.split.dp
    return max(1, math.ceil(cost.instance.workload.context_length / per_rank * (1 - 1e-12)))


def book(cost: SplitCost, cuts: Cuts, placement: Placement, prediction: Prediction | None = None) -> Predicted:
    """Everything a plan promises, as its file holds it."""
    instance = cost.instance
    known = prediction or predict(cost, cuts, placement)
    imbalance = imbalance_LS(cost, cuts, placement)
    work, terms = instance.workload, breakdown(cost, cuts, placement, known)
    return Predicted(
        step_s=known.step_s,
        tokens_per_s=instance.step_tokens / work.tokens_per_sequence * work.tokens_gained / known.step_s,
        time_per_output_token_s=known.step_s / work.tokens_gained if work.phase == "decode" else None,
        time_to_first_token_s=known.step_s * steps_of_prompt(cost) if work.phase == "prefill" else None,
        balancedness=known.balancedness,
        memory_bytes=tuple(memory_G(cost, cuts, placement).tolist()),
        rank_tokens=_rank_tokens(cost, cuts, placement),
        p95_s=known.p95_s,
        worst_s=known.worst_s,
        stage_s=tuple(known.tau_K.tolist()),
        terms=tuple(
            TermRecord(
                name=term.name,
                seconds=term.seconds,
                speed_of_light_s=term.light_s,
                basis=term.basis,
                source=term.source,
                error=None if term.errors is None else ErrorRecord(median=term.errors.median, p90=term.errors.p90),
            )
            for term in terms
        ),
        rests_on=tuple(_rests_on(terms)),
        memory=tuple(_memory_lines(cost, cuts, placement)),
        windows=_windows(instance, known, imbalance),
        layer_imbalance=tuple(imbalance.mean(axis=1).tolist()) if instance.windows is not None else (),
        noise_floor=_noise_floor(cost),
    )


def _rests_on(terms: Sequence[Term]) -> Iterator[BasisRecord]:
    """Shares of the step by what their constants rest on, best known first, each with its error band.

    A band is that of the terms whose constants were held against measurements they were not fitted to,
    weighted by their time. Time that is hidden, or that pipelining adds, is part of no share.
    """
    kept = [term for term in terms if term.seconds > 0 and term.light_s > 0]
    total = sum(term.seconds for term in kept)
    for basis in BASES:
        mine = [term for term in kept if term.basis == basis]
        if not mine:
            continue
        known = [(term.seconds, term.errors) for term in mine if term.errors is not None]
        weight = sum(seconds for seconds, _ in known)
        error = None
        if weight:
            median, p90 = (
                sum(seconds * getattr(errors, name) for seconds, errors in known) / weight for name in ("median", "p90")
            )
            error = ErrorRecord(median=median, p90=p90)
        yield BasisRecord(basis=basis, share=sum(term.seconds for term in mine) / total, error=error)


def _noise_floor(cost: SplitCost) -> float | None:
    windows, moe = cost.instance.windows, cost.instance.model.moe
    if windows is None:
        return None
    floors = [noise_floor(tokens, moe.num_experts, moe.top_k, cost.split.ep) for tokens in windows.tokens_S.tolist()]
    return sum(floors) / len(floors)


def _rank_tokens(cost: SplitCost, cuts: Cuts, placement: Placement) -> tuple[tuple[int, ...], ...]:
    """[L, R] over all windows as recorded; zeros where nothing was recorded."""
    windows = cost.instance.windows
    row_of = {} if windows is None else {layer: row for row, layer in enumerate(windows.layer_ids_L.tolist())}
    by_home_L = copies_by_home(cost, stage_of_layers(cost, cuts), placement)
    rows = []
    for layer, expert_P, by_home in zip(placement.layer_ids, placement.expert_LP, by_home_L, strict=True):
        if windows is None or layer not in row_of:
            rows.append((0,) * cost.split.ep)
            continue
        counts_SE = windows.counts_SLE[:, row_of[layer]]
        served_SR = rank_tokens(counts_SE, expert_P, placement.slots_per_rank, by_home)
        rows.append(tuple(served_SR.sum(axis=0).tolist()))
    return tuple(rows)


def _memory_lines(cost: SplitCost, cuts: Cuts, placement: Placement) -> list[tuple[MemoryRecord, ...]]:
    """Lines of the fullest GPU of each stage."""
    found = []
    for grid, memory, layers in _stages(cost, cuts):
        slots_R = filled_slots_R(cost, layers, placement)
        used_R = np.array([memory.total(layers, slots) for slots in slots_R.tolist()]) / memory.capacity_R(grid)
        slots = int(slots_R[used_R.argmax()])
        found.append(
            tuple(
                MemoryRecord(name=line.name, bytes=line.num_bytes, basis=line.basis, source=line.source)
                for line in memory.lines(layers, slots)
            )
        )
    return found


def _windows(instance: Instance, prediction: Prediction, imbalance: NDArray[np.float64]) -> tuple[WindowRecord, ...]:
    windows = instance.windows
    if windows is None:
        return ()
    columns = (windows.names_S, prediction.step_S.tolist(), imbalance.mean(axis=0).tolist())
    return tuple(
        WindowRecord(name=name, step_s=step_s, imbalance=worst) for name, step_s, worst in zip(*columns, strict=True)
    )


def imbalance_LS(cost: SplitCost, cuts: Cuts, placement: Placement) -> NDArray[np.float64]:
    """Max over mean of the ranks' rows, for each traced layer and window."""
    instance = cost.instance
    row_of = {layer: row for row, layer in enumerate(placement.layer_ids)}
    stage_of = stage_of_layers(cost, cuts)
    rows_of = {id(stage): OncePerLayer(stage.moe.rank_rows) for stage in cost.stages}
    found = []
    for layer, load in zip(instance.traced_layer_ids, instance.loads, strict=True):
        rows_SR = rows_of[id(stage_of[layer])](load, placement.expert_LP[row_of[layer]])
        found.append(rows_SR.max(axis=1) / rows_SR.mean(axis=1))
    return np.stack(found)
