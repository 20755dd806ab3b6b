"""How many parameters each part of a model has, on one GPU of a tensor-parallel group.

With tp = 1 these are the totals. Attention is sharded by heads; a KV head cannot be cut, so with
more GPUs than KV heads it is replicated. The low-rank halves of latent attention that come before
the heads are replicated on every GPU, as engines do.

Legend: H hidden_size, F intermediate_size, E num_experts.
"""

from __future__ import annotations

from dataclasses import dataclass

from planner.inputs.model import Attention, DenseFfn, GroupedAttention, LatentAttention, Model, MoeFfn


def kv_heads_per_gpu(num_kv_heads: int, tp: int) -> int:
    """KV heads that one of tp GPUs holds: at least one, whole."""
    return max(1, -(-num_kv_heads // tp))


def attention_parameters(attention: Attention, hidden_size: int, tp: int = 1) -> int:
    """Weights of one layer's attention on one GPU, norms of queries and keys included."""
    if isinstance(attention, LatentAttention):
        return _latent_parameters(attention, hidden_size, tp)
    return _grouped_parameters(attention, hidden_size, tp)


def _grouped_parameters(attention: GroupedAttention, hidden_size: int, tp: int) -> int:
    heads = attention.num_heads // tp
    kv_heads = kv_heads_per_gpu(attention.num_kv_heads, tp)
    columns = (heads + 2 * kv_heads) * attention.head_dim
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
    return queries + keys + expansion + heads * attention.v_head_dim * hidden_size


def expert_parameters(moe: MoeFfn, hidden_size: int, etp: int = 1) -> int:
    """Weights of one routed expert on one of the `etp` GPUs that share it."""
    width = moe.intermediate_size // etp
    matrices = 3 if moe.gated else 2
    bias = (matrices - 1) * width + hidden_size if moe.expert_bias else 0
    return matrices * hidden_size * width + bias


def shared_parameters(moe: MoeFfn, hidden_size: int, tp: int = 1) -> int:
    """Weights of the shared experts of one layer on one GPU."""
    matrices = 3 if moe.gated else 2
    gate = hidden_size if moe.shared_gate else 0
    return matrices * hidden_size * (moe.shared_intermediate_size // tp) + gate


def router_parameters(moe: MoeFfn, hidden_size: int) -> int:
    """Weights of one layer's router, replicated on every GPU."""
    biases = int(moe.router_bias) + int(moe.correction_bias)
    return moe.num_experts * (hidden_size + biases)


def dense_parameters(ffn: DenseFfn, hidden_size: int, tp: int = 1) -> int:
    """Weights of a dense feed-forward part on one GPU."""
    return (3 if ffn.gated else 2) * hidden_size * (ffn.intermediate_size // tp)


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of a whole model by component; `active` is what one token passes.

    Active counts attention, norms, routers, dense parts, shared experts, top_k routed experts,
    and the LM head; the embedding is a look-up of one row and is not counted.
    """

    embedding: int
    lm_head: int
    attention: int
    dense: int
    shared: int
    routers: int
    experts: int
    norms: int
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
    for run in model.layers:
        attention += run.count * attention_parameters(run.attention, hidden)
        if isinstance(run.ffn, DenseFfn):
            dense += run.count * dense_parameters(run.ffn, hidden)
            continue
        one = expert_parameters(run.ffn, hidden)
        shared += run.count * shared_parameters(run.ffn, hidden) if run.ffn.shared_intermediate_size else 0
        routers += run.count * router_parameters(run.ffn, hidden)
        experts += run.count * run.ffn.num_experts * one
        active += run.count * run.ffn.top_k * one
    embedding = model.vocab_size * hidden
    norms = (2 * model.num_layers + 1) * hidden
    active += attention + dense + shared + routers + norms + embedding
    lm_head = 0 if model.tie_word_embeddings else embedding
    return ParameterCount(embedding, lm_head, attention, dense, shared, routers, experts, norms, active)
