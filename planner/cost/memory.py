"""Memory of every GPU, line by line: it adds up, and the heaviest GPU is named.

Whole bytes, rounded up per layer, so that a stage is the exact sum of its layers and solver, checker
and report agree to the last byte.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from planner.cost.buffers import collective_buffers, exchange_buffers, tokens_sent
from planner.cost.grid import Grid
from planner.cost.instance import Instance
from planner.cost.kv_cache import cache_name, kv_bytes_per_sequence, kv_bytes_per_token, state_bytes_per_sequence
from planner.cost.lines import MemoryLine, added
from planner.cost.weights import StageWeights
from planner.cost.workspace import workspace
from planner.inputs.model import Attention, LayerRun

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class StageMemory:
    """What the GPUs of one stage hold, apart from which layers it runs."""

    weights: StageWeights
    grid: Grid
    physical_experts: int
    """Experts of a layer, copies included, over all ranks."""
    step_tokens: int
    """B: tokens of a step of the whole deployment."""
    context_length: int
    """Tokens of a sequence."""

    # --- what the planner needs: sums --------------------------------------------------------------

    @cached_property
    def cache_lines(self) -> dict[LayerRun, tuple[MemoryLine, ...]]:
        """KV cache or state of one layer of each kind."""
        kinds = self.instance.model.layer_kinds
        by_attention = {run.attention: self._cache(run.attention) for run in kinds}
        return {run: by_attention[run.attention] for run in kinds}

    @cached_property
    def layer_bytes(self) -> tuple[int, ...]:
        """Bytes of each hidden layer, experts left out."""
        kinds = self.instance.model.layer_kinds
        total = [_sum(self.weights.run_lines[run]) + _sum(self.cache_lines[run]) for run in kinds]
        return tuple(total[kind] for kind in self.instance.model.kind_of_layer)

    @cached_property
    def base_lines(self) -> tuple[MemoryLine, ...]:
        """Lines that do not depend on the layers."""
        split, last = self.grid.split, self.weights.last
        space = workspace(self.instance, split, self.step_tokens, self.context_length, last=last)
        return added([*self.weights.end_lines, *space, *self._buffers(), *self._reserve()])

    @cached_property
    def base_bytes(self) -> int:
        """Bytes that do not depend on the layers."""
        return _sum(self.base_lines)

    @property
    def slot_bytes(self) -> int:
        """One expert slot of one layer on one GPU."""
        return self.weights.slot_bytes

    def capacity_R(self, grid: Grid) -> Ints:
        """Bytes that the engine uses of the smallest GPU of each EP rank of a stage [R]."""
        split = grid.split
        usable_G = self.instance.usable_G[list(grid.gpus)].reshape(split.edp, split.ep, split.etp)
        least: Ints = usable_G.min(axis=(0, 2))
        return least

    @property
    def instance(self) -> Instance:
        """Model, machine, work and constants."""
        return self.weights.instance

    @property
    def sequences(self) -> int:
        """Sequences of a data-parallel rank in decode; its tokens in prefill."""
        return -(-self.step_tokens // (self.grid.split.dp * self.instance.workload.tokens_per_sequence))

    # --- what the report needs: lines --------------------------------------------------------------

    def lines(self, layers: range, filled_slots: int) -> tuple[MemoryLine, ...]:
        """All lines of a GPU whose rank fills so many slots, summed over these layers."""
        runs = [self.instance.model.layer_list[index] for index in layers]
        parts = (line for run in runs for line in (*self.weights.run_lines[run], *self.cache_lines[run]))
        return added([*self.weights.experts(runs, filled_slots), *parts, *self.base_lines])

    def total(self, layers: range, filled_slots: int) -> int:
        """Bytes of such a GPU."""
        return self.base_bytes + sum(self.layer_bytes[layers.start : layers.stop]) + filled_slots * self.slot_bytes

    # --- parts ------------------------------------------------------------------------------------

    def _cache(self, attention: Attention) -> tuple[MemoryLine, ...]:
        """Decode: B / dp sequences of the context; prefill: the B / dp tokens of the step."""
        tp, cache = self.grid.split.tp, self.instance.constants.precision.kv_cache
        count, context = self.sequences, self.context_length
        if self.instance.workload.phase == "decode":
            num_bytes = count * kv_bytes_per_sequence(attention, tp, cache, context)
            source = f"{count:,} sequences of {context:,} tokens per data-parallel rank, in {cache}"
        else:
            states = math.ceil(count / context) * state_bytes_per_sequence(attention, tp)
            num_bytes = math.ceil(count * kv_bytes_per_token(attention, tp, cache)) + states
            source = f"{count:,} tokens per data-parallel rank, in {cache}"
        line = MemoryLine(cache_name(attention), num_bytes, "given", source)
        share = self.instance.constants.engine_memory.cache_share
        if share is None:
            return (line,)
        part = Fraction(str(share.value))
        beside = math.ceil(num_bytes * (1 - part) / part)
        return line, MemoryLine("left free beside the KV cache", beside, share.basis, share.source)

    def _buffers(self) -> list[MemoryLine]:
        split = self.grid.split
        level = self.grid.topology.file.node_level
        crosses = any(bool(group.unit_VR[level].any()) for group in self.grid.ep_groups)
        sent = tokens_sent(self.step_tokens, split)
        exchange = exchange_buffers(self.instance, split, self.physical_experts, sent, crosses_nodes=crosses)
        return [*exchange, *collective_buffers(self.instance, split)]

    def _reserve(self) -> list[MemoryLine]:
        """What the engine takes for itself."""
        memory, split = self.instance.constants.engine_memory, self.grid.split
        decoding = self.instance.workload.phase == "decode"
        captured = min(-(-self.sequences // split.micro_batches), memory.graph_sequences) if decoding else 0
        return [
            MemoryLine(
                line.name,
                line.fixed + line.per_gpu * split.stage_gpus * split.pp + line.per_sequence * captured,
                line.basis,
                line.source,
            )
            for line in memory.lines
        ]


def _sum(lines: Iterable[MemoryLine]) -> int:
    return sum(line.num_bytes for line in lines)


def stage_memories(instance: Instance, grids: Iterable[Grid], physical_experts: int) -> tuple[StageMemory, ...]:
    """Memory of every stage, in order, under the workload.

    Args:
        instance: model, machine, work and constants.
        grids: the stages.
        physical_experts: experts of a layer, copies included, over all ranks.
    """
    stages = tuple(grids)
    last, context = len(stages) - 1, instance.workload.context_length
    alike: dict[tuple[bool, bool, bytes], StageMemory] = {}
    memories = []
    for index, grid in enumerate(stages):
        kind = (index == 0, index == last, grid.pattern)
        if kind not in alike:
            weights = StageWeights(instance, grid.split, first=index == 0, last=index == last)
            alike[kind] = StageMemory(weights, grid, physical_experts, instance.step_tokens, context)
        memories.append(alike[kind])
    return tuple(memories)


def with_work(memories: Sequence[StageMemory], step_tokens: int, context_length: int) -> tuple[StageMemory, ...]:
    """The same stages with so many tokens per step, of sequences this long; equal stages stay one object."""
    changed = {
        id(memory): replace(memory, step_tokens=step_tokens, context_length=context_length) for memory in memories
    }
    return tuple(changed[id(memory)] for memory in memories)
