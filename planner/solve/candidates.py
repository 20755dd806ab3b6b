"""All splits of the machine, each with what it breaks or with how fast it could be at best.

The grid is small (tens to hundreds of points): every divisor of the GPUs for pp, of a stage for tp,
and of a stage for ep x etp. Nothing is left out silently; every candidate keeps its outcome.

Legend: K stages, L hidden layers, M traced MoE layers, S windows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from planner.cost.instance import Instance, LayerLoad
from planner.cost.memory import StageMemory, stage_memories
from planner.cost.step import SplitCost, StageCost, split_cost
from planner.inputs.units import format_bytes, format_percent
from planner.plan.placement import slots_of_ranks
from planner.plan.split import Split
from planner.rules import Limits, Shares, Verdict, broken_rules
from planner.solve.bounds import layer_bound_S
from planner.solve.cuts import BestCuts, StageLimits, best_cuts, least_memory_excess
from planner.solve.problem import LayerProblem
from planner.solve.shares import Stages, orders, unequal_slots
from planner.trace.windows import TokenSets

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_MICRO_BATCH_FACTORS = (1, 2, 4)
_EXTRA_SLOTS = 4
"""With `redundant_experts: auto`: spare slots per rank that are tried, besides none."""


@dataclass(frozen=True)
class SearchSpace:
    """Which splits are looked at."""

    limits: Limits
    pins: dict[str, int]
    redundant_experts: int | None
    """None: the number with the least step time."""


def divisors(number: int) -> list[int]:
    """All divisors, ascending."""
    return [d for d in range(1, number + 1) if number % d == 0]


def all_splits(instance: Instance, pins: dict[str, int]) -> Iterator[Split]:
    """Every split that uses all GPUs in service and agrees with the pinned degrees."""
    gpus = instance.topology.num_gpus
    for pp in _allowed(pins, "pp", divisors(gpus)):
        stage = gpus // pp
        factors = (1,) if pp == 1 else _MICRO_BATCH_FACTORS
        in_turn = 2 if instance.constants.communication.overlap == "two_batch" else 1
        counts = [pins["micro_batches"]] if "micro_batches" in pins else [in_turn * pp * f for f in factors]
        for tp in _allowed(pins, "tp", divisors(stage)):
            if pins.get("dp", stage // tp) != stage // tp:
                continue
            for etp in _allowed(pins, "etp", divisors(stage)):
                for ep in _allowed(pins, "ep", divisors(stage // etp)):
                    edp = stage // etp // ep
                    if pins.get("edp", edp) != edp:
                        continue
                    for count in counts:
                        yield Split(tp, stage // tp, pp, ep, etp, edp, count)


def _allowed(pins: dict[str, int], name: str, values: list[int]) -> list[int]:
    return [value for value in values if pins.get(name, value) == value]


def redundancies(instance: Instance, split: Split, space: SearchSpace) -> list[int]:
    """Numbers of redundant experts to try for a split."""
    if split.ep == 1:
        return [0]
    if space.redundant_experts is not None:
        return [space.redundant_experts]
    experts = instance.model.moe.num_experts
    if not space.limits.rules.redundant_experts or space.limits.for_checkpoint:
        return [0]
    fewest = -(-experts // split.ep)
    most = min(fewest + _EXTRA_SLOTS, experts)
    tried = {slots * split.ep - experts for slots in range(fewest, most + 1)}
    return sorted(tried | {0})


@dataclass
class Candidate:
    """One split with its outcome so far."""

    split: Split
    redundant_experts: int
    reasons: list[Verdict]
    layout: str = ""
    """How it is laid on unequal GPUs, in words; empty: stages of consecutive GPUs, slots as even as possible."""
    cost: SplitCost | None = None
    memories: tuple[StageMemory, ...] = ()
    bound_s: float = 0.0
    """No plan with this split is faster."""
    step_s: float | None = None
    """Of the best plan found with this split."""
    cuts: tuple[range, ...] = ()
    free_bytes: int = 0
    """Memory left on the fullest GPU under the cuts that need least."""
    layer_bound: dict[tuple[bytes, ...], Floats] = field(default_factory=dict)
    """Proved seconds of each traced layer, by kind of stage."""

    @property
    def is_feasible(self) -> bool:
        """Whether no rule is broken."""
        return not self.reasons

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
            bound_S = layer_bound_S(problem)
            self._rough[key] = bound_S.reshape(len(self.instance.loads), -1).mean(axis=1)
        return self._rough[key]

    def limits(self, candidate: Candidate, traced_KM: list[Floats]) -> StageLimits:
        """Seconds and bytes of every layer on every stage, given those of the traced MoE layers."""
        cost = candidate.cost
        assert cost is not None
        layer_s = []
        for stage, traced_M in zip(cost.stages, traced_KM, strict=True):
            seconds_L = stage.fixed_L.copy()
            seconds_L[self._traced_L] += traced_M[self._rows]
            if len(self._untraced_L):
                seconds_L[self._untraced_L] += np.mean([t.total_S.mean() for t in cost.linear_times(stage)])
            layer_s.append(seconds_L)
        last = len(cost.stages) - 1
        return replace(
            memory_limits(self.instance, candidate),
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


def memory_limits(instance: Instance, candidate: Candidate) -> StageLimits:
    """Bytes of every layer on the ranks of every stage, fullest first among those of equal memory; no times."""
    assert candidate.cost is not None
    return limits_of(instance, candidate.memories, candidate.cost)


def limits_of(instance: Instance, memories: tuple[StageMemory, ...], cost: SplitCost) -> StageLimits:
    """The same for any memories of the stages."""
    layers = instance.model.num_layers
    is_moe = np.zeros(layers, dtype=np.int64)
    is_moe[list(instance.model.moe_layer_ids)] = 1
    most = [fullest_ranks(stage, memory) for stage, memory in zip(cost.stages, memories, strict=True)]
    kinds = max(len(of_stage) for of_stage in most)
    padded = [of_stage + of_stage[-1:] * (kinds - len(of_stage)) for of_stage in most]
    rows = {id(memory): np.array(memory.layer_bytes, dtype=np.int64) for memory in memories}
    layer_bytes = np.zeros((len(memories), kinds, layers), dtype=np.int64)
    for k, (memory, of_stage) in enumerate(zip(memories, padded, strict=True)):
        for q, (_, slots) in enumerate(of_stage):
            layer_bytes[k, q] = rows[id(memory)] + is_moe * (slots * memory.slot_bytes)
    return StageLimits(
        layer_s_KL=np.zeros((len(memories), layers)),
        extra_s_K=np.zeros(len(memories)),
        layer_bytes_KQL=layer_bytes,
        base_bytes_K=np.array([memory.base_bytes for memory in memories], dtype=np.int64),
        capacity_KQ=np.array([[capacity for capacity, _ in of_stage] for of_stage in padded], dtype=np.int64),
    )


def fullest_ranks(stage: StageCost, memory: StageMemory) -> list[tuple[int, int]]:
    """For each size of memory among the ranks of a stage, the size and the most slots of such a rank."""
    capacity_R = memory.capacity_R(stage.grid)
    return [(size, int(stage.slots_R[capacity_R == size].max())) for size in np.unique(capacity_R).tolist()]


def fullest_gpu(stage: StageCost, memory: StageMemory, capacity: int) -> int:
    """The GPU that is fullest among those of the ranks with so much memory."""
    split, capacity_R = stage.grid.split, memory.capacity_R(stage.grid)
    rank = int(np.where(capacity_R == capacity, stage.slots_R, -1).argmax())
    ids = np.array(stage.grid.gpus).reshape(split.edp, split.ep, split.etp)[:, rank].ravel()
    return int(ids[memory.instance.usable_G[ids].argmin()])


def laid_out(instance: Instance, split: Split, redundant: int, limits: Limits) -> Iterator[Candidate]:
    """One split in every way in which it is laid on the machine, checked against all rules and memory."""
    several = instance.topology.is_mixed
    for name, gpus in orders(instance.topology, split).items():
        even = ruled(instance, split, redundant, limits, gpus=gpus)
        even.layout = name
        yield even
        if not several or even.cost is None or split.ep == 1 or limits.rules.uneven_experts != "always":
            continue
        if limits.for_checkpoint:
            continue
        for how, slots_KR in unequal_slots(even.cost, even.memories):
            candidate = ruled(instance, split, redundant, limits, gpus=gpus, slots_KR=slots_KR)
            candidate.layout = ", ".join(words for words in (name, how) if words)
            yield candidate


def ruled(
    instance: Instance,
    split: Split,
    redundant: int,
    limits: Limits,
    *,
    gpus: Stages | None = None,
    slots_KR: tuple[Ints, ...] | None = None,
) -> Candidate:
    """Check one split, on these GPUs with these slots, against all rules and memory."""
    shares = None
    if gpus is not None:
        even_R = slots_of_ranks(instance.model.moe.num_experts + redundant, split.ep)
        shares = Shares(gpus, slots_KR or (even_R,) * split.pp)
    candidate = Candidate(split, redundant, broken_rules(instance, split, redundant, limits, shares))
    if any(broken.rule in ("slots", "stages", "batch") for broken in candidate.reasons):
        return candidate  # the grid itself makes no sense; memory has no meaning
    candidate.cost = split_cost(instance, split, redundant, gpus, slots_KR)
    grids = (stage.grid for stage in candidate.cost.stages)
    candidate.memories = stage_memories(instance, grids, instance.model.moe.num_experts + redundant)
    limits_of_memory = memory_limits(instance, candidate)
    over, stage, kind = least_memory_excess(limits_of_memory)
    candidate.free_bytes = -over
    if over > 0:
        capacity = int(limits_of_memory.capacity_KQ[stage, kind])
        gpu = fullest_gpu(candidate.cost.stages[stage], candidate.memories[stage], capacity)
        where = f"memory of GPU {gpu}, stage {stage}" if split.pp > 1 else f"memory of GPU {gpu}"
        needs, has = format_bytes(capacity + over), format_bytes(capacity)
        share = instance.constants.engine_memory.share
        detail = f"needs {needs}, has {has}" + (f", {format_percent(share.value, 0)} of all" if share.value < 1 else "")
        candidate.reasons.append(
            Verdict(where, needs, f"at most {has}", holds=False, detail=detail, source=share.source)
        )
    return candidate


def bounded(candidate: Candidate, bounder: Bounder) -> Candidate:
    """Give a feasible candidate its first bound and cuts."""
    cost = candidate.cost
    assert cost is not None
    rough = [bounder.rough_layers(cost, stage) for stage in cost.stages]
    found = bounder.step_bound(candidate, rough)
    assert found is not None, "cuts that fit were found before"
    candidate.bound_s, best = found
    candidate.cuts = best.cuts
    candidate.layer_bound = {stage.kind: bound.copy() for stage, bound in zip(cost.stages, rough, strict=True)}
    return candidate


def feasible_split(instance: Instance, space: SearchSpace) -> Split | None:
    """Some split that breaks no rule, or None; nothing is priced."""
    for split in all_splits(instance, space.pins):
        for redundant in redundancies(instance, split, space):
            if any(candidate.is_feasible for candidate in laid_out(instance, split, redundant, space.limits)):
                return split
    return None


def count_candidates(instance: Instance, space: SearchSpace) -> int:
    """How many splits there are, with their numbers of copies; some may be laid on the machine in several ways."""
    return sum(len(redundancies(instance, split, space)) for split in all_splits(instance, space.pins))


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
    for split in all_splits(instance, space.pins):
        for redundant in redundancies(instance, split, space):
            found += laid_out(instance, split, redundant, space.limits)
            one_done()
    for candidate in found:
        if candidate.is_feasible:
            bounded(candidate, bounder)
        one_done()
    return sorted(found, key=lambda c: (not c.is_feasible, c.bound_s, c.order))
