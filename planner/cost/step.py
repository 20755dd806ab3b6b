"""Time of a whole step: stages, layers, windows. The one place where parts become a prediction.

tau[k, s] is the time of stage k for one of m micro-batches in window s. A step takes
max(m * max tau, sum tau) in decode (each stage works on its micro-batch, one token per sequence) and
sum tau + (m - 1) * max tau in prefill (fill, then the slowest stage), tau being the window means.

Legend: K stages, S windows, L hidden layers, M MoE layers, R EP ranks, G GPUs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from planner.cost.grid import Grid, stages_of
from planner.cost.instance import Instance, LayerLoad
from planner.cost.moe import LayerTimes, MoeCost
from planner.cost.once import OncePerLayer
from planner.cost.roofline import Kernel
from planner.cost.stage_dense import StageDense, send_terms
from planner.cost.stage_moe import moe_cost
from planner.cost.term import Term, merged
from planner.inputs.model import LayerRun
from planner.inputs.sourced import BASES
from planner.inputs.workload import Phase
from planner.plan.placement import Placement, linear, slots_of_ranks
from planner.plan.split import Split

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Cuts = tuple[range, ...]
"""Hidden layers of each stage."""


def combine_stages(tau_K: Floats, micro_batches: int, phase: Phase) -> float:
    """Seconds of a step from the stages' times for one micro-batch."""
    total, slowest = float(tau_K.sum()), float(tau_K.max())
    if phase == "decode":
        return max(micro_batches * slowest, total)
    return total + (micro_batches - 1) * slowest


@dataclass(frozen=True)
class StageCost:
    """One stage bound to the machine; which layers it runs is decided elsewhere."""

    grid: Grid
    slots_R: Ints
    """Filled slots of each EP rank in every layer."""
    moe: MoeCost
    dense: StageDense
    send: tuple[Term, ...]
    """To the next stage; empty for the last."""

    @cached_property
    def ranks(self) -> tuple[bytes, ...]:
        """Equal for stages between which a placement carries over."""
        return (self.slots_R.tobytes(), *self.grid.key)

    @cached_property
    def kind(self) -> tuple[bytes, ...]:
        """Equal for stages on which a placement takes as long, so that what is proved about it carries over, too.

        Beside the ranks: what blocks of consecutive GPUs exchange, which may be joined otherwise.
        """
        return (*self.ranks, self.moe.besides_placement)

    @property
    def run_terms(self) -> dict[LayerRun, tuple[Term, ...]]:
        """Placement-independent terms of each kind of layer."""
        return self.dense.run_terms

    @property
    def fixed_L(self) -> Floats:
        """Placement-independent seconds of each hidden layer."""
        return self.dense.fixed_L

    def extra_terms(self, *, last: bool) -> tuple[Term, ...]:
        """What the stage does besides its layers."""
        return self.dense.head if last else self.send

    @cached_property
    def extra_s(self) -> tuple[float, float]:
        """Seconds of the extra terms if it is not the last stage, and if it is."""
        return sum(term.seconds for term in self.send), sum(term.seconds for term in self.dense.head)


@dataclass(frozen=True)
class SplitCost:
    """An instance under one split."""

    instance: Instance
    split: Split
    stages: tuple[StageCost, ...]

    @cached_property
    def slots_per_rank(self) -> int:
        """Slots of the longest rank of any stage."""
        return max(int(stage.slots_R.max()) for stage in self.stages)

    @property
    def physical_experts(self) -> int:
        """Experts of a layer, copies included, over all ranks."""
        return int(self.stages[0].slots_R.sum())

    def linear_P(self, stage: StageCost) -> Ints:
        """The engines' own layout of one layer on a stage."""
        return linear(self.instance.model.moe.num_experts, stage.slots_R, self.slots_per_rank)

    def linear_times(self, stage: StageCost) -> tuple[LayerTimes, ...]:
        """Times of every traced layer under the linear layout."""
        layout_P = self.linear_P(stage)
        times_of = OncePerLayer(stage.moe.layer)
        return tuple(times_of(load, layout_P) for load in self.instance.loads)


