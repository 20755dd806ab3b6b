"""The layers of a candidate: which must be placed, each as a problem of its own, and what they make together.

Legend: K stages, L hidden layers, M traced MoE layers, P slots.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from planner.cost.instance import Instance, LayerLoad
from planner.cost.step import StageCost, stage_of_layers
from planner.plan.placement import Placement, widened
from planner.rules import Limits
from planner.rules.cuts import best_cuts
from planner.solve.candidates import Bounder, Candidate
from planner.solve.place import LayerResult, linear_start
from planner.solve.problem import LayerProblem, layer_problem

Ints = NDArray[np.int64]
Key = tuple[tuple[bytes, ...], int]
"""Kind of stage and row of a traced layer."""


class Layers:
    """Those of every candidate of a search.

    Args:
        instance: with the windows that the search looks at.
        limits: what user and engine allow.
    """

    def __init__(self, instance: Instance, limits: Limits) -> None:
        self.instance, self.limits = instance, limits
        self._row = {layer: row for row, layer in enumerate(instance.traced_layer_ids)}

    def keys(self, candidate: Candidate) -> list[Key]:
        """Which layers must be placed on which kind of stage."""
        cost = candidate.cost
        keys: dict[Key, None] = {}
        kinds = {stage.kind for stage in cost.stages}
        for stage, layers in zip(cost.stages, candidate.cuts, strict=True):
            # With stages of one kind the cuts may still move; else they stay as bounded.
            for layer in range(self.instance.model.num_layers) if len(kinds) == 1 else layers:
                if layer in self._row:
                    keys[stage.kind, self._row[layer]] = None
        return list(keys)

    def problem(self, stage: StageCost, load: LayerLoad) -> LayerProblem:
        """One layer of a stage as an optimisation problem."""
        return layer_problem(stage, load, self.instance.model.moe, self.limits)

    def of(self, candidate: Candidate, keys: Iterable[Key]) -> list[LayerProblem]:
        """The problems of some layers."""
        stage_of = {stage.kind: stage for stage in candidate.cost.stages}
        return [self.problem(stage_of[kind], self.instance.loads[row]) for kind, row in keys]

    def distinct(self, keys: Sequence[Key]) -> list[list[Key]]:
        """Layers that are one problem: those without a trace share one load and are placed once."""
        unique: dict[tuple[tuple[bytes, ...], int], list[Key]] = {}
        for key in keys:
            unique.setdefault((key[0], id(self.instance.loads[key[1]])), []).append(key)
        return list(unique.values())

    def linear(self, candidate: Candidate) -> dict[Key, Ints]:
        """The engines' own layout of all traced layers, or what comes nearest to it where groups stay together."""
        starts = {stage.kind: self._start(stage) for stage in candidate.cost.stages}
        return {(kind, row): start_P for kind, start_P in starts.items() for row in self._row.values()}

    def placed(self, candidate: Candidate, results: Mapping[Key, LayerResult]) -> dict[Key, Ints]:
        """Placements of all layers that must be placed; linear where there is none yet."""
        linear = self.linear(candidate)
        return {key: results[key].expert_P if key in results else linear[key] for key in self.keys(candidate)}

    def recut(self, candidate: Candidate, expert_P: Mapping[Key, Ints], bounder: Bounder) -> tuple[range, ...]:
        """The best cuts now that layers are placed; stages of different kinds keep theirs."""
        cost = candidate.cost
        kinds = {stage.kind for stage in cost.stages}
        if cost.split.pp == 1 or len(kinds) > 1:
            return candidate.cuts
        kind = next(iter(kinds))
        stage = cost.stages[0]
        seconds_M = np.array(
            [self.problem(stage, load).seconds(expert_P[kind, row]) for row, load in enumerate(self.instance.loads)]
        )
        best = best_cuts(bounder.limits(candidate, [seconds_M] * len(cost.stages)))
        return best.cuts if best is not None else candidate.cuts

    def placement(self, candidate: Candidate, cuts: tuple[range, ...], expert_P: Mapping[Key, Ints]) -> Placement:
        """All MoE layers of the model together; those without a trace are linear."""
        cost = candidate.cost
        layer_ids = self.instance.model.moe_layer_ids
        stage_of = stage_of_layers(cost, cuts)
        rows = []
        for layer in layer_ids:
            stage, row = stage_of[layer], self._row.get(layer)
            placed_P = self._start(stage) if row is None else expert_P[stage.kind, row]
            rows.append(widened(placed_P, cost.split.ep, cost.slots_per_rank))
        return Placement(layer_ids, cost.slots_per_rank, np.stack(rows))

    def _start(self, stage: StageCost) -> Ints:
        return linear_start(self.problem(stage, self.instance.loads[0]))
