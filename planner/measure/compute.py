"""What a rank computes: experts as grouped GEMM, attention-shaped work, and the same once more as reference.

Weights are made, not loaded: each expert's follow from its layer, id and shard alone, so that any rank can
compute any expert again. The reference does that for some tokens: in one process, expert by expert, by
the ids in the trace, and knows neither placement nor exchange.

Legend: N rows, H hidden size, F width of an expert on one GPU, X experts held, K choices, C (row, choice) pairs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own abbreviation
from torch import Tensor

from planner.inputs.precision import WEIGHTS, WeightName
from planner.measure.shape import AttentionShape, Shape
from planner.measure.wire_format import Rows, rounded

_PLAIN: Final[dict[WeightName, torch.dtype]] = {"fp32": torch.float32, "bf16": torch.bfloat16}
_EXPERT_SEED: Final = 1 << 40
_ATTENTION_SEED: Final = 1 << 41
_KEPT_BYTES: Final = 32 << 20
"""Weights that the reference keeps for other windows."""


def compute_dtype(weights: WeightName) -> torch.dtype:
    """What is multiplied: narrower weights are opened to bf16 first."""
    return torch.float32 if weights == "fp32" else torch.bfloat16


def is_native(weights: WeightName) -> bool:
    """Whether the kernels of this run read the weights as they are stored."""
    return weights in _PLAIN


@dataclass(frozen=True)
class Held:
    """Weights of some experts of one layer, as they are stored."""

    first_XHF: Tensor
    """Up, and gate beside it."""
    second_XFH: Tensor

    @property
    def num_bytes(self) -> int:
        """Bytes that they take."""
        return sum(part.numel() * part.element_size() for part in (self.first_XHF, self.second_XFH))


def held_experts(layer: int, experts: list[int], shard: int, shape: Shape, device: torch.device) -> Held:
    """Make the weights of some experts of a layer on one of the `etp` shards."""
    width = shape.expert_width * (2 if shape.gated else 1)
    firsts, seconds = [], []
    for expert in experts:
        number = (layer * shape.num_experts + expert) * shape.etp + shard
        generator = torch.Generator(device).manual_seed(_EXPERT_SEED + number)
        firsts.append(_stored((shape.expert_hidden, width), shape.experts, generator))
        seconds.append(_stored((shape.expert_width, shape.expert_hidden), shape.experts, generator))
    return Held(torch.stack(firsts), torch.stack(seconds))


def _stored(size: tuple[int, int], weights: WeightName, generator: torch.Generator) -> Tensor:
    device = generator.device
    if weights in _PLAIN:
        values = torch.randn(size, generator=generator, device=device) / math.sqrt(size[0])
        return values.to(_PLAIN[weights])
    bits = 8 if WEIGHTS[weights].bits >= 8 else 4
    if bits == 8 and weights != "int8":
        return torch.randn(size, generator=generator, device=device).to(torch.float8_e4m3fn)
    packed = (size[0], size[1] * bits // 8)
    return torch.randint(0, 256, packed, generator=generator, device=device, dtype=torch.uint8)


def _opened(stored: Tensor, weights: WeightName) -> Tensor:
    """Weights as they are multiplied."""
    fan_in = stored.shape[-2]
    if weights in _PLAIN:
        return stored
    if stored.dtype == torch.float8_e4m3fn:
        return stored.to(torch.bfloat16) * (1 / math.sqrt(fan_in))
    if weights == "int8":
        return (stored.to(torch.bfloat16) - 127.5) * (1 / 74 / math.sqrt(fan_in))
    nibbles = torch.stack([stored & 15, stored >> 4], dim=-1).flatten(-2)
    return (nibbles.to(torch.bfloat16) - 7.5) * (1 / 4.6 / math.sqrt(fan_in))


def serve(rows: Rows, held: Held, local_NK: Tensor, shape: Shape) -> Tensor:
    """Results [N, H] of the rows: each choice's expert, weighted, summed over the row's choices.

    Args:
        rows: what arrived.
        held: the rank's experts of this layer.
        local_NK: which of them shall serve each choice; -1: none.
        shape: sizes.
    """
    num_held = len(held.first_XHF)
    row_C, choice_C = torch.nonzero(local_NK >= 0, as_tuple=True)
    expert_C, order_C = torch.sort(local_NK[row_C, choice_C], stable=True)
    row_C, choice_C = row_C[order_C], choice_C[order_C]
    result_NH = torch.zeros_like(rows.x_NH)
    if not len(row_C):
        return result_NH
    ends_X = torch.bincount(expert_C, minlength=num_held).cumsum(0).to(torch.int32)
    inner = F.grouped_mm(rows.x_NH[row_C], _opened(held.first_XHF, shape.experts), offs=ends_X)
    y_CH = F.grouped_mm(_activated(inner, gated=shape.gated), _opened(held.second_XFH, shape.experts), offs=ends_X)
    return result_NH.index_add_(0, row_C, y_CH * rows.weight_NK[row_C, choice_C, None].to(y_CH.dtype))


def _activated(inner: Tensor, *, gated: bool) -> Tensor:
    if not gated:
        return F.silu(inner)
    up, gate = inner.chunk(2, dim=-1)
    return F.silu(gate) * up


@dataclass
class Reference:
    """MoE layers by logical expert ids in one process."""

    shape: Shape
    device: torch.device
    _known: dict[tuple[int, int, int], Held] = field(default_factory=dict)
    _free_bytes: int = _KEPT_BYTES

    def moe(self, layer: int, x_NH: Tensor, ids_NK: Tensor, weight_NK: Tensor) -> Tensor:
        """One layer in fp32 [N, H]; activations rounded as dispatch does."""
        shape = self.shape
        x = rounded(x_NH, shape.dispatch).float()
        result_NH = torch.zeros_like(x)
        for expert in torch.unique(ids_NK[ids_NK >= 0]).tolist():
            row_C, choice_C = torch.nonzero(ids_NK == expert, as_tuple=True)
            for shard in range(shape.etp):
                held = self._expert(layer, expert, shard)
                first, second = (_opened(part[0], shape.experts).float() for part in (held.first_XHF, held.second_XFH))
                y_CH = _activated(x[row_C] @ first, gated=shape.gated) @ second
                result_NH.index_add_(0, row_C, y_CH * weight_NK[row_C, choice_C, None])
        return result_NH

    def _expert(self, layer: int, expert: int, shard: int) -> Held:
        """Weights of one expert; kept for other windows while there is room."""
        key = (layer, expert, shard)
        if key in self._known:
            return self._known[key]
        held = held_experts(layer, [expert], shard, self.shape, self.device)
        if held.num_bytes <= self._free_bytes:
            self._free_bytes -= held.num_bytes
            self._known[key] = held
        return held


# --- attention ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AttentionWeights:
    """Projections and cache of one layer on one GPU."""

    shape: AttentionShape
    into: Tensor
    out: Tensor
    keys: Tensor
    values: Tensor
    state: Tensor


def attention_weights(
    layer: int, tp_rank: int, of: AttentionShape, shape: Shape, sequences: int, device: torch.device
) -> AttentionWeights:
    """Made-up projections, and a cache for so many sequences, all alike."""
    dtype = compute_dtype(shape.experts)
    generator = torch.Generator(device).manual_seed(_ATTENTION_SEED + layer * shape.tp + tp_rank)

    def made(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, device=device)

    into = made(shape.hidden, of.heads * of.key_dim + of.extra_width) / math.sqrt(shape.hidden)
    out = made(of.heads * of.value_dim, shape.hidden) / math.sqrt(of.heads * of.value_dim * shape.tp)
    keys = made(1, of.kv_heads, of.seen, of.key_dim).to(dtype)
    values = keys[..., : of.value_dim] if of.values_are_keys else made(1, of.kv_heads, of.seen, of.value_dim).to(dtype)
    if of.per_sequence:
        keys = keys.expand(sequences, -1, -1, -1).contiguous()
        values = keys[..., : of.value_dim] if of.values_are_keys else values.expand(sequences, -1, -1, -1).contiguous()
    state = torch.ones(sequences * of.state_elements, device=device)
    return AttentionWeights(of, into.to(dtype), out.to(dtype), keys, values, state)


def attend(x_NH: Tensor, held: AttentionWeights) -> Tensor:
    """One GPU's part of the layer's attention for the tokens of its data-parallel rank [N, H].

    Heads that read the same entries are handed over as rows of one head. Told to share heads (`enable_gqa`),
    torch falls back to copying the cache for each of them where keys are wider than 256, as latent ones are.
    """
    of, num_rows = held.shape, len(x_NH)
    queries = (x_NH @ held.into)[:, : of.heads * of.key_dim].reshape(num_rows, of.heads, of.key_dim)
    if of.state_elements:
        held.state.mul_(1.0)  # read and written, unchanged
    if of.per_sequence:
        # a recorded window may hold more tokens than the step: they take turns on its sequences
        parts = [_seen_by_each(part, held) for part in queries.split(len(held.keys))]
        return torch.cat(parts).reshape(num_rows, of.heads * of.value_dim) @ held.out
    shared = queries.transpose(0, 1).reshape(1, of.kv_heads, of.heads // of.kv_heads * num_rows, of.key_dim)
    seen = F.scaled_dot_product_attention(shared, held.keys, held.values)
    heads = seen.reshape(of.heads, num_rows, of.value_dim).transpose(0, 1)
    return heads.reshape(num_rows, of.heads * of.value_dim) @ held.out


def _seen_by_each(queries: Tensor, held: AttentionWeights) -> Tensor:
    """Attention of each query over a cache of its own [N, key-value heads, heads of each, width]."""
    of, num_rows = held.shape, len(queries)
    grouped = queries.reshape(num_rows, of.kv_heads, of.heads // of.kv_heads, of.key_dim)
    return F.scaled_dot_product_attention(grouped, held.keys[:num_rows], held.values[:num_rows])


def reference_attention(x_NH: Tensor, layer: int, of: AttentionShape, shape: Shape, device: torch.device) -> Tensor:
    """All shards of a tensor-parallel group in one process [N, H]."""
    parts = [
        attend(x_NH, attention_weights(layer, tp_rank, of, shape, len(x_NH), device)) for tp_rank in range(shape.tp)
    ]
    return torch.stack([part.float() for part in parts]).sum(dim=0)


def normalised(x_NH: Tensor) -> Tensor:
    """Every token at length sqrt(H), so that values stay of order one through any number of layers."""
    return F.rms_norm(x_NH, (x_NH.shape[1],), eps=1e-6)