def split_cost(
    instance: Instance,
    split: Split,
    redundant_experts: int,
    gpus: Sequence[Sequence[int]] | None = None,
    slots_KR: Sequence[Ints] | None = None,
) -> SplitCost:
    """Bind an instance to a split.

    Args:
        instance: model, machine, work and routing.
        split: the degrees.
        redundant_experts: per layer, over all ranks.
        gpus: GPU ids of each stage in rank order; default: consecutive.
        slots_KR: filled slots of each EP rank, by stage; default: as even as possible.
    """
    grids = stages_of(split, instance.topology)
    if gpus is not None:
        grids = tuple(Grid(split, instance.topology, tuple(ids)) for ids in gpus)
    even_R = slots_of_ranks(instance.model.moe.num_experts + redundant_experts, split.ep)
    alike: dict[bytes, tuple[MoeCost, StageDense]] = {}
    sends: dict[bytes, tuple[Term, ...]] = {}
    stages = []
    for number, (grid, following) in enumerate(zip_longest(grids, grids[1:])):
        if grid.pattern not in alike:
            dense = StageDense(instance, grid)
            beside_s = dense.beside_experts_s(instance.constants.communication.overlap)
            alike[grid.pattern] = (moe_cost(instance, grid, beside_s), dense)
        moe, dense = alike[grid.pattern]
        send: tuple[Term, ...] = ()
        if following is not None:
            way = Grid(split, instance.topology, (*grid.gpus, *following.gpus)).pattern
            send = sends.get(way) or send_terms(instance, grid, following)
            sends[way] = send
        slots_R = even_R if slots_KR is None else slots_KR[number]
        stages.append(StageCost(grid, slots_R, moe, dense, send))
    return SplitCost(instance, split, tuple(stages))


def stage_of_layers(cost: SplitCost, cuts: Cuts) -> dict[int, StageCost]:
    """The stage of each hidden layer."""
    return {layer: stage for stage, layers in zip(cost.stages, cuts, strict=True) for layer in layers}


@dataclass(frozen=True)
class Prediction:
    """What a plan is predicted to do."""

    step_s: float
    tau_K: Floats
    step_S: Floats
    """Step time of each window by itself."""
    layer_times: dict[int, LayerTimes]
    """MoE times of each traced hidden layer."""
    balancedness: float | None
    """Sum of means over sum of maxima of the ranks' rows; None without a trace."""

    @property
    def p95_s(self) -> float:
        """95th percentile over windows (nearest rank)."""
        return float(np.quantile(self.step_S, 0.95, method="inverted_cdf"))

    @property
    def worst_s(self) -> float:
        """Slowest window."""
        return float(self.step_S.max())

    @property
    def traffic_s(self) -> float:
        """Dispatch and combine of the traced layers, mean over windows."""
        return sum(float((t.dispatch_S + t.combine_S).mean()) for t in self.layer_times.values())


