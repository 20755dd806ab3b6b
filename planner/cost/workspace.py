"""Working space of a GPU: hidden states, rows of the experts, logits, of one micro-batch.

Nobody measured these: the factors are assumptions that the report marks as such.
"""

from __future__ import annotations

from typing import Final

from planner.cost.instance import Instance
from planner.cost.lines import MemoryLine
from planner.inputs.model import DenseFfn
from planner.plan.split import Split

_BF16_BYTES: Final = 2
_FP32_BYTES: Final = 4
_HIDDEN_STATES: Final = 8
_BALANCE: Final = 2
"""Rows of the fullest rank over the mean that there is room for."""


def tokens_at_once(instance: Instance, split: Split, step_tokens: int) -> int:
    """Tokens that a data-parallel rank works on at once: its micro-batch and prompts, in their chunks."""
    work = instance.workload
    tokens = -(-step_tokens // (split.micro_batches * split.dp))
    if work.phase == "decode":
        return tokens + work.prefill_chunk
    return min(tokens, work.prefill_chunk) if work.prefill_chunk else tokens


def workspace(
    instance: Instance, split: Split, step_tokens: int, context_length: int, *, last: bool
) -> list[MemoryLine]:
    """Lines of the working space of one GPU.

    Eight hidden states and three times the widest dense part per token; on the experts' side twice
    the balanced number of rows, each with its way in and out and the three parts of an expert; fp32
    logits of every sequence in decode (and of one prompt whose last chunk is among them), of the last
    token of every prompt in prefill.

    Args:
        instance: model and work.
        split: the degrees.
        step_tokens: B, tokens of a step of the whole deployment.
        context_length: tokens of a sequence.
        last: whether the stage has the LM head.
    """
    model, work = instance.model, instance.workload
    tokens = tokens_at_once(instance, split, step_tokens)
    at_once = f"{tokens:,} tokens at once"
    if work.prefill_chunk:
        at_once += f", prompts in chunks of {work.prefill_chunk:,}"
    dense = (run.ffn.intermediate_size for run in model.layers if isinstance(run.ffn, DenseFfn))
    widest = max(dense, default=0) // split.tp
    states = _BF16_BYTES * tokens * (_HIDDEN_STATES * model.hidden_size + 3 * widest)
    lines = [MemoryLine("activations", states, "assumed", f"{_HIDDEN_STATES} hidden states for each of {at_once}")]
    # Where the whole step is worked on at once its tokens count, not those of the ranks rounded up.
    chunked = work.prefill_chunk > 0
    total = tokens * split.dp * split.micro_batches if chunked else step_tokens
    rows = _BALANCE * -(-total * model.moe.top_k // (split.micro_batches * split.edp * split.ep))
    per_row = 2 * model.moe.expert_hidden_size(model.hidden_size) + 3 * (model.moe.intermediate_size // split.etp)
    source = f"{rows:,} rows, twice the balanced load, for {at_once}"
    lines.append(MemoryLine("expert workspace", _BF16_BYTES * rows * per_row, "assumed", source))
    if last:
        if work.phase == "decode":
            scored = tokens - work.prefill_chunk + (work.prefill_chunk > 0)
        else:
            scored = -(-tokens // context_length)
        logits = _FP32_BYTES * scored * -(-model.vocab_size // split.tp)
        lines.append(MemoryLine("logits", logits, "assumed", f"fp32, of {scored:,} tokens"))
    return lines
