"""How a split may be laid on a machine of unequal GPUs: which GPUs form a stage, and who holds how many experts.

With equal GPUs there is one way, consecutive ids and even slots. Otherwise these are looked at, each
as a candidate of its own (docs/model.md, "Unequal GPUs"):

- the order of GPUs: as numbered; kinds together, so that stages are of whole kinds where they can be,
  in order of first appearance and reversed; and each stage with the same part of every kind;
- the slots of a stage's ranks: even; in proportion to the speed of the ranks, as far as memory allows;
  in proportion to the memory that is left.

Legend: G GPUs, K stages, R EP ranks.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from planner.cost.memory import StageMemory
from planner.cost.step import SplitCost, StageCost
from planner.inputs.model import MoeFfn
from planner.inputs.topology import Topology
from planner.plan.split import Split

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

Stages = tuple[tuple[int, ...], ...]
"""GPU ids of each stage in rank order."""


def orders(topology: Topology, split: Split) -> dict[str, Stages]:
    """The ways to form stages, by name; the first, as numbered, has none, and with equal GPUs is the only one."""
    numbered_G = np.arange(topology.num_gpus)
    found = {"": numbered_G}
    if topology.is_mixed:
        found["GPUs by kind"] = np.argsort(topology.kind_G, kind="stable")
        if split.pp > 1:
            found["GPUs by kind, last first"] = np.argsort(-topology.kind_G, kind="stable")
            parts = [np.flatnonzero(topology.kind_G == kind) for kind in range(len(topology.kinds))]
            if all(len(part) % split.pp == 0 for part in parts):
                dealt = [np.split(part, split.pp) for part in parts]
                mixed = [one for stage in zip(*dealt, strict=True) for one in stage]
                found["every kind in every stage"] = np.concatenate(mixed)
    different: dict[Stages, str] = {}
    for name, order_G in found.items():
        different.setdefault(tuple(tuple(stage.tolist()) for stage in np.split(order_G, split.pp)), name)
    return {name: stages for stages, name in different.items()}


def unequal_slots(cost: SplitCost, memories: tuple[StageMemory, ...]) -> Iterator[tuple[str, tuple[Ints, ...]]]:
    """Ways to give the ranks unequal numbers of slots, by name, for a split with even slots."""
    experts = cost.instance.model.moe.num_experts
    seen = {tuple(stage.slots_R.tobytes() for stage in cost.stages)}
    for name in ("slots by speed", "slots by memory"):
        slots_KR = []
        for stage, memory in zip(cost.stages, memories, strict=True):
            room_R = _room_R(cost, stage, memory)
            most_R = np.clip(np.floor(room_R), 1, experts).astype(np.int64)
            total = int(stage.slots_R.sum())
            if most_R.sum() < total:
                most_R = np.full_like(most_R, experts)  # does not fit; the rules will say by how much
            weight_R = _speed_R(stage) if name == "slots by speed" else np.maximum(room_R, 1.0)
            slots_KR.append(apportioned(total, weight_R, most_R))
        key = tuple(slots_R.tobytes() for slots_R in slots_KR)
        if key not in seen:
            seen.add(key)
            yield name, tuple(slots_KR)


def apportioned(total: int, weight_R: Floats, most_R: Ints) -> Ints:
    """Whole parts of a total in proportion to weights, at least 1 each and at most so many.

    One by one to whoever is then least loaded in proportion (the method of D'Hondt), which minimises
    the largest part over its weight; the first rank among equals, so equal weights give even parts.
    """
    part_R = np.ones(len(weight_R), dtype=np.int64)
    for _ in range(total - len(weight_R)):
        after_R = np.where(part_R < most_R, (part_R + 1) / weight_R, np.inf)
        part_R[int(np.argmin(after_R))] += 1
    return part_R


def _speed_R(stage: StageCost) -> Floats:
    """Balanced loads per second of each rank."""
    moe = stage.moe
    seconds_C = []
    load = stage.dense.instance.loads[0]
    rows = float(load.choices_S.mean()) * moe.tokens / moe.num_ranks
    touched = min(float(load.share_SE.shape[1]) / moe.num_ranks, rows)
    for number, kernel in enumerate(moe.kernels_C):
        seconds_C.append(float(moe.class_s(number, np.array(rows), np.array(touched), 0.0)) - kernel.base_s)
    return np.asarray(1.0 / np.array(seconds_C)[moe.class_R])


def _room_R(cost: SplitCost, stage: StageCost, memory: StageMemory) -> Floats:
    """Slots for which each rank has memory if the stage runs its even part of the layers."""
    model, pp = cost.instance.model, cost.split.pp
    moe_layers = sum(isinstance(run.ffn, MoeFfn) for run in model.layer_list) / pp
    used = memory.base_bytes + sum(memory.layer_bytes) / pp
    return np.asarray((memory.capacity_R(stage.grid) - used) / (memory.slot_bytes * moe_layers))
