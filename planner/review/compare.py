"""Plans and baselines on the same trace, window by window, in every engine's own metric.

Metrics over the ranks' rows, per layer and window (formulas as the engines log them):

- balancedness (vLLM): sum over layers and windows of the mean / the same sum of the maximum
- PAR (vllm-ascend): mean of max/mean
- utilisation (SGLang): mean of (mean + 1e-5)/(max + 1e-5)
- imbalance-ratio (TensorRT-LLM): mean of max/mean - 1

Legend: S windows, L layers, R ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from planner.baselines import duplicates, placements, weights_of
from planner.check import cost_of, refuse_broken
from planner.cost.prepare import from_plan
from planner.cost.step import Cuts, SplitCost, predict, stage_of_layers
from planner.errors import BadAnswerError, InputError, Place, PlannerError, Problem, UsageError
from planner.export.maps import placement_of_map
from planner.export.table import MAPS
from planner.export.write import read_map_file
from planner.plan.decision import cuts_of, placement_of
from planner.plan.placement import Placement, violations
from planner.plan.plan import Plan

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Score:
    """One placement on one trace."""

    name: str
    step_s: float
    step_S: tuple[float, ...]
    balancedness: float
    par: float
    utilisation: float
    imbalance_ratio: float
    imbalance_S: tuple[float, ...]
    """Mean over layers of max/mean, for each window."""
    duplicates: int


@dataclass(frozen=True)
class Comparison:
    """A plan and the baselines on its split."""

    path: str
    split: str
    windows: tuple[str, ...]
    how: str
    baselines_from: str
    """Which routing the load-driven baselines were made from."""
    scores: tuple[Score, ...]
    warnings: tuple[str, ...]
    """Of the traces."""


@dataclass(frozen=True)
class NamedMap:
    """A map file to be scored beside a plan, with its format."""

    format: str
    path: Path


def compare(plan: Plan, path: Path, traces: Sequence[Path], maps: Sequence[NamedMap] = ()) -> Comparison:
    """Score a plan, all baselines and any maps on a trace.

    Args:
        plan: the plan.
        path: its file.
        traces: the traces to judge on; cut into windows as the plan's workload says.
        maps: placements for the same model and EP size, from files of engines; scored as an engine runs them.
    """
    prepared = from_plan(plan, path, traces, others=True)
    judged = prepared.instance
    refuse_broken(plan, judged, path)
    cost = cost_of(plan, judged)
    cuts, own = cuts_of(plan), placement_of(plan)
    assert judged.windows is not None
    if judged.traced_layer_ids != plan.inputs.traced_layer_ids and plan.inputs.traces:
        message = f"covers other layers than the trace that {path} was made from"
        raise InputError(Problem(message, Place(str(traces[0])), "compare on a trace of the same layers"))
    weight_LE, source = _planning_weights(plan, path)
    if weight_LE is None:
        weight_LE = weights_of(judged.windows)
    scores = [_score("plan", cost, cuts, own)]
    scores += [_score(name, cost, cuts, placement) for name, placement in _of_maps(maps, plan)]
    for name, placement in placements(cost, stage_of_layers(cost, cuts), weight_LE).items():
        scores.append(_score(name, cost, cuts, placement))
    return Comparison(
        path=str(path),
        split=str(cost.split),
        windows=judged.windows.names_S,
        how=judged.windows.how,
        baselines_from=source,
        scores=tuple(scores),
        warnings=prepared.warnings,
    )


def _of_maps(maps: Sequence[NamedMap], plan: Plan) -> list[tuple[str, Placement]]:
    """The placements in map files; raises `BadAnswerError` for one that leaves experts out."""
    found = []
    for one in maps:
        if one.format not in MAPS:
            raise UsageError(f"--map {one.format}: unknown format", hint=f"known: {', '.join(MAPS)}")
        placement = placement_of_map(read_map_file(one.path, one.format), plan.inputs.model, plan.split.ep)
        broken = violations(placement, plan.inputs.model.moe.num_experts, own_plan=False)
        if broken:
            hint = f"see: ep-plan check {one.path} --format {one.format}"
            raise BadAnswerError(f"{one.path}: {broken[0].message}", hint=hint)
        found.append((str(one.path), placement))
    return found


def _planning_weights(plan: Plan, path: Path) -> tuple[Floats | None, str]:
    """The loads that the plan itself was made from, so that baselines know no more than it did."""
    if not plan.inputs.traces:
        return None, "the judged trace itself (the plan has none)"
    try:
        windows = from_plan(plan, path).instance.windows
    except PlannerError:
        return None, "the judged trace itself (the plan's own is not at hand)"
    assert windows is not None
    return weights_of(windows), "the plan's own trace"


def _score(name: str, cost: SplitCost, cuts: Cuts, placement: Placement) -> Score:
    prediction = predict(cost, cuts, placement)
    row_of = {layer: row for row, layer in enumerate(placement.layer_ids)}
    stage_of = stage_of_layers(cost, cuts)
    mean_LS, max_LS = [], []
    for layer, load in zip(cost.instance.traced_layer_ids, cost.instance.loads, strict=True):
        rows_SR = stage_of[layer].moe.rank_rows(load, placement.expert_LP[row_of[layer]])
        mean_LS.append(rows_SR.mean(axis=1))
        max_LS.append(rows_SR.max(axis=1))
    mean, largest = np.stack(mean_LS), np.stack(max_LS)
    ratio = largest / mean
    return Score(
        name=name,
        step_s=prediction.step_s,
        step_S=tuple(prediction.step_S.tolist()),
        balancedness=float(mean.sum() / largest.sum()),
        par=float(ratio.mean()),
        utilisation=float(((mean + 1e-5) / (largest + 1e-5)).mean()),
        imbalance_ratio=float(ratio.mean() - 1),
        imbalance_S=tuple(ratio.mean(axis=0).tolist()),
        duplicates=duplicates(placement),
    )
