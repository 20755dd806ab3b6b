"""Weights that a GPU of a stage holds, line by line; they do not depend on the work.

Whole bytes, rounded up per layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from planner.cost.instance import Instance
from planner.cost.lines import MemoryLine, added
from planner.inputs.model import DenseFfn, LayerRun, Model, MoeFfn
from planner.inputs.parameters import (
    attention_parameters,
    dense_parameters,
    expert_parameters,
    router_parameters,
    shared_parameters,
)
from planner.inputs.precision import WeightName, stored_bytes
from planner.plan.split import Split

_COUNTED: Final = "parameter count of the model"
_NORMS: Final = "norms and small weights"


def expert_bytes(model: Model, weights: WeightName, etp: int = 1) -> int:
    """Weights of one expert of one layer, on each of the GPUs that share it."""
    return stored_bytes(expert_parameters(model.moe, model.hidden_size, etp), weights)


@dataclass(frozen=True)
class StageWeights:
    """Weights on the GPUs of one stage, apart from which layers it runs."""

    instance: Instance
    split: Split
    first: bool
    last: bool

    @cached_property
    def slot_bytes(self) -> int:
        """One expert slot of one layer on one GPU."""
        return expert_bytes(self.instance.model, self.instance.constants.precision.experts, self.split.etp)

    @cached_property
    def run_lines(self) -> dict[LayerRun, tuple[MemoryLine, ...]]:
        """Lines of one layer of each kind, experts left out."""
        return {run: added(self._layer(run)) for run in self.instance.model.layer_kinds}

    @cached_property
    def end_lines(self) -> tuple[MemoryLine, ...]:
        """Embedding, LM head, last norm: of the first and the last stage."""
        model, precision = self.instance.model, self.instance.constants.precision
        rows = -(-model.vocab_size // self.split.tp)
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
        return tuple(lines)

    def experts(self, runs: Sequence[LayerRun], filled_slots: int) -> tuple[MemoryLine, ...]:
        """Slots of a rank up to an even share of the experts, and those beyond it: copies."""
        share = -(-self.instance.model.moe.num_experts // self.split.ep)
        originals = min(filled_slots, share * sum(isinstance(run.ffn, MoeFfn) for run in runs))
        each = f"slots of {self.slot_bytes:,} B; {_COUNTED}"
        found = (("expert slots", originals), ("copies of experts", filled_slots - originals))
        return tuple(MemoryLine(name, count * self.slot_bytes, "given", f"{count:,} {each}") for name, count in found)

    def _layer(self, run: LayerRun) -> list[MemoryLine]:
        hidden, tp = self.instance.model.hidden_size, self.split.tp
        precision = self.instance.constants.precision
        attention = stored_bytes(attention_parameters(run.attention, hidden, tp), precision.dense)
        small = stored_bytes(run.norms * hidden + run.extra_parameters, precision.embedding)
        lines = [MemoryLine("attention weights", attention, "given", _COUNTED)]
        if isinstance(run.ffn, DenseFfn):
            dense = stored_bytes(dense_parameters(run.ffn, hidden, tp), precision.dense)
            lines.append(MemoryLine("dense feed-forward weights", dense, "given", _COUNTED))
        else:
            shared = stored_bytes(shared_parameters(run.ffn, hidden, tp), precision.dense)
            router = stored_bytes(router_parameters(run.ffn, hidden), precision.embedding)
            lines.append(MemoryLine("shared expert weights", shared, "given", _COUNTED))
            lines.append(MemoryLine("routers", router, "given", f"whole on every GPU; {_COUNTED}"))
        return [*lines, MemoryLine(_NORMS, small, "given", _COUNTED)]
