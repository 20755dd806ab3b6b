"""The machine of a plan in words: GPUs by kind, memory by kind."""

from __future__ import annotations

import numpy as np

from planner.inputs.topology import Topology
from planner.plan.plan import Plan


def machine_text(machine: Topology) -> str:
    """Such as "4 x h200-sxm + 4 x h100-sxm on 2 nodes"."""
    counts = np.bincount(machine.kind_G, minlength=len(machine.kinds)).tolist()
    text = " + ".join(f"{count} x {gpu.name}" for count, gpu in zip(counts, machine.kinds, strict=True))
    return f"{text} on {machine.num_nodes} nodes" if machine.num_nodes > 1 else text


def fullest_gpus(plan: Plan, machine: Topology) -> list[tuple[str, int, int, int]]:
    """For each kind of GPU its name, the id of the fullest such GPU, its bytes in use and its memory."""
    used_G = np.array(plan.predicted.memory_bytes)
    found = []
    for kind, gpu in enumerate(machine.kinds):
        ids = np.flatnonzero(machine.kind_G == kind)
        fullest = int(ids[used_G[ids].argmax()])
        found.append((gpu.name, fullest, int(used_G[fullest]), gpu.memory.value))
    return found
