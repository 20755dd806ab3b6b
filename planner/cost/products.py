"""Matrix products of the parts that every token passes: inner and outer width of each launch.

Sums of inner * outer agree with `planner.inputs.parameters` up to norms and biases.
"""

from __future__ import annotations

from typing import NamedTuple

from planner.inputs.model import Attention, GroupedAttention, LatentAttention, MoeFfn, NoAttention, StateAttention
from planner.inputs.parameters import attention_parameters, kv_heads_per_gpu


class Product(NamedTuple):
    """Weights [inner, outer] of one GPU, applied to every token."""

    inner: int
    """Width that is summed over."""
    outer: float
    """Width of the result."""


def attention_products(attention: Attention, hidden_size: int, tp: int) -> tuple[Product, ...]:
    """Projections of one attention block, in the launches that engines make of them."""
    if isinstance(attention, NoAttention):
        return ()
    if isinstance(attention, GroupedAttention):
        heads, kv_heads = attention.num_heads // tp, kv_heads_per_gpu(attention.num_kv_heads, tp)
        parts = heads * (2 if attention.output_gate else 1) + kv_heads * (1 if attention.value_from_key else 2)
        dim = attention.head_dim
        return Product(hidden_size, parts * dim), Product(heads * dim, hidden_size)
    if isinstance(attention, LatentAttention):
        return _latent(attention, hidden_size, tp)
    # Only the number of weights is known: products from and to the width of the model.
    launches = 2 if isinstance(attention, StateAttention) else 4
    parameters = attention_parameters(attention, hidden_size, tp)
    return (Product(hidden_size, parameters / launches / hidden_size),) * launches


def _latent(attention: LatentAttention, hidden_size: int, tp: int) -> tuple[Product, ...]:
    """Down to the latents, up to the heads, expansion (or absorption) of keys and values, output, indexer."""
    heads = attention.num_heads // tp
    query = heads * (attention.qk_nope_head_dim + attention.qk_rope_head_dim)
    keys = attention.kv_lora_rank + attention.qk_rope_head_dim
    rank = attention.q_lora_rank
    found = [Product(hidden_size, query + keys)]
    if rank is not None:
        found = [Product(hidden_size, rank + keys), Product(rank, query)]
    found.append(Product(attention.kv_lora_rank, heads * (attention.qk_nope_head_dim + attention.v_head_dim)))
    found.append(Product(heads * attention.v_head_dim, hidden_size))
    indexer = attention.indexer
    if indexer is not None and indexer.own:
        found.append(Product(rank or hidden_size, indexer.num_heads * indexer.head_dim))
        found.append(Product(hidden_size, indexer.head_dim + indexer.num_heads))
    return tuple(found)


def ffn_products(*, gated: bool, hidden_size: int, width: int) -> tuple[Product, ...]:
    """Up (with the gate beside it) and down."""
    return Product(hidden_size, (2 if gated else 1) * width), Product(width, hidden_size)


def shared_products(moe: MoeFfn, hidden_size: int, tp: int) -> tuple[Product, ...]:
    """Experts that every token passes, and the way into and out of a latent space of the routed ones."""
    found: tuple[Product, ...] = ()
    if moe.shared_intermediate_size:
        found = ffn_products(gated=moe.gated, hidden_size=hidden_size, width=moe.shared_intermediate_size // tp)
    if moe.latent_size:
        found += Product(hidden_size, moe.latent_size), Product(moe.latent_size, hidden_size)
    return found
