"""What goes with a node: copies of experts, requests, and what must be read again.

Legend: L MoE layers, P slots, G GPUs, R EP ranks, Y copies of the expert grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.cost.weights import expert_bytes
from planner.errors import UsageError
from planner.inputs.topology import Topology
from planner.plan.plan import Plan


@dataclass(frozen=True)
class Loss:
    """What a plan loses with some nodes."""

    nodes: tuple[int, ...]
    gpus: tuple[int, ...]
    """Ids in the plan."""
    last_copies: dict[int, tuple[int, ...]]
    """For each MoE layer the experts of which no copy is left; layers that lose none are left out."""
    copies: int
    """Copies of experts lost over all layers, last ones included; a copy needs all GPUs that share it."""
    whole_stages: tuple[int, ...]
    """Pipeline stages of which no GPU is left: their layers are gone altogether."""
    sequences: int
    """Sequences in flight (prefill: tokens) of the data-parallel ranks that lose a GPU; their KV cache is gone."""
    of: str
    """What is counted there: "sequences" or "tokens"."""
    reload_bytes: int
    """Weights of the experts whose last copy is gone, once each."""


def loss_of(plan: Plan, nodes: tuple[int, ...]) -> Loss:
    """What a plan loses with nodes of its machine."""
    machine = plan.inputs.machine
    gone = np.flatnonzero(np.isin(machine.node_G, nodes))
    left = {layer: _experts_left(plan, layer, set(gone.tolist())) for layer in range(len(plan.placement.layer_ids))}
    experts = set(range(plan.inputs.model.moe.num_experts))
    lost = {
        plan.placement.layer_ids[row]: tuple(sorted(experts - alive))
        for row, (alive, _) in left.items()
        if experts - alive
    }
    split = plan.split
    whole, broken_D = [], np.zeros(split.dp, dtype=bool)
    for number, stage in enumerate(plan.stages):
        dead_G = np.isin(stage.gpus, gone)
        if dead_G.all():
            whole.append(number)
        broken_D |= dead_G.reshape(split.dp, split.tp).any(axis=1)  # a sequence is on its rank in every stage
    work = plan.inputs.workload
    per_rank = work.tokens_per_gpu * plan.inputs.gpus / split.dp / work.tokens_per_sequence
    return Loss(
        nodes=nodes,
        gpus=tuple(gone.tolist()),
        last_copies=lost,
        copies=sum(copies for _, copies in left.values()),
        whole_stages=tuple(whole),
        sequences=round(per_rank * int(broken_D.sum())),
        of="sequences" if work.phase == "decode" else "tokens",
        reload_bytes=sum(map(len, lost.values())) * expert_bytes(plan.inputs.model, plan.inputs.cost.precision.experts),
    )


def _experts_left(plan: Plan, row: int, gone: set[int]) -> tuple[set[int], int]:
    """Experts of a layer with a copy on GPUs that are all left, and the copies lost."""
    split, slots = plan.split, plan.placement.slots_per_rank
    layer = plan.placement.layer_ids[row]
    stage = next(one for one in plan.stages if one.layers[0] <= layer < one.layers[1])
    grid_YRG = np.array(stage.gpus).reshape(split.edp, split.ep, split.etp)
    held_R = np.array(plan.placement.physical_to_logical[row]).reshape(split.ep, slots)
    alive, lost = set(), 0
    for grid_RG in grid_YRG:
        for rank, gpus in enumerate(grid_RG.tolist()):
            experts = [expert for expert in held_R[rank].tolist() if expert >= 0]
            if gone.isdisjoint(gpus):
                alive.update(experts)
            else:
                lost += len(experts)
    return alive, lost


def nodes_named(texts: tuple[str, ...], machine: Topology) -> tuple[int, ...]:
    """Nodes as people name them: `n3` or `3`, counted from 0 in the order of the file."""
    found = []
    for text in texts:
        digits = text.strip().removeprefix("n")
        if not digits.isdecimal() or len(digits) > 6 or int(digits) not in machine.node_G:
            known = sorted(set(machine.node_G.tolist()))
            hint = f"nodes with GPUs in service: {', '.join(f'n{node}' for node in known[:16])}"
            raise UsageError(f"--lose {text}: no such node", hint=hint)
        found.append(int(digits))
    return tuple(dict.fromkeys(found))
