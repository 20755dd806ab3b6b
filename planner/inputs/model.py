"""The model as planning needs it: layer by layer, independent of any framework's key names.

A `Model` is a stack of runs of equal layers; each layer has an attention part and a feed-forward
part, which is dense or a mixture of experts. Names follow Hugging Face where they exist.

Legend: H hidden_size, F intermediate_size, E num_experts, K top_k.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Annotated, Final, Literal

from pydantic import Field, model_validator

from planner.inputs.documents import Frozen
from planner.inputs.precision import WeightName

LIMIT_LAYERS: Final = 10_000
Count = Annotated[int, Field(ge=1, le=10**9)]
CountOrZero = Annotated[int, Field(ge=0, le=10**9)]


class GroupedAttention(Frozen):
    """Multi-head (num_kv_heads = num_heads), grouped-query or multi-query attention."""

    kind: Literal["gqa"] = "gqa"
    num_heads: Count
    """Query heads."""
    num_kv_heads: Count
    """Key and value heads."""
    head_dim: Count
    """Width of a head."""
    window: Count | None = None
    """Tokens that a sliding window sees; None: all."""
    qkv_bias: bool = False
    """Biases of the query, key and value projections."""
    output_bias: bool = False
    """Bias of the output projection."""
    qk_norm: Literal["none", "per_head", "full"] = "none"
    """Norms of queries and keys: per head, or over all heads."""
    sinks: bool = False
    """One learned logit per head that soaks up attention (gpt-oss)."""
    output_gate: bool = False
    """A gate as wide as the queries, projected with them, scales the output (Qwen3-Next)."""
    value_from_key: bool = False
    """No value projection: values are made from the keys' projection (Gemma 4, global layers)."""

    @model_validator(mode="after")
    def _heads_share_evenly(self) -> GroupedAttention:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"{self.num_heads} attention heads do not share {self.num_kv_heads} KV heads evenly")
        return self


class Indexer(Frozen):
    """Small scorer that picks the tokens which sparse attention looks at (DeepSeek-V3.2)."""

    num_heads: Count
    head_dim: Count
    top_k: Count
    """Tokens (or compressed entries) that each query attends to."""
    own: bool = True
    """False: the layer reuses the choice of an earlier layer, and has no indexer weights."""


