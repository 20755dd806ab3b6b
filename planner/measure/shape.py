"""Sizes of the micro-run: those of the model, or shrunken ones for an emulation.

Legend: H hidden size, F width of an expert on one GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from planner.cost.instance import Instance
from planner.cost.kv_cache import attended_entries
from planner.inputs.model import Attention, CompressedAttention, GroupedAttention, LatentAttention, StateAttention
from planner.inputs.parameters import attention_parameters, kv_heads_per_gpu
from planner.inputs.precision import CACHE_BITS, ActivationName, WeightName
from planner.plan.split import Split

_EMULATED_HIDDEN: Final = 64
_MULTIPLE: Final = 8


@dataclass(frozen=True)
class AttentionShape:
    """Attention-shaped work of one layer on one GPU; `seen` entries for each token."""

    heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    seen: int
    extra_width: int = 0
    """Further columns of the first projection, so that the weights count right."""
    values_are_keys: bool = False
    """Values are the first part of the keys (latent and compressed attention)."""
    per_sequence: bool = True
    """Whether every token reads a cache of its own (decode)."""
    state_elements: int = 0
    """Instead of a cache: a recurrent state per sequence that is read and written."""


@dataclass(frozen=True)
class Shape:
    """Everything that the ranks compute with."""

    hidden: int
    expert_hidden: int
    """Width of a token as experts get it."""
    expert_width: int
    """F on one GPU."""
    gated: bool
    num_experts: int
    etp: int
    tp: int
    experts: WeightName
    kv_cache: str
    dispatch: ActivationName
    combine: ActivationName
    attention: dict[int, AttentionShape | None]
    """By MoE hidden layer; None: no attention there."""
    scale: int = 1
    """By what the sizes were divided."""


def real_shape(instance: Instance, split: Split) -> Shape:
    """The sizes of the model."""
    model, precision = instance.model, instance.constants.precision
    return Shape(
        hidden=model.hidden_size,
        expert_hidden=model.moe.expert_hidden_size(model.hidden_size),
        expert_width=model.moe.intermediate_size // split.etp,
        gated=model.moe.gated,
        num_experts=model.moe.num_experts,
        etp=split.etp,
        tp=split.tp,
        experts=precision.experts,
        kv_cache=precision.kv_cache,
        dispatch=precision.dispatch,
        combine=precision.combine,
        attention={
            layer: _attention(instance, model.layer_list[layer].attention, split) for layer in model.moe_layer_ids
        },
    )


def emulated_shape(instance: Instance, split: Split, scale: int | None) -> Shape:
    """Sizes divided by `scale` (default: so that the hidden size is at most 64), everything in fp32."""
    real = real_shape(instance, split)
    by = scale or max(1, -(-real.hidden // _EMULATED_HIDDEN))
    small = AttentionShape(heads=1, kv_heads=1, key_dim=_MULTIPLE, value_dim=_MULTIPLE, seen=4, per_sequence=False)
    hidden = _divided(real.hidden, by)
    return Shape(
        hidden=hidden,
        expert_hidden=hidden if real.expert_hidden == real.hidden else _divided(real.expert_hidden, by),
        expert_width=_divided(real.expert_width, by),
        gated=real.gated,
        num_experts=real.num_experts,
        etp=real.etp,
        tp=real.tp,
        experts="fp32",
        kv_cache="fp32",
        dispatch="fp32",
        combine="fp32",
        attention={layer: None if shape is None else small for layer, shape in real.attention.items()},
        scale=by,
    )


def _divided(size: int, by: int) -> int:
    return max(_MULTIPLE, size // by // _MULTIPLE * _MULTIPLE)


def _attention(instance: Instance, attention: Attention, split: Split) -> AttentionShape | None:
    work, hidden = instance.workload, instance.model.hidden_size
    decode = work.phase == "decode"
    parameters = attention_parameters(attention, hidden, split.tp)
    if isinstance(attention, StateAttention):
        heads = max(1, attention.num_heads // split.tp)
        width = max(_MULTIPLE, parameters // hidden // 2 // heads)
        state = attention.state_elements // split.tp if decode else 0
        return AttentionShape(heads, heads, width, width, 1, state_elements=state, per_sequence=False)
    seen = attended_entries(attention, work.context_length)
    if not decode and seen == work.context_length:
        seen = (seen + 1) / 2  # causal: on average half of the prompt
    if decode:
        seen *= _part_held(instance)
    entries = max(1, round(seen))
    if isinstance(attention, GroupedAttention):
        heads, dim = attention.num_heads // split.tp, attention.head_dim
        kv_heads = kv_heads_per_gpu(attention.num_kv_heads, split.tp)
        extra = max(0, parameters // hidden - 2 * heads * dim)
        return AttentionShape(heads, kv_heads, dim, dim, entries, extra, per_sequence=decode)
    if isinstance(attention, LatentAttention):
        heads = attention.num_heads // split.tp * attention.blocks
        key, value = attention.kv_lora_rank + attention.qk_rope_head_dim, attention.kv_lora_rank
        if not decode:
            key, value = attention.qk_nope_head_dim + attention.qk_rope_head_dim, attention.v_head_dim
        return AttentionShape(heads, 1, key, value, entries, 0, values_are_keys=True, per_sequence=decode)
    if isinstance(attention, CompressedAttention):
        heads, dim = attention.num_heads // split.tp, attention.head_dim
        return AttentionShape(heads, 1, dim, dim, entries, 0, values_are_keys=True, per_sequence=decode)
    return None


def _part_held(instance: Instance) -> float:
    """Part of the entries that are held where a cache is narrower than what is computed in: its bytes are as booked."""
    precision = instance.constants.precision
    computed = 32 if precision.experts == "fp32" else 16
    return min(1.0, float(CACHE_BITS[precision.kv_cache]) / computed)
