"""Bytes of KV cache by kind of attention."""

from __future__ import annotations

from fractions import Fraction

from planner.inputs.model import Attention, LatentAttention
from planner.inputs.parameters import kv_heads_per_gpu
from planner.inputs.precision import CACHE_BITS


def kv_elements_per_token(attention: Attention, tp: int) -> int:
    """Numbers that one layer keeps per token on one of tp GPUs.

    Latent attention keeps one compressed vector and one rotary key for all heads, whole on every
    GPU of the tensor-parallel group (DeepSeek-V2, arXiv 2405.04434, section 2.1.4).
    """
    if isinstance(attention, LatentAttention):
        return attention.kv_lora_rank + attention.qk_rope_head_dim
    return 2 * kv_heads_per_gpu(attention.num_kv_heads, tp) * attention.head_dim


def kv_bytes_per_token(attention: Attention, tp: int, cache: str) -> float:
    """Bytes that one layer keeps per token on one of tp GPUs."""
    return float(kv_elements_per_token(attention, tp) * CACHE_BITS[cache] / 8)


def kept_tokens(attention: Attention, context_length: int) -> int:
    """Tokens of a sequence that stay in the cache: all, or those in the sliding window."""
    if isinstance(attention, LatentAttention) or attention.window is None:
        return context_length
    return min(context_length, attention.window)


def kv_bytes_per_sequence(attention: Attention, tp: int, cache: str, context_length: int) -> int:
    """Bytes that one layer keeps for a sequence of so many tokens, rounded up."""
    elements = kv_elements_per_token(attention, tp) * kept_tokens(attention, context_length)
    exact = Fraction(elements) * CACHE_BITS[cache] / 8
    return -(-exact.numerator // exact.denominator)
