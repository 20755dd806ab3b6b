"""Bytes of KV cache, or of recurrent state, by kind of attention."""

from __future__ import annotations

from fractions import Fraction
from typing import Final

from planner.inputs.model import Attention, CompressedAttention, GroupedAttention, LatentAttention, StateAttention
from planner.inputs.parameters import kv_heads_per_gpu
from planner.inputs.precision import CACHE_BITS

# Engines keep recurrent states in fp32 and the inputs of short convolutions in bf16, whatever the KV
# cache is kept in (`mamba_ssm_cache_dtype` of Nemotron-H, `mamba_ssm_dtype` of Qwen3.5: float32).
_STATE_BYTES: Final = 4
_CONV_BYTES: Final = 2


def cache_name(attention: Attention) -> str:
    """The line of a GPU's memory that holds this layer's cache or state."""
    if isinstance(attention, LatentAttention):
        return "KV cache, latent attention"
    if isinstance(attention, CompressedAttention):
        return "KV cache, compressed attention"
    if isinstance(attention, StateAttention):
        return f"state, {attention.mixer}"
    if isinstance(attention, GroupedAttention) and attention.window is not None:
        return "KV cache, sliding window"
    return "KV cache"


def kv_elements_per_token(attention: Attention, tp: int) -> Fraction:
    """Numbers that one layer keeps per token on one of tp GPUs, while the token is kept.

    Latent attention keeps one compressed vector and one rotary key for all heads, whole on every
    GPU of the tensor-parallel group (DeepSeek-V2, arXiv 2405.04434, section 2.1.4): for DeepSeek-V3
    512 + 64 per layer, which over 61 layers in bf16 is 61 x 576 x 2 = 70,272 bytes per token. An
    indexer keeps one key of its own. Compressed attention keeps one vector per entry; its window
    comes on top (`kv_bytes_per_sequence`). Recurrent states do not grow with the tokens: 0.
    """
    if isinstance(attention, LatentAttention):
        return Fraction(
            attention.blocks * (attention.kv_lora_rank + attention.qk_rope_head_dim + _index_dim(attention))
        )
    if isinstance(attention, CompressedAttention):
        rate = attention.compress_rate
        return Fraction(attention.head_dim + _index_dim(attention), rate) if rate else Fraction(0)
    if isinstance(attention, GroupedAttention):
        return Fraction(2 * kv_heads_per_gpu(attention.num_kv_heads, tp) * attention.head_dim)
    return Fraction(0)


def _index_dim(attention: LatentAttention | CompressedAttention) -> int:
    indexer = attention.indexer
    return indexer.head_dim if indexer is not None and indexer.own else 0


def kv_bytes_per_token(attention: Attention, tp: int, cache: str) -> float:
    """Bytes that one layer keeps per token on one of tp GPUs."""
    return float(kv_elements_per_token(attention, tp) * CACHE_BITS[cache] / 8)


def kept_tokens(attention: Attention, context_length: int) -> int:
    """Tokens of a sequence that stay in the cache: all, or those in the sliding window."""
    if isinstance(attention, GroupedAttention) and attention.window is not None:
        return min(context_length, attention.window)
    return context_length


def attended_entries(attention: Attention, context_length: int) -> float:
    """Cache entries that a query at the end of so many tokens reads: fewer where an indexer picks them."""
    indexer = attention.indexer if isinstance(attention, LatentAttention | CompressedAttention) else None
    if isinstance(attention, CompressedAttention):
        entries = context_length / attention.compress_rate if attention.compress_rate else 0.0
        if indexer is not None:
            entries = min(entries, indexer.top_k)
        return min(context_length, attention.window) + entries
    if indexer is not None:
        return min(context_length, indexer.top_k)
    return kept_tokens(attention, context_length)


def state_bytes_per_sequence(attention: Attention, tp: int) -> int:
    """Bytes that one layer keeps per sequence whatever its length, on one of tp GPUs.

    For Mamba-2 in Nemotron 3 Nano: 64 heads x 64 x 128 numbers in fp32, and 3 inputs of 6144
    convolution channels in bf16: 2,134,016 bytes.
    """
    if not isinstance(attention, StateAttention):
        return 0
    whole = attention.state_elements * _STATE_BYTES + attention.conv_elements * _CONV_BYTES
    return -(-whole // tp)


def kv_bytes_per_sequence(attention: Attention, tp: int, cache: str, context_length: int) -> int:
    """Bytes that one layer keeps for a sequence of so many tokens, rounded up."""
    elements = kv_elements_per_token(attention, tp) * kept_tokens(attention, context_length)
    if isinstance(attention, CompressedAttention):
        elements += min(context_length, attention.window) * attention.head_dim
    exact = elements * CACHE_BITS[cache] / 8
    return -(-exact.numerator // exact.denominator) + state_bytes_per_sequence(attention, tp)


def growth_per_token(attention: Attention, tp: int, cache: str, context_length: int) -> Fraction:
    """Bytes that one more token of a sequence this long takes in one layer: none beyond a sliding window."""
    if isinstance(attention, GroupedAttention) and kept_tokens(attention, context_length + 1) <= context_length:
        return Fraction(0)
    return kv_elements_per_token(attention, tp) * CACHE_BITS[cache] / 8
