"""Process groups of a rank: one device mesh for the dense part, one for the experts.

Dense: pipeline stage, data parallel, tensor parallel. Experts: stage, copy of the grid, EP rank,
expert-TP rank. Both hold the same ranks, in the order in which the plan lists the GPUs of its stages.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from planner.measure.exchange import counts_from
from planner.measure.seats import Seat, Seating


@dataclass(frozen=True)
class Groups:
    """The groups that one rank is in; None where it is alone."""

    tp: dist.ProcessGroup | None
    ep: dist.ProcessGroup | None
    etp: dist.ProcessGroup | None
    ep_order: tuple[int, ...] | None
    """EP rank of each member of `ep`, where a plan lists its GPUs otherwise than by rank, as torch does; else None."""
    stage: dist.ProcessGroup
    before: int | None
    """Rank that sends to this one: the same place in the stage before."""
    after: int | None


def make_groups(seating: Seating, seat: Seat, device: torch.device) -> Groups:
    """Make the meshes; every rank of the run must call this."""
    split = seating.plan.split
    dense = DeviceMesh(device.type, torch.from_numpy(seating.dense_KDT), mesh_dim_names=("pp", "dp", "tp"))
    experts = DeviceMesh(device.type, torch.from_numpy(seating.expert_KCRT), mesh_dim_names=("pp", "edp", "ep", "etp"))
    stage: dist.ProcessGroup = dist.group.WORLD
    if len(seating.stages) > 1:
        stage = [dist.new_group(ranks) for ranks in seating.rank_KI.tolist()][seat.turn]
    column = seating.rank_KI[:, seat.index].tolist()
    order = np.argsort(seating.expert_KCRT[seat.turn, seat.edp_rank, :, seat.etp_rank]).tolist()
    return Groups(
        tp=dense["tp"].get_group() if split.tp > 1 else None,
        ep=experts["ep"].get_group() if split.ep > 1 else None,
        etp=experts["etp"].get_group() if split.etp > 1 else None,
        ep_order=None if order == sorted(order) else tuple(order),
        stage=stage,
        before=column[seat.turn - 1] if seat.turn else None,
        after=column[seat.turn + 1] if seat.turn + 1 < len(column) else None,
    )


def connect(groups: Groups, device: torch.device) -> None:
    """Exchange a little in every group: libraries open connections, and take memory for them, at their first use."""
    for group in (groups.tp, groups.ep, groups.etp):
        if group is not None:
            counts_from([1] * dist.get_world_size(group), group, device)
    dist.barrier(groups.stage)
    word = torch.zeros(1, device=device)
    if groups.before is not None:
        dist.recv(word, groups.before)
    if groups.after is not None:
        dist.send(word, groups.after)