def predict(cost: SplitCost, cuts: Cuts, placement: Placement) -> Prediction:
    """Price a placement.

    Args:
        cost: instance and split.
        cuts: hidden layers of each stage.
        placement: slots of every MoE layer.

    Returns:
        The prediction; the same numbers for solver, checker and report.
    """
    instance = cost.instance
    row_of = {layer: row for row, layer in enumerate(placement.layer_ids)}
    load_of = dict(zip(instance.traced_layer_ids, instance.loads, strict=True))
    tau_KS = np.zeros((len(cuts), instance.num_windows))
    times: dict[int, LayerTimes] = {}
    mean_sum = max_sum = 0.0
    for number, (stage, layers) in enumerate(zip(cost.stages, cuts, strict=True)):
        last = number == len(cuts) - 1
        times_of, rows_of = OncePerLayer(stage.moe.layer), OncePerLayer(stage.moe.rank_rows)
        tau_KS[number] += stage.extra_s[last] + stage.fixed_L[layers.start : layers.stop].sum()
        untraced = 0
        for layer in layers:
            if layer not in row_of:
                continue
            if layer not in load_of:
                untraced += 1
                continue
            expert_P = placement.expert_LP[row_of[layer]]
            times[layer] = times_of(load_of[layer], expert_P)
            tau_KS[number] += times[layer].total_S
            rows_SR = rows_of(load_of[layer], expert_P)
            mean_sum += float(rows_SR.mean(axis=1).sum())
            max_sum += float(rows_SR.max(axis=1).sum())
        if untraced:
            tau_KS[number] += untraced * untraced_S(cost, stage)
    micro_batches, phase = cost.split.micro_batches, instance.workload.phase
    tau_K = tau_KS.mean(axis=1)
    return Prediction(
        step_s=combine_stages(tau_K, micro_batches, phase),
        tau_K=tau_K,
        step_S=np.array([combine_stages(tau, micro_batches, phase) for tau in tau_KS.T]),
        layer_times=times,
        balancedness=None if instance.windows is None else mean_sum / max_sum,
    )


def untraced_S(cost: SplitCost, stage: StageCost) -> Floats:
    """Seconds that an untraced MoE layer is taken to need: the mean linear time of those traced."""
    return np.asarray(np.mean([times.total_S for times in cost.linear_times(stage)], axis=0))


def breakdown(cost: SplitCost, cuts: Cuts, placement: Placement, prediction: Prediction) -> tuple[Term, ...]:
    """The step's time as terms that add up to it.

    With one stage, terms are those of all micro-batches; with several, of one micro-batch summed over
    stages, and what pipelining adds stands in a term of its own.
    """
    terms: list[Term] = []
    instance = cost.instance
    for number, (stage, layers) in enumerate(zip(cost.stages, cuts, strict=True)):
        for kind, count in Counter(instance.model.kind_of_layer[layers.start : layers.stop]).items():
            terms += [term.times(count) for term in stage.run_terms[instance.model.layer_kinds[kind]]]
        terms += _moe_terms(cost, stage, layers, placement, prediction)
        terms += stage.extra_terms(last=number == len(cuts) - 1)
    if cost.split.pp == 1:
        return tuple(term.times(cost.split.micro_batches) for term in merged(terms))
    pipeline = prediction.step_s - float(prediction.tau_K.sum())
    source = f"{cost.split.micro_batches} micro-batches through {cost.split.pp} stages"
    return (*merged(terms), Term("pipeline: further micro-batches", pipeline, 0.0, "assumed", source))


def _moe_terms(
    cost: SplitCost, stage: StageCost, layers: range, placement: Placement, prediction: Prediction
) -> list[Term]:
    traced = [layer for layer in layers if layer in prediction.layer_times]
    untraced = sum(layer in placement.layer_ids for layer in layers) - len(traced)
    all_times = [(prediction.layer_times[layer], 1.0) for layer in traced]
    if untraced:
        linear_times = cost.linear_times(stage)
        all_times += [(times, untraced / len(linear_times)) for times in linear_times]
    alike: dict[int, tuple[LayerTimes, float]] = {}  # layers that are alike share their times
    for times, weight in all_times:
        alike[id(times)] = times, weight + alike.get(id(times), (times, 0.0))[1]
    expert = dispatch = combine = total = 0.0
    for times, weight in alike.values():
        expert += weight * float(times.expert_S.mean())
        dispatch += weight * float(times.dispatch_S.mean())
        combine += weight * float(times.combine_S.mean())
        total += weight * float(times.total_S.mean())
    light = _moe_light(cost, stage, traced, placement)
    moe, kernel = stage.moe, _kernel_of(stage, alike.values())
    hidden = cost.instance.overlap(int(stage.grid.kind_G[0]))
    terms = [
        Term("experts", expert, light[0] + untraced * light[3], kernel.basis, kernel.source, kernel.errors),
        _way("dispatch", dispatch, light[1] + untraced * light[4], cost, moe.dispatch_fixed),
        _way("combine", combine, light[2] + untraced * light[5], cost, moe.combine_fixed),
    ]
    saved = total - expert - dispatch - combine
    if -saved > 1e-14 * total:  # less is what sums are rounded by
        terms.append(Term("hidden by overlap", saved, 0.0, hidden.basis, hidden.source))
    return [term for term in terms if term.seconds]


