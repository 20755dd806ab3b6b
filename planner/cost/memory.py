"""Memory of every GPU, line by line: it adds up, and the heaviest GPU is named.

Whole bytes, rounded up per layer, so that a stage is the exact sum of its layers and solver, checker
and report agree to the last byte.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from planner.cost.grid import Grid
from planner.cost.instance import Instance
from planner.cost.kv_cache import kv_bytes_per_sequence, kv_bytes_per_token, state_bytes_per_sequence
from planner.inputs.model import DenseFfn, LayerRun, MoeFfn
from planner.inputs.parameters import (
    attention_parameters,
    dense_parameters,
    expert_parameters,
    router_parameters,
    shared_parameters,
)
from planner.inputs.precision import stored_bytes
from planner.inputs.sourced import Basis

_BF16_BYTES = 2
_FP32_BYTES = 4
_COUNTED = "parameter count of the model"


@dataclass(frozen=True)
class MemoryLine:
    """One use of a GPU's memory."""

    name: str
    num_bytes: int
    basis: Basis
    source: str


def added(lines: Iterable[MemoryLine]) -> tuple[MemoryLine, ...]:
    """Lines of the same name added up, in order of first appearance; empty ones left out."""
    total: dict[str, MemoryLine] = {}
    for line in lines:
        before = total[line.name].num_bytes if line.name in total else 0
        total[line.name] = MemoryLine(line.name, before + line.num_bytes, line.basis, line.source)
    return tuple(line for line in total.values() if line.num_bytes)


