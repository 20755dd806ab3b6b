"""Memory of every GPU, line by line: it adds up, and the heaviest GPU is named.

Whole bytes, rounded up per layer, so that a stage is the exact sum of its layers and solver, checker
and report agree to the last byte.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Final

from planner.cost.buffers import collective_buffers, exchange_buffers, tokens_sent
from planner.cost.grid import Grid
from planner.cost.instance import Instance
from planner.cost.kv_cache import cache_name, kv_bytes_per_sequence, kv_bytes_per_token, state_bytes_per_sequence
from planner.cost.lines import MemoryLine, added
from planner.cost.workspace import workspace
from planner.inputs.model import DenseFfn, LayerRun, MoeFfn
from planner.inputs.parameters import (
    attention_parameters,
    dense_parameters,
    expert_parameters,
    router_parameters,
    shared_parameters,
)
from planner.inputs.precision import stored_bytes

_COUNTED: Final = "parameter count of the model"
_NORMS: Final = "norms and small weights"


@dataclass(frozen=True)
class StageMemory:
    """What the GPUs of one stage hold, apart from which layers it runs."""

    instance: Instance
    grid: Grid
    first: bool
    last: bool
    physical_experts: int
    """Experts of a layer, copies included, over all ranks."""
    step_tokens: int
    """B: tokens of a step of the whole deployment."""
    context_length: int
    """Tokens of a sequence."""

    # --- what the planner needs: sums --------------------------------------------------------------

    @cached_property
    def run_lines(self) -> dict[LayerRun, tuple[MemoryLine, ...]]:
        """Lines of one layer of each kind, experts left out."""
        return {run: added(self._layer(run)) for run in self.instance.model.layers}

    @cached_property
    def layer_bytes(self) -> tuple[int, ...]:
        """Bytes of each hidden layer, experts left out."""
        total = {run: sum(line.num_bytes for line in lines) for run, lines in self.run_lines.items()}
        return tuple(total[run] for run in self.instance.model.layer_list)

    @cached_property
    def base_lines(self) -> tuple[MemoryLine, ...]:
        """Lines that do not depend on the layers."""
        split = self.grid.split
        return added(
            [
                *self._ends(),
                *workspace(self.instance, split, self.step_tokens, self.context_length, last=self.last),
                *self._buffers(),
                *self._reserve(),
            ]
        )

    @cached_property
    def base_bytes(self) -> int:
        """Bytes that do not depend on the layers."""
        return sum(line.num_bytes for line in self.base_lines)

    @cached_property
    def slot_bytes(self) -> int:
        """One expert slot of one layer on one GPU."""
        model = self.instance.model
        one = expert_parameters(model.moe, model.hidden_size, self.grid.split.etp)
        return stored_bytes(one, self.instance.constants.precision.experts)

    @property
    def capacity_bytes(self) -> int:
        """Memory of the GPU."""
        return self.instance.topology.gpu.memory.value

    # --- what the report needs: lines --------------------------------------------------------------

    def lines(self, layers: range, filled_slots: int) -> tuple[MemoryLine, ...]:
        """All lines of a GPU whose rank fills so many slots, summed over these layers."""
        runs = [self.instance.model.layer_list[index] for index in layers]
        parts = (line for run in runs for line in self.run_lines[run])
        return added([*self._experts(runs, filled_slots), *parts, *self.base_lines])

    def total(self, layers: range, filled_slots: int) -> int:
        """Bytes of such a GPU."""
        return self.base_bytes + sum(self.layer_bytes[layers.start : layers.stop]) + filled_slots * self.slot_bytes

    # --- parts ------------------------------------------------------------------------------------

    def _experts(self, runs: list[LayerRun], filled_slots: int) -> list[MemoryLine]:
        """Slots up to an even share of the experts, and those beyond it: copies."""
        share = -(-self.instance.model.moe.num_experts // self.grid.split.ep)
        originals = min(filled_slots, share * sum(isinstance(run.ffn, MoeFfn) for run in runs))
        each = f"slots of {self.slot_bytes:,} B; {_COUNTED}"
        found = [("expert slots", originals), ("copies of experts", filled_slots - originals)]
        return [MemoryLine(name, count * self.slot_bytes, "given", f"{count:,} {each}") for name, count in found]

    def _layer(self, run: LayerRun) -> list[MemoryLine]:
        hidden, tp = self.instance.model.hidden_size, self.grid.split.tp
        precision = self.instance.constants.precision
        attention = stored_bytes(attention_parameters(run.attention, hidden, tp), precision.dense)
        small = stored_bytes(run.norms * hidden + run.extra_parameters, precision.embedding)
        lines = [MemoryLine("attention weights", attention, "given", _COUNTED)]
        if isinstance(run.ffn, DenseFfn):
            dense = stored_bytes(dense_parameters(run.ffn, hidden, tp), precision.dense)
            lines.append(MemoryLine("dense feed-forward weights", dense, "given", _COUNTED))
        else:
            router = stored_bytes(router_parameters(run.ffn, hidden), precision.embedding)
            lines += [*self._shared(run.ffn), MemoryLine("routers", router, "given", f"whole on every GPU; {_COUNTED}")]
        return [*lines, MemoryLine(_NORMS, small, "given", _COUNTED), *self._cache(run)]

    def _shared(self, moe: MoeFfn) -> list[MemoryLine]:
        parameters = shared_parameters(moe, self.instance.model.hidden_size, self.grid.split.tp)
        if not parameters:
            return []
        num_bytes = stored_bytes(parameters, self.instance.constants.precision.dense)
        return [MemoryLine("shared expert weights", num_bytes, "given", _COUNTED)]

    @property
    def sequences(self) -> int:
        """Sequences of a data-parallel rank in decode; its tokens in prefill."""
        return -(-self.step_tokens // self.grid.split.dp)

    def _cache(self, run: LayerRun) -> list[MemoryLine]:
        """Decode: B / dp sequences of the context; prefill: the B / dp tokens of the step."""
        tp, cache = self.grid.split.tp, self.instance.constants.precision.kv_cache
        count, context = self.sequences, self.context_length
        if self.instance.workload.phase == "decode":
            num_bytes = count * kv_bytes_per_sequence(run.attention, tp, cache, context)
            source = f"{count:,} sequences of {context:,} tokens per data-parallel rank, in {cache}"
        else:
            states = math.ceil(count / context) * state_bytes_per_sequence(run.attention, tp)
            num_bytes = math.ceil(count * kv_bytes_per_token(run.attention, tp, cache)) + states
            source = f"{count:,} tokens per data-parallel rank, in {cache}"
        lines = [MemoryLine(cache_name(run.attention), num_bytes, "given", source)]
        share = self.instance.constants.engine_memory.cache_share
        if share is not None:
            part = Fraction(str(share.value))
            beside = math.ceil(num_bytes * (1 - part) / part)
            lines.append(MemoryLine("left free beside the KV cache", beside, share.basis, share.source))
        return lines

    def _ends(self) -> list[MemoryLine]:
        model, precision = self.instance.model, self.instance.constants.precision
        rows = -(-model.vocab_size // self.grid.split.tp)
        num_bytes = stored_bytes(rows * model.hidden_size, precision.embedding)
        source = f"{rows:,} rows of the vocabulary x hidden size"
        lines = []
        if self.first:
            used = "; the LM head is tied to it" if model.tie_word_embeddings and self.last else ""
            lines.append(MemoryLine("embedding", num_bytes, "given", source + used))
        if self.last:
            tied = "a second copy of the tied embedding" if model.tie_word_embeddings else "not tied to the embedding"
            if not (model.tie_word_embeddings and self.first):
                lines.append(MemoryLine("LM head", num_bytes, "given", f"{source}; {tied}"))
            norm = stored_bytes(model.hidden_size + model.extra_parameters, precision.embedding)
            lines.append(MemoryLine(_NORMS, norm, "given", _COUNTED))
        return lines

    def _buffers(self) -> list[MemoryLine]:
        split = self.grid.split
        crosses = any(bool(group.unit_VR[0].any()) for group in self.grid.ep_groups)
        sent = tokens_sent(self.step_tokens, split)
        exchange = exchange_buffers(self.instance, split, self.physical_experts, sent, crosses_nodes=crosses)
        return [*exchange, *collective_buffers(self.instance, split)]

    def _reserve(self) -> list[MemoryLine]:
        """What the engine takes for itself, and what it leaves free."""
        memory, split = self.instance.constants.engine_memory, self.grid.split
        decoding = self.instance.workload.phase == "decode"
        captured = min(-(-self.sequences // split.micro_batches), memory.graph_sequences) if decoding else 0
        lines = [
            MemoryLine(
                line.name,
                line.fixed + line.per_gpu * split.stage_gpus * split.pp + line.per_sequence * captured,
                line.basis,
                line.source,
            )
            for line in memory.lines
        ]
        free = self.capacity_bytes - math.floor(self.capacity_bytes * Fraction(str(memory.share.value)))
        return [*lines, MemoryLine("left free by the engine", free, memory.share.basis, memory.share.source)]


def stage_memories(
    instance: Instance,
    grids: Iterable[Grid],
    physical_experts: int,
    *,
    step_tokens: int | None = None,
    context_length: int | None = None,
) -> tuple[StageMemory, ...]:
    """Memory of every stage, in order.

    Args:
        instance: model, machine, work and constants.
        grids: the stages.
        physical_experts: experts of a layer, copies included, over all ranks.
        step_tokens: tokens of a step instead of the workload's.
        context_length: tokens of a sequence instead of the workload's.
    """
    stages = tuple(grids)
    last = len(stages) - 1
    tokens = instance.step_tokens if step_tokens is None else step_tokens
    context = instance.workload.context_length if context_length is None else context_length
    alike: dict[tuple[bool, bool, bytes], StageMemory] = {}
    return tuple(
        alike.setdefault(
            (index == 0, index == last, grid.pattern),
            StageMemory(instance, grid, index == 0, index == last, physical_experts, tokens, context),
        )
        for index, grid in enumerate(stages)
    )