def _kernel_of(stage: StageCost, layers: Iterable[tuple[LayerTimes, float]]) -> Kernel:
    """The kernel that takes most of the time of a stage's layers, each so many times."""
    spent = dict.fromkeys((stage.moe.kernels_C[0],), 0.0)
    for times, weight in layers:
        spent[times.kernel] = spent.get(times.kernel, 0.0) + weight * float(times.expert_S.mean())
    return max(spent, key=lambda kernel: spent[kernel])


def _way(name: Literal["dispatch", "combine"], seconds: float, light: float, cost: SplitCost, fixed: Term) -> Term:
    """A dispatch or combine of a stage, and what its constants rest on."""
    if fixed.source:
        return Term(name, seconds, light, fixed.basis, fixed.source, fixed.errors)
    kernel, several = cost.instance.constants.kernel, cost.instance.topology.num_nodes > 1
    way = kernel.dispatch if name == "dispatch" else kernel.combine
    travel = kernel.scale_out if several else kernel.scale_up
    basis = max(way.basis, travel.basis, key=BASES.index)
    source = "; ".join(dict.fromkeys(text for text in (way.source, travel.source) if text))
    return Term(name, seconds, light, basis, source, way.held_out or way.fit)


def _moe_light(
    cost: SplitCost, stage: StageCost, traced: Sequence[int], placement: Placement
) -> tuple[float, float, float, float, float, float]:
    """Speed of light of experts, dispatch and combine: of the traced layers, and of one mean layer."""
    instance = cost.instance
    load_of = dict(zip(instance.traced_layer_ids, instance.loads, strict=True))
    row_of = {layer: row for row, layer in enumerate(placement.layer_ids)}
    moe = stage.moe

    def one_light(load: LayerLoad, expert_P: Ints) -> tuple[float, float]:
        rows_SR, touched_SR, _ = moe.rank_load(load, expert_P)
        expert = float(moe.expert_light_s(rows_SR, touched_SR).max(axis=1).mean())
        return expert, float(moe.volume_S(load, expert_P, rows_SR, light=True).mean())

    light_once = OncePerLayer(one_light)

    def light_of(layers: Sequence[int], expert_LP: Sequence[Ints]) -> tuple[float, float]:
        found = [light_once(load_of[layer], expert_P) for layer, expert_P in zip(layers, expert_LP, strict=True)]
        return sum(expert for expert, _ in found), sum(volume for _, volume in found)

    expert, volume = light_of(traced, [placement.expert_LP[row_of[layer]] for layer in traced])
    every = instance.traced_layer_ids
    mean_expert = mean_volume = 0.0
    if len(every) < len(instance.model.moe_layer_ids):
        all_expert, all_volume = light_of(every, [cost.linear_P(stage)] * len(every))
        mean_expert, mean_volume = all_expert / len(every), all_volume / len(every)
    fixed = moe.dispatch_fixed.light_s, moe.combine_fixed.light_s
    return (
        expert,
        volume * moe.dispatch_bytes + len(traced) * fixed[0],
        volume * moe.combine_light_bytes + len(traced) * fixed[1],
        mean_expert,
        mean_volume * moe.dispatch_bytes + fixed[0],
        mean_volume * moe.combine_light_bytes + fixed[1],
    )