class LatentAttention(Frozen):
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): one compressed KV per token."""

    kind: Literal["mla"] = "mla"
    num_heads: Count
    """Query heads."""
    q_lora_rank: Count | None
    """Rank of the compressed query; null: not compressed."""
    kv_lora_rank: Count
    """Rank of the compressed keys and values."""
    qk_nope_head_dim: Count
    """Head width without position."""
    qk_rope_head_dim: Count
    """Head width with rotary position."""
    v_head_dim: Count
    """Width of a value head."""
    indexer: Indexer | None = None
    """Sparse attention over the tokens it picks; None: over all."""
    blocks: Count = 1
    """Attention blocks of this shape in one layer (LongCat-Flash has two)."""


class CompressedAttention(Frozen):
    """Attention over a sliding window and, beyond it, over compressed entries (DeepSeek-V4).

    One vector per entry is key and value of all heads. Every `compress_rate` tokens are merged into
    one entry; a rate with an indexer attends to the entries picked, without one to all.
    """

    kind: Literal["compressed"] = "compressed"
    num_heads: Count
    head_dim: Count
    q_lora_rank: Count
    output_groups: Count
    output_lora_rank: Count
    window: Count
    compress_rate: Count | None = None
    """Tokens per compressed entry; None: only the window."""
    indexer: Indexer | None = None


class StateAttention(Frozen):
    """A token mixer that keeps a state of constant size per sequence instead of a KV cache.

    Mamba, gated delta rule, lightning attention, short convolution: planning needs their weights and
    their state, not their inner shape. `planner.inputs.families.recurrent` derives both.
    """

    kind: Literal["state"] = "state"
    mixer: Literal["mamba", "mamba2", "gated_delta", "kimi_delta", "lightning", "short_conv"]
    num_heads: Count
    """What a tensor-parallel group divides: heads, or channels where there are none."""
    sharded_parameters: Count
    """Weights of the layer that a tensor-parallel group divides."""
    replicated_parameters: CountOrZero = 0
    """Weights that every GPU of the group holds."""
    state_elements: CountOrZero = 0
    """Numbers of the recurrent state per sequence, all heads; kept in fp32."""
    conv_elements: CountOrZero = 0
    """Inputs that the short convolution remembers per sequence, all channels; kept in bf16."""


class NoAttention(Frozen):
    """No token mixer: the layer is a feed-forward part alone (Nemotron-H)."""

    kind: Literal["none"] = "none"


Attention = Annotated[
    GroupedAttention | LatentAttention | CompressedAttention | StateAttention | NoAttention,
    Field(discriminator="kind"),
]


class DenseFfn(Frozen):
    """An ordinary feed-forward part; of width 0 where a layer has none (Nemotron-H)."""

    kind: Literal["dense"] = "dense"
    intermediate_size: CountOrZero
    """Width."""
    gated: bool = True
    """Gate, up and down projection; else only up and down."""


class MoeFfn(Frozen):
    """A mixture-of-experts part."""

    kind: Literal["moe"] = "moe"
    num_experts: Count
    """Routed experts."""
    top_k: Count
    """Experts per token."""
    intermediate_size: Count
    """Width of one expert."""
    gated: bool = True
    """Gate, up and down projection; else only up and down."""
    expert_bias: bool = False
    """Whether experts have biases."""
    latent_size: Count | None = None
    """Routed experts work, and are dispatched, in a space of this width between two shared
    projections (Nemotron 3 Super); None: in the hidden size itself."""
    zero_experts: CountOrZero = 0
    """Further choices of the router that do nothing and hold no weights (LongCat-Flash)."""
    shared_intermediate_size: CountOrZero = 0
    """Width of all shared experts together; every token passes them. Dense feed-forward parts that
    run beside the experts count here too."""
    shared_gate: bool = False
    """Whether shared experts have a gate of their own."""
    num_groups: Count = 1
    """Routing groups: a token may only use experts of `groups_per_token` of them."""
    groups_per_token: Count = 1
    """Routing groups that a token may use."""
    router_bias: bool = False
    """Whether the router has a bias."""
    correction_bias: bool = False
    """Whether a load-balancing bias per expert is kept."""

    @model_validator(mode="after")
    def _consistent(self) -> MoeFfn:
        if self.top_k > self.num_experts + self.zero_experts:
            raise ValueError(f"top_k {self.top_k} is more than the {self.num_experts} experts")
        if self.num_experts % self.num_groups:
            raise ValueError(f"{self.num_experts} experts do not divide into {self.num_groups} groups")
        if self.groups_per_token > self.num_groups:
            raise ValueError(f"groups_per_token {self.groups_per_token} is more than num_groups {self.num_groups}")
        return self

    def expert_hidden_size(self, hidden_size: int) -> int:
        """Width of a token as the routed experts get it."""
        return self.latent_size or hidden_size

    @property
    def mean_choices(self) -> float:
        """Choices per token that reach an expert, if the router chooses evenly: top_k without zero experts."""
        return self.top_k * self.num_experts / (self.num_experts + self.zero_experts)


Ffn = Annotated[DenseFfn | MoeFfn, Field(discriminator="kind")]


class LayerRun(Frozen):
    """`count` consecutive layers that are alike."""

    count: Count
    """How many."""
    attention: Attention
    """Their attention part."""
    ffn: Ffn
    """Their feed-forward part."""
    norms: CountOrZero = 2
    """Vectors of hidden_size for norms in each layer."""
    extra_parameters: CountOrZero = 0
    """Further small weights of each layer, whole on every GPU."""


class Model(Frozen):
    """A decoder with at least one MoE layer; all MoE layers have the same experts and top_k."""

    name: str
    """Name for reports."""
    family: str
    """Hugging Face model_type."""
    hidden_size: Count
    """Width of the hidden state."""
    vocab_size: Count
    """Entries of the vocabulary."""
    tie_word_embeddings: bool = False
    """Whether the LM head is the embedding."""
    layers: Annotated[tuple[LayerRun, ...], Field(min_length=1)]
    """Runs of equal layers, in order."""
    extra_parameters: CountOrZero = 0
    """Small weights outside the layers beside embedding, LM head and the last norm."""
    expert_weights: WeightName = "bf16"
    """Format of expert weights."""
    dense_weights: WeightName = "bf16"
    """Format of all other weights."""
    source: str = ""
    """Where the description comes from."""

    @model_validator(mode="after")
    def _one_kind_of_experts(self) -> Model:
        kinds = {(ffn.num_experts, ffn.top_k, ffn.intermediate_size) for ffn in self._moe_parts()}
        if not kinds:
            raise ValueError("the model has no MoE layer: there is nothing to place")
        if len(kinds) > 1:
            raise ValueError(f"MoE layers differ in experts, top_k or width: {sorted(kinds)}")
        if self.num_layers > LIMIT_LAYERS:
            raise ValueError(f"{self.num_layers:,} layers: at most {LIMIT_LAYERS:,} are read")
        return self

    def _moe_parts(self) -> Iterator[MoeFfn]:
        return (run.ffn for run in self.layers if isinstance(run.ffn, MoeFfn))

    @cached_property
    def num_layers(self) -> int:
        """Hidden layers, dense ones included."""
        return sum(run.count for run in self.layers)

    @cached_property
    def layer_list(self) -> tuple[LayerRun, ...]:
        """The run that each hidden layer belongs to, in order."""
        return tuple(run for run in self.layers for _ in range(run.count))

    @cached_property
    def layer_kinds(self) -> tuple[LayerRun, ...]:
        """The runs without repetitions, in order of first appearance: what a layer costs depends on nothing else."""
        return tuple(dict.fromkeys(self.layers))

    @cached_property
    def kind_of_layer(self) -> tuple[int, ...]:
        """For each hidden layer its index into `layer_kinds`."""
        index = {run: kind for kind, run in enumerate(self.layer_kinds)}
        return tuple(kind for run in self.layers for kind in [index[run]] * run.count)

    @cached_property
    def moe_layer_ids(self) -> tuple[int, ...]:
        """Hidden-layer index of every MoE layer."""
        return tuple(i for i, run in enumerate(self.layer_list) if isinstance(run.ffn, MoeFfn))

    @cached_property
    def moe(self) -> MoeFfn:
        """The MoE part (the same in all MoE layers)."""
        return next(self._moe_parts())


def repeated(layers: list[tuple[Attention, Ffn]], *, norms: int = 2, extra_parameters: int = 0) -> tuple[LayerRun, ...]:
    """Join equal neighbours of a per-layer list into runs; norms and extras as in `LayerRun`."""
    runs: list[LayerRun] = []
    for attention, ffn in layers:
        if runs and (runs[-1].attention, runs[-1].ffn) == (attention, ffn):
            last = runs.pop()
            runs.append(last.model_copy(update={"count": last.count + 1}))
        else:
            runs.append(LayerRun(count=1, attention=attention, ffn=ffn, norms=norms, extra_parameters=extra_parameters))
    return tuple(runs)
