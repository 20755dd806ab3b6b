"""How to serve again after nodes are lost: the fewest weights brought to the GPUs that are left.

Splits with the degrees of tensor and expert-tensor parallelism of the plan in force (and as many stages, where there
are any such splits) keep weights usable where they are. For each that fits, with its least number of copies and with
that of the plan, the placement is sought that needs the fewest weights brought (`solve/restore.py`), exactly. Beside
these stands the split that solving anew found. Among those that bring as little, the fastest is the answer.

Legend: L MoE layers, P slots, K stages.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from planner.capacity.jobs import cores_for
from planner.capacity.survivors import Bringing, Loads, Survivors, same_weights
from planner.check import cost_of
from planner.cost.instance import Instance
from planner.cost.step import Cuts, SplitCost, predict, stage_of_layers
from planner.inputs.units import format_number_of
from planner.plan.decision import cuts_of, placement_of, split_of
from planner.plan.placement import Placement, widened
from planner.plan.plan import Plan, PlanInputs
from planner.processes import in_order
from planner.rules.grid import SearchSpace, all_splits
from planner.rules.ruled import RuledSplit, laid_out
from planner.solve.candidates import Bounder, Candidate, bounded
from planner.solve.problem import layer_problem
from planner.solve.restore import RestoreJob, restored
from planner.solve.solution import Options
from planner.solve.solver import GivenPlacement, booked_placement
from planner.solve.watch import Watch
from planner.solve.workers import Workers

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Repaired:
    """One way to serve again."""

    split: str
    redundant_experts: int
    step_s: float
    loads: Loads


@dataclass(frozen=True)
class Repair:
    """The cheapest way, and solving anew, in weights that must be brought."""

    cheapest: Repaired | None
    resolved: Repaired | None
    why_not: str
    """Why there is no cheapest; empty if there is."""
    given: GivenPlacement | None
    """The cheapest as a placement."""


@dataclass(frozen=True)
class _Option:
    """A split on the GPUs that are left, with its stages."""

    cost: SplitCost
    redundant_experts: int
    cuts: Cuts

    @property
    def gpus(self) -> tuple[tuple[int, ...], ...]:
        """Of each stage."""
        return tuple(stage.grid.gpus for stage in self.cost.stages)


def repair(before: Plan, lost_nodes: tuple[int, ...], after: Plan, instance: Instance, space: SearchSpace) -> Repair:
    """What to bring where.

    Args:
        before: the plan in force.
        lost_nodes: nodes of its machine that are gone.
        after: what solving anew found for the GPUs that are left.
        instance: of that plan.
        space: in which it was searched.
    """
    machine = before.inputs.machine
    ids_G = np.flatnonzero(~np.isin(machine.node_G, lost_nodes))
    if len(ids_G) < instance.topology.num_gpus and same_weights(before, instance):
        idle = format_number_of(instance.topology.num_gpus - len(ids_G), "GPU")
        return Repair(None, None, f"{idle} not in use until now would step in for those lost", None)
    if len(ids_G) != instance.topology.num_gpus or not same_weights(before, instance):
        return Repair(None, None, "more than the lost nodes is changed: GPUs, model or number formats", None)
    left = Survivors(before, ids_G)
    anew = _Option(cost_of(after, instance), after.placement.redundant_experts, cuts_of(after))
    resolved = _repaired(left, anew, placement_of(after))
    if space.limits.keep_groups or space.limits.for_checkpoint:
        return Repair(None, resolved, "routing groups are kept together, or a checkpoint is permuted", None)
    options = {(str(one.cost.split), one.redundant_experts, one.gpus): one for one in _options(before, instance, space)}
    options.setdefault((str(anew.cost.split), anew.redundant_experts, anew.gpus), anew)
    brought = [
        (Bringing(left, one.cost, one.cuts).loads(_placed(left, one, None)).total_bytes, one)
        for one in options.values()
    ]
    least = min(num_bytes for num_bytes, _ in brought)
    ways = []
    for option in (one for num_bytes, one in brought if num_bytes == least):
        placed = _placed(left, option, space)
        ways.append((_repaired(left, option, placed), option, placed))
    way, option, placed = min(ways, key=lambda one: one[0].step_s)
    given = GivenPlacement(option.cost.split, option.cuts, option.gpus, placed)
    return Repair(way, resolved, "", given)


def repaired_plan(
    found: Repair, inputs: PlanInputs, instance: Instance, space: SearchSpace, workers: Workers, watch: Watch
) -> Plan:
    """The cheapest way as a plan of its own, its split pinned; `inputs` are those of solving anew."""
    assert found.given is not None, "only what was found is written"
    assert found.cheapest is not None
    split, copies = found.given.split, found.cheapest.redundant_experts
    pins = {name: getattr(split, name) for name in ("tp", "dp", "pp", "ep", "etp", "edp")}
    search = inputs.search.model_copy(update={"pins": pins, "redundant_experts": copies})
    pinned = replace(space, pins=pins, redundant_experts=copies)
    told = inputs.model_copy(update={"search": search})
    return booked_placement(instance, pinned, Options.of(search), told, found.given, workers, watch)


def _repaired(left: Survivors, option: _Option, placement: Placement) -> Repaired:
    step_s = predict(option.cost, option.cuts, placement).step_s
    loads = Bringing(left, option.cost, option.cuts).loads(placement)
    return Repaired(str(option.cost.split), option.redundant_experts, step_s, loads)


# --- splits -----------------------------------------------------------------------------------------


def _options(before: Plan, instance: Instance, space: SearchSpace) -> list[_Option]:
    """Splits whose GPUs can use the weights that they hold, and that break no rule."""
    split = split_of(before)
    pins = {"tp": split.tp, "etp": split.etp}
    same_stages = {**pins, "pp": split.pp, "micro_batches": split.micro_batches}
    for tried in (same_stages, pins):
        found = [option for one in _fitting(before, instance, space, tried) for option in _cut(before, one)]
        if found:
            return found
    return []


def _fitting(before: Plan, instance: Instance, space: SearchSpace, pins: dict[str, int]) -> Iterator[RuledSplit]:
    experts, now = instance.model.moe.num_experts, before.placement.redundant_experts
    for split in all_splits(instance, pins):
        fill, more = -experts % split.ep, -(experts + now) % split.ep
        copies = {0} if split.ep == 1 else {0, fill, now, now + more}
        for redundant in sorted(copies):
            yield from (one for one in laid_out(instance, split, redundant, space.limits) if one.is_feasible)


def _cut(before: Plan, fits: RuledSplit) -> Iterator[_Option]:
    """The stages of the plan in force where they fit, and the fastest ones."""
    assert fits.held is not None, "what breaks no rule has a grid that makes sense"
    if fits.split.pp == 1:
        yield _Option(fits.cost, fits.redundant_experts, (range(fits.instance.model.num_layers),))
        return
    cuts, limits = cuts_of(before), fits.held.limits
    fastest = bounded(Candidate.of(fits), Bounder(fits.instance)).cuts
    if len(cuts) == fits.split.pp and cuts != fastest:
        used_KQ = np.stack(
            [limits.layer_bytes_KQL[k, :, layers.start : layers.stop].sum(axis=1) for k, layers in enumerate(cuts)]
        )
        if (used_KQ + limits.base_bytes_K[:, None] <= limits.capacity_KQ).all():
            yield _Option(fits.cost, fits.redundant_experts, cuts)
            return
    yield _Option(fits.cost, fits.redundant_experts, fastest)


# --- placements -------------------------------------------------------------------------------------


def _jobs(left: Survivors, option: _Option, space: SearchSpace | None) -> Iterator[RestoreJob]:
    """One for each MoE layer; without a space, times do not matter."""
    instance, stage_of = option.cost.instance, stage_of_layers(option.cost, option.cuts)
    load_of = dict(zip(instance.traced_layer_ids, instance.loads, strict=True))
    bringing = Bringing(left, option.cost, option.cuts)
    for row, layer in enumerate(left.plan.placement.layer_ids):
        stage, problem = stage_of[layer], None
        if space is not None and layer in load_of:
            problem = layer_problem(stage, load_of[layer], instance.model.moe, space.limits)
        lacking_ER = left.lacking_ER(row, option.cost.split, stage)
        yield RestoreJob(lacking_ER, bringing.far_ER(row, stage), stage.slots_R, problem)


def _placed(left: Survivors, option: _Option, space: SearchSpace | None) -> Placement:
    jobs = list(_jobs(left, option, space))
    windows, slots = option.cost.instance.num_windows, option.cost.physical_experts
    size = len(jobs) * windows * slots * option.cost.instance.model.moe.num_experts
    cores = 1 if space is None else cores_for(size)
    width, ranks = option.cost.slots_per_rank, option.cost.split.ep
    rows = [widened(expert_P, ranks, width) for expert_P in in_order(cores, restored, jobs)]
    return Placement(left.plan.placement.layer_ids, width, np.stack(rows))
