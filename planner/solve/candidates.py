"""Candidates: every split that breaks no rule with how fast it could be at best, the others with what they break.

Nothing is left out silently; every candidate keeps its outcome.

Legend: K stages, L hidden layers, M traced MoE layers, S windows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from planner.cost.instance import Instance, LayerLoad
from planner.cost.step import SplitCost, StageCost
from planner.plan.split import Split
from planner.rules import broken_rules
from planner.rules.cuts import BestCuts, StageLimits, best_cuts
from planner.rules.grid import SearchSpace, points
from planner.rules.least import LeastMemory
from planner.rules.ruled import RuledSplit, laid_out
from planner.solve.bounds import layer_bounds
from planner.solve.problem import LayerProblem
from planner.trace.windows import TokenSets

Floats = NDArray[np.float64]


@dataclass
class Candidate(RuledSplit):
    """One split with its outcome so far."""

    bound_s: float = 0.0
    """No plan with this split is faster."""
    step_s: float | None = None
    """What the best plan found with this split minimises: its step time, or the mean of its slowest windows."""
    cuts: tuple[range, ...] = ()
    layer_bound: dict[tuple[bytes, ...], Floats] = field(default_factory=dict)
    """Proved seconds of each traced layer, by kind of stage."""

    @classmethod
    def of(cls, ruled: RuledSplit) -> Candidate:
        """A split that has been held against the rules."""
        return cls(**{one.name: getattr(ruled, one.name) for one in fields(RuledSplit)})

    @cached_property
    def order(self) -> tuple[int, ...]:
        """Fixed order among candidates that are equally good: simple splits first."""
        s = self.split
        return (s.pp, s.edp, s.etp, s.tp, -s.ep, s.micro_batches, self.redundant_experts, len(self.layout))


class Bounder:
    """Bounds splits; keeps what several of them share."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self._rough: dict[tuple[object, ...], Floats] = {}
        self._traced_L = np.array(instance.traced_layer_ids, dtype=np.int64)
        self._rows = np.arange(len(self._traced_L))
        self._untraced_L = np.array(
            sorted(set(instance.model.moe_layer_ids) - set(instance.traced_layer_ids)), dtype=np.int64
        )

    @cached_property
    def stacked(self) -> LayerLoad:
        """All traced layers as one load, their windows one after the other, so that numpy sees them at once."""
        loads = self.instance.loads
        sets = None
        if all(load.sets is not None for load in loads):
            windows = self.instance.num_windows
            known = [load.sets for load in loads if load.sets is not None]
            sets = TokenSets(
                np.concatenate([part.window_N + np.int32(windows * row) for row, part in enumerate(known)]),
                np.concatenate([part.experts_NLK for part in known]),
            )
        return LayerLoad(
            np.concatenate([load.share_SE for load in loads]),
            np.concatenate([load.choices_S for load in loads]),
            sets,
        )

    def rough_layers(self, cost: SplitCost, stage: StageCost) -> Floats:
        """Seconds that no placement beats, for each traced layer [M] on this kind of stage."""
        key = (stage.moe.tokens, cost.split.ep, cost.split.etp, stage.kind)
        if key not in self._rough:
            problem = LayerProblem(stage.moe, self.stacked, stage.slots_R)
            self._rough[key] = layer_bounds(problem, len(self.instance.loads))
        return self._rough[key]

    def limits(self, candidate: Candidate, traced_KM: list[Floats]) -> StageLimits:
        """Seconds and bytes of every layer on every stage, given those of the traced MoE layers."""
        cost, held = candidate.cost, candidate.held
        assert held is not None
        layer_s = []
        for stage, traced_M in zip(cost.stages, traced_KM, strict=True):
            seconds_L = stage.fixed_L.copy()
            seconds_L[self._traced_L] += traced_M[self._rows]
            if len(self._untraced_L):
                times = replace(cost, instance=self.instance).linear_times(stage)
                seconds_L[self._untraced_L] += np.mean([t.total_S.mean() for t in times])
            layer_s.append(seconds_L)
        last = len(cost.stages) - 1
        return replace(
            held.limits,
            layer_s_KL=np.stack(layer_s),
            extra_s_K=np.array([stage.extra_s[k == last] for k, stage in enumerate(cost.stages)]),
        )

    def step_bound(self, candidate: Candidate, traced_KM: list[Floats]) -> tuple[float, BestCuts] | None:
        """Least step time over all cuts that fit, given least layer times; None if nothing fits."""
        best = best_cuts(self.limits(candidate, traced_KM))
        if best is None:
            return None
        split, phase = candidate.split, self.instance.workload.phase
        # The least slowest stage and the least sum may belong to different cuts; both are bounds.
        if phase == "decode":
            return max(split.micro_batches * best.slowest_s, best.least_sum_s), best
        return best.least_sum_s + (split.micro_batches - 1) * best.slowest_s, best


def bounded(candidate: Candidate, bounder: Bounder) -> Candidate:
    """Give a feasible candidate cuts and a bound; one that it has already is not lowered."""
    cost = candidate.cost
    rough = [bounder.rough_layers(cost, stage) for stage in cost.stages]
    found = bounder.step_bound(candidate, rough)
    assert found is not None, "cuts that fit were found before"
    bound_s, best = found
    candidate.bound_s = max(candidate.bound_s, bound_s)
    candidate.cuts = best.cuts
    candidate.layer_bound = {stage.kind: bound.copy() for stage, bound in zip(cost.stages, rough, strict=True)}
    return candidate


def feasible_split(
    instance: Instance, space: SearchSpace, check_time: Callable[[], None] = lambda: None
) -> Split | None:
    """Some split that breaks no rule, or None; nothing is priced.

    Splits that all memory together cannot hold are left out, and those with most room come first. Among equal GPUs
    memory is looked at only where no other rule is broken, and a split that lacks it is not tried with more copies:
    they fill no rank less and make no buffer smaller.

    Args:
        instance: model, machine and work.
        space: which splits are looked at.
        check_time: called first and before each split is held against the rules; may raise to end the work.
    """
    check_time()
    least, equal = LeastMemory(instance), not instance.topology.is_mixed
    found = [(least.excess(split, redundant), split, redundant) for split, redundant in points(instance, space)]
    full: set[Split] = set()
    for excess, split, redundant in sorted(found, key=lambda one: one[0]):
        if excess > 0:
            break
        if split in full:
            continue
        check_time()
        if equal and broken_rules(instance, split, redundant, space.limits):
            continue
        if any(one.is_feasible for one in laid_out(instance, split, redundant, space.limits)):
            return split
        if equal:
            full.add(split)
    return None


def count_candidates(instance: Instance, space: SearchSpace) -> int:
    """How many splits there are, with their numbers of copies; some may be laid on the machine in several ways."""
    return sum(1 for _ in points(instance, space))


def all_candidates(
    instance: Instance, space: SearchSpace, bounder: Bounder, one_done: Callable[[], None] = lambda: None
) -> list[Candidate]:
    """Every candidate, feasible ones by rising bound, then the rejected ones.

    Args:
        instance: model, machine, work and routing.
        space: which splits are looked at.
        bounder: keeps what bounds of several splits share.
        one_done: called for each split when it has been held against the rules, and for each candidate
            when it has been bounded; may raise to end the work.
    """
    found: list[Candidate] = []
    for split, redundant in points(instance, space):
        found += map(Candidate.of, laid_out(instance, split, redundant, space.limits))
        one_done()
    for candidate in found:
        if candidate.is_feasible:
            bounded(candidate, bounder)
        one_done()
    return sorted(found, key=lambda c: (not c.is_feasible, c.bound_s, c.order))
