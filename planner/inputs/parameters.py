"""How many parameters each part of a model has, on one GPU of a tensor-parallel group.

With tp = 1 these are the totals. Attention is sharded by heads; a KV head cannot be cut, so with
more GPUs than KV heads it is replicated. The low-rank halves of latent attention that come before
the heads are replicated on every GPU, as engines do.

Legend: H hidden_size, F intermediate_size, E num_experts.
"""

from __future__ import annotations

from dataclasses import dataclass

from planner.inputs.model import (
    Attention,
    CompressedAttention,
    DenseFfn,
    GroupedAttention,
    LatentAttention,
    Model,
    MoeFfn,
    NoAttention,
    StateAttention,
)


def kv_heads_per_gpu(num_kv_heads: int, tp: int) -> int:
    """KV heads that one of tp GPUs holds: at least one, whole."""
    return max(1, -(-num_kv_heads // tp))


def attention_parameters(attention: Attention, hidden_size: int, tp: int = 1) -> int:
    """Weights of one layer's attention on one GPU, norms of queries and keys included."""
    if isinstance(attention, NoAttention):
        return 0
    if isinstance(attention, StateAttention):
        return -(-attention.sharded_parameters // tp) + attention.replicated_parameters
    if isinstance(attention, LatentAttention):
        return attention.blocks * _latent_parameters(attention, hidden_size, tp)
    if isinstance(attention, CompressedAttention):
        return _compressed_parameters(attention, hidden_size, tp)
    return _grouped_parameters(attention, hidden_size, tp)


def _grouped_parameters(attention: GroupedAttention, hidden_size: int, tp: int) -> int:
    heads = attention.num_heads // tp
    kv_heads = kv_heads_per_gpu(attention.num_kv_heads, tp)
    parts = heads * (2 if attention.output_gate else 1) + kv_heads * (1 if attention.value_from_key else 2)
    columns = parts * attention.head_dim
    count = hidden_size * columns + heads * attention.head_dim * hidden_size
    if attention.qkv_bias:
        count += columns
    if attention.output_bias:
        count += hidden_size
    if attention.qk_norm == "per_head":
        count += 2 * attention.head_dim
    elif attention.qk_norm == "full":
        count += (heads + kv_heads) * attention.head_dim
    return count + (heads if attention.sinks else 0)


def _latent_parameters(attention: LatentAttention, hidden_size: int, tp: int) -> int:
    heads = attention.num_heads // tp
    query_dim = attention.qk_nope_head_dim + attention.qk_rope_head_dim
    if attention.q_lora_rank is None:
        queries = hidden_size * heads * query_dim
    else:
        rank = attention.q_lora_rank
        queries = hidden_size * rank + rank + rank * heads * query_dim
    latent = attention.kv_lora_rank
    keys = hidden_size * (latent + attention.qk_rope_head_dim) + latent
    expansion = latent * heads * (attention.qk_nope_head_dim + attention.v_head_dim)
    output = heads * attention.v_head_dim * hidden_size
    return queries + keys + expansion + output + _indexer_parameters(attention, hidden_size)


def _indexer_parameters(attention: LatentAttention, hidden_size: int) -> int:
    """The indexer, whole on every GPU: queries from the query latent, one key with a LayerNorm, head weights."""
    indexer = attention.indexer
    if indexer is None or not indexer.own:
        return 0
    queries = (attention.q_lora_rank or hidden_size) * indexer.num_heads * indexer.head_dim
    return queries + hidden_size * (indexer.head_dim + indexer.num_heads) + 2 * indexer.head_dim


def _compressed_parameters(attention: CompressedAttention, hidden_size: int, tp: int) -> int:
    heads, dim, rank = attention.num_heads // tp, attention.head_dim, attention.q_lora_rank
    queries = hidden_size * rank + rank + rank * heads * dim
    keys = hidden_size * dim + dim
    output = heads * dim * attention.output_lora_rank
    output += -(-attention.output_groups // tp) * attention.output_lora_rank * hidden_size
    count = queries + keys + output + heads  # one attention sink per head
    if attention.compress_rate is None:
        return count
    rate, indexer = attention.compress_rate, attention.indexer
    # With an indexer neighbouring entries overlap, which doubles the projections of the compressor.
    count += _compressor_parameters(dim, rate, hidden_size, overlap=indexer is not None)
    if indexer is None:
        return count
    count += rank * indexer.num_heads * indexer.head_dim + hidden_size * indexer.num_heads
    return count + _compressor_parameters(indexer.head_dim, rate, hidden_size, overlap=True)


def _compressor_parameters(dim: int, rate: int, hidden_size: int, *, overlap: bool) -> int:
    """Projections of entry and gate, a bias per position inside an entry, and a norm."""
    width = 2 * dim if overlap else dim
    return 2 * hidden_size * width + rate * width + dim


def expert_parameters(moe: MoeFfn, hidden_size: int, etp: int = 1) -> int:
    """Weights of one routed expert on one of the `etp` GPUs that share it.

    DeepSeek-V3: three matrices of 7168 x 2048 = 44,040,192.
    """
    width = moe.intermediate_size // etp
    hidden_size = moe.expert_hidden_size(hidden_size)
    matrices = 3 if moe.gated else 2
    bias = (matrices - 1) * width + hidden_size if moe.expert_bias else 0
    return matrices * hidden_size * width + bias


def shared_parameters(moe: MoeFfn, hidden_size: int, tp: int = 1) -> int:
    """Weights of one layer's experts that every token passes, on one GPU.

    With routed experts in a latent space its two projections count here, whole on every GPU.
    """
    matrices = 3 if moe.gated else 2
    gate = hidden_size if moe.shared_gate else 0
    latent = 2 * hidden_size * (moe.latent_size or 0)
    return matrices * hidden_size * (moe.shared_intermediate_size // tp) + gate + latent


def router_parameters(moe: MoeFfn, hidden_size: int) -> int:
    """Weights of one layer's router, replicated on every GPU."""
    biases = int(moe.router_bias) + int(moe.correction_bias)
    return (moe.num_experts + moe.zero_experts) * (hidden_size + biases)


def dense_parameters(ffn: DenseFfn, hidden_size: int, tp: int = 1) -> int:
    """Weights of a dense feed-forward part on one GPU."""
    return (3 if ffn.gated else 2) * hidden_size * (ffn.intermediate_size // tp)


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of a whole model by component; `active` is what one token passes.

    Active counts attention, norms, routers, dense parts, shared experts, top_k routed experts (less
    those choices that fall on zero experts, if all are equally likely), and the LM head; the embedding
    is a look-up of one row and is not counted.

    DeepSeek-V3: 671.0e9 in all, of which 653.9e9 are routed experts (58 layers x 256 x 44,040,192) and
    twice 0.927e9 embedding and LM head; 36.6e9 active, and 37.6e9 if the embedding counts as well, on
    both sides of the 37e9 that its authors state (arXiv 2412.19437, section 1). The multi-token
    prediction module, another 14e9 on the hub, is in neither.
    """

    embedding: int
    lm_head: int
    attention: int
    dense: int
    shared: int
    routers: int
    experts: int
    norms: int
    """Norms and other small weights."""
    active: int

    @property
    def total(self) -> int:
        """All parameters; a tied LM head is counted once."""
        parts = (self.embedding, self.lm_head, self.attention, self.dense)
        return sum(parts) + self.shared + self.routers + self.experts + self.norms


def count_parameters(model: Model) -> ParameterCount:
    """Parameters of the model, multi-token-prediction heads left out."""
    hidden = model.hidden_size
    attention = dense = shared = routers = experts = active = 0
    norms = hidden + model.extra_parameters
    for run in model.layers:
        norms += run.count * (run.norms * hidden + run.extra_parameters)
        attention += run.count * attention_parameters(run.attention, hidden)
        if isinstance(run.ffn, DenseFfn):
            dense += run.count * dense_parameters(run.ffn, hidden)
            continue
        one = expert_parameters(run.ffn, hidden)
        shared += run.count * shared_parameters(run.ffn, hidden)
        routers += run.count * router_parameters(run.ffn, hidden)
        experts += run.count * run.ffn.num_experts * one
        active += round(run.count * run.ffn.mean_choices * one)
    embedding = model.vocab_size * hidden
    active += attention + dense + shared + routers + norms + embedding
    lm_head = 0 if model.tie_word_embeddings else embedding
    return ParameterCount(embedding, lm_head, attention, dense, shared, routers, experts, norms, active)