@dataclass(frozen=True)
class StageMemory:
    """What the GPUs of one stage hold, apart from which layers it runs."""

    instance: Instance
    grid: Grid
    first: bool
    last: bool

    # --- what the planner needs: sums --------------------------------------------------------------

    @cached_property
    def run_lines(self) -> dict[LayerRun, tuple[MemoryLine, ...]]:
        """Lines of one layer of each kind, experts left out."""
        return {run: added(self._layer(run)) for run in self.instance.model.layer_kinds}

    @cached_property
    def layer_bytes(self) -> tuple[int, ...]:
        """Bytes of each hidden layer, experts left out."""
        total = [sum(line.num_bytes for line in lines) for lines in self.run_lines.values()]
        return tuple(total[kind] for kind in self.instance.model.kind_of_layer)

    @cached_property
    def base_lines(self) -> tuple[MemoryLine, ...]:
        """Lines that do not depend on the layers."""
        reserve = self.instance.constants.reserve
        return added(
            [
                *self._ends(),
                self._activations(),
                self._buffer(),
                MemoryLine("engine reserve", reserve.value, reserve.basis, reserve.source),
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
        experts = MemoryLine("expert slots", filled_slots * self.slot_bytes, "given", _COUNTED)
        return added([experts, *(line for run in runs for line in self.run_lines[run]), *self.base_lines])

    def total(self, layers: range, filled_slots: int) -> int:
        """Bytes of such a GPU."""
        return self.base_bytes + sum(self.layer_bytes[layers.start : layers.stop]) + filled_slots * self.slot_bytes

    # --- parts ------------------------------------------------------------------------------------

    def _layer(self, run: LayerRun) -> list[MemoryLine]:
        hidden, tp = self.instance.model.hidden_size, self.grid.split.tp
        precision = self.instance.constants.precision
        attention = stored_bytes(attention_parameters(run.attention, hidden, tp), precision.dense)
        small = run.norms * hidden + run.extra_parameters
        lines = [MemoryLine("attention weights", attention, "given", _COUNTED)]
        if isinstance(run.ffn, DenseFfn):
            dense = stored_bytes(dense_parameters(run.ffn, hidden, tp), precision.dense)
            lines.append(MemoryLine("dense feed-forward weights", dense, "given", _COUNTED))
        else:
            small += router_parameters(run.ffn, hidden)
            lines += self._shared(run.ffn)
        small_bytes = stored_bytes(small, precision.embedding)
        return [*lines, MemoryLine("routers and norms", small_bytes, "given", _COUNTED), self._cache(run)]

    def _shared(self, moe: MoeFfn) -> list[MemoryLine]:
        parameters = shared_parameters(moe, self.instance.model.hidden_size, self.grid.split.tp)
        if not parameters:
            return []
        num_bytes = stored_bytes(parameters, self.instance.constants.precision.dense)
        return [MemoryLine("shared expert weights", num_bytes, "given", _COUNTED)]

    def _cache(self, run: LayerRun) -> MemoryLine:
        """Decode: B / dp sequences of the context; prefill: the B / dp tokens of the step."""
        work, tp = self.instance.workload, self.grid.split.tp
        cache = self.instance.constants.precision.kv_cache
        count = math.ceil(self.instance.step_tokens / self.grid.split.dp)
        if work.phase == "decode":
            num_bytes = count * kv_bytes_per_sequence(run.attention, tp, cache, work.context_length)
            source = f"{count:,} sequences of {work.context_length:,} tokens per data-parallel rank, in {cache}"
        else:
            states = math.ceil(count / work.context_length) * state_bytes_per_sequence(run.attention, tp)
            num_bytes = math.ceil(count * kv_bytes_per_token(run.attention, tp, cache)) + states
            source = f"{count:,} tokens per data-parallel rank, in {cache}"
        return MemoryLine("KV cache", num_bytes, "given", source)

    def _ends(self) -> list[MemoryLine]:
        model, precision = self.instance.model, self.instance.constants.precision
        rows = -(-model.vocab_size // self.grid.split.tp)
        num_bytes = stored_bytes(rows * model.hidden_size, precision.embedding)
        source = "vocabulary x hidden size"
        lines = [MemoryLine("embedding", num_bytes if self.first else 0, "given", source)]
        if self.last:
            tied_here = model.tie_word_embeddings and self.first
            norm = stored_bytes(model.hidden_size + model.extra_parameters, precision.embedding)
            lines.append(MemoryLine("LM head and last norm", norm + (0 if tied_here else num_bytes), "given", source))
        return lines

    def _activations(self) -> MemoryLine:
        """Working space for one micro-batch.

        Eight hidden states and three times the widest dense part per token, the permuted rows of the
        experts at twice the balanced load, and fp32 logits.
        """
        model, split, work = self.instance.model, self.grid.split, self.instance.workload
        step_tokens = self.instance.step_tokens
        tokens = math.ceil(step_tokens / (split.micro_batches * split.dp))
        dense = (run.ffn.intermediate_size for run in model.layers if isinstance(run.ffn, DenseFfn))
        widest = max(dense, default=0) // split.tp
        rows = 2 * math.ceil(step_tokens * model.moe.top_k / (split.micro_batches * split.edp * split.ep))
        per_row = 2 * model.moe.expert_hidden_size(model.hidden_size) + 3 * (model.moe.intermediate_size // split.etp)
        num_bytes = _BF16_BYTES * (tokens * (8 * model.hidden_size + 3 * widest) + rows * per_row)
        if self.last:
            scored = tokens if work.phase == "decode" else math.ceil(tokens / work.context_length)
            num_bytes += _FP32_BYTES * scored * -(-model.vocab_size // split.tp)
        source = "8 hidden states per token, expert rows at twice the balanced load, fp32 logits"
        return MemoryLine("activations", num_bytes, "assumed", source)

    def _buffer(self) -> MemoryLine:
        buffer = self.instance.constants.kernel.buffer
        return MemoryLine(
            "communication buffers", buffer.value if self.grid.split.ep > 1 else 0, buffer.basis, buffer.source
        )


def stage_memories(instance: Instance, grids: Iterable[Grid]) -> tuple[StageMemory, ...]:
    """Memory of every stage, in order."""
    stages = tuple(grids)
    last = len(stages) - 1
    alike: dict[tuple[bool, bool], StageMemory] = {}  # memory does not depend on which GPUs they are
    return tuple(
        alike.setdefault((index == 0, index == last), StageMemory(instance, grid, index == 0, index == last))
        for index, grid in enumerate(stages)
    )
