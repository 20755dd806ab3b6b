"""The KV cache of a request on its way from prefill to decode."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.cost.kv_cache import kv_bytes_per_sequence
from planner.cost.ports import Ports
from planner.inputs.deployment import Deployment
from planner.inputs.topology import Topology


@dataclass(frozen=True)
class WayOut:
    """The outermost link of a machine, as one transfer and as all of them find it."""

    level: str
    seconds: float
    """Of one transfer, from one GPU to one other."""
    bytes_per_s_per_gpu: float
    """What each GPU can send where all do."""


def cache_bytes(prefill: Deployment, tokens: int) -> int:
    """Bytes of the KV cache of a prompt with so many tokens."""
    cache = prefill.precision.kv_cache
    return sum(run.count * kv_bytes_per_sequence(run.attention, 1, cache, tokens) for run in prefill.model.layers)


def way_out(prefill: Deployment, machine: Topology, num_bytes: int) -> WayOut:
    """What a transfer takes to leave a machine.

    Args:
        prefill: says what its collectives reach of links.
        machine: of two nodes at least, so that there is a link to leave by.
        num_bytes: of one transfer.
    """
    ports = Ports(machine, prefill.collectives.collective_reach, tuple(range(machine.num_gpus)))
    level = len(machine.links) - 1
    necks = [one for one in ports.bottlenecks if one.level == level]  # ports, and uplinks where there are too few
    alone = min(float(neck.rate_U.min()) for neck in necks)
    together = min(float((neck.rate_U / np.bincount(neck.unit_G)).min()) for neck in necks)
    seconds = num_bytes / alone + float(machine.latency_VG[level].max())
    return WayOut(machine.links[level].level, seconds, together)
