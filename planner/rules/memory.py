"""Whether a split fits in memory: its stages are cut where they need least, and the fullest GPU counts.

Legend: K stages, L hidden layers, Q kinds of ranks of a stage by memory, R EP ranks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from planner.cost.grid import Grid
from planner.cost.instance import Instance
from planner.cost.memory import StageMemory, stage_memories, with_work
from planner.inputs.units import format_bytes, format_percent
from planner.plan.split import Split
from planner.rules.cuts import StageLimits, cuts_of_least_memory, even_layers, least_memory_excess
from planner.rules.shares import Shares
from planner.rules.verdict import Verdict

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Occupancy:
    """The stages of a split and what their GPUs hold."""

    instance: Instance
    grids: tuple[Grid, ...]
    slots_KR: tuple[Ints, ...]
    """Filled slots of each EP rank."""
    memories: tuple[StageMemory, ...]
    even_cuts: bool = False
    """Whether the stages have as equally many layers as can be."""

    @cached_property
    def limits(self) -> StageLimits:
        """Bytes of every layer on the ranks of every stage, fullest first among those of equal memory; no times."""
        layers = self.instance.model.num_layers
        is_moe = np.zeros(layers, dtype=np.int64)
        is_moe[list(self.instance.model.moe_layer_ids)] = 1
        most = [self.fullest_ranks(stage) for stage in range(len(self.grids))]
        kinds = max(len(of_stage) for of_stage in most)
        padded = [of_stage + of_stage[-1:] * (kinds - len(of_stage)) for of_stage in most]
        rows = {id(memory): np.array(memory.layer_bytes, dtype=np.int64) for memory in self.memories}
        layer_bytes = np.zeros((len(self.memories), kinds, layers), dtype=np.int64)
        for k, (memory, of_stage) in enumerate(zip(self.memories, padded, strict=True)):
            for q, (_, slots) in enumerate(of_stage):
                layer_bytes[k, q] = rows[id(memory)] + is_moe * (slots * memory.slot_bytes)
        return StageLimits(
            layer_s_KL=np.zeros((len(self.memories), layers)),
            extra_s_K=np.zeros(len(self.memories)),
            layer_bytes_KQL=layer_bytes,
            base_bytes_K=np.array([memory.base_bytes for memory in self.memories], dtype=np.int64),
            capacity_KQ=np.array([[capacity for capacity, _ in of_stage] for of_stage in padded], dtype=np.int64),
            layers_K=even_layers(layers, len(self.memories)) if self.even_cuts else None,
        )

    @cached_property
    def excess(self) -> tuple[int, int, int]:
        """Bytes by which the fullest rank is over its memory (below 0: it has room), its stage, its memory."""
        over, stage, kind = least_memory_excess(self.limits)
        return over, stage, int(self.limits.capacity_KQ[stage, kind])

    @cached_property
    def cuts(self) -> tuple[range, ...]:
        """The cuts that need least memory."""
        return cuts_of_least_memory(self.limits)

    def fullest_ranks(self, stage: int) -> list[tuple[int, int]]:
        """For each size of memory among the ranks of a stage, the size and the most slots of such a rank."""
        capacity_R = self.memories[stage].capacity_R(self.grids[stage])
        slots_R = self.slots_KR[stage]
        return [(size, int(slots_R[capacity_R == size].max())) for size in np.unique(capacity_R).tolist()]

    def fullest_gpu(self, stage: int, capacity: int) -> int:
        """The GPU that is fullest among those of the ranks with so much memory."""
        grid, split = self.grids[stage], self.grids[stage].split
        capacity_R = self.memories[stage].capacity_R(grid)
        rank = int(np.where(capacity_R == capacity, self.slots_KR[stage], -1).argmax())
        ids = np.array(grid.gpus).reshape(split.edp, split.ep, split.etp)[:, rank].ravel()
        return int(ids[self.instance.usable_G[ids].argmin()])

    def with_work(self, step_tokens: int, context_length: int) -> Occupancy:
        """The same with so many tokens per step, of sequences this long."""
        return replace(self, memories=with_work(self.memories, step_tokens, context_length))


def occupancy(
    instance: Instance, split: Split, redundant: int, shares: Shares, *, even_cuts: bool = False
) -> Occupancy:
    """What a split holds under the workload."""
    grids = shares.grids(split, instance)
    memories = stage_memories(instance, grids, instance.model.moe.num_experts + redundant)
    return Occupancy(instance, grids, shares.slots_KR, memories, even_cuts)


def memory_verdict(held: Occupancy) -> Verdict | None:
    """The rule of memory if it is broken."""
    over, stage, capacity = held.excess
    if over <= 0:
        return None
    gpu = held.fullest_gpu(stage, capacity)
    where = f"memory of GPU {gpu}, stage {stage}" if len(held.grids) > 1 else f"memory of GPU {gpu}"
    needs, has = format_bytes(capacity + over), format_bytes(capacity)
    share = held.instance.constants.engine_memory.share
    detail = f"needs {needs}, has {has}" + (f", {format_percent(share.value, 0)} of all" if share.value < 1 else "")
    return Verdict(where, needs, f"at most {has}", holds=False, detail=detail, source=share.source)
