"""Attention with a KV cache: grouped-query, sliding window, latent, sparse and compressed."""

from __future__ import annotations

from typing import Any, Final, Literal

from planner.inputs.config_reader import ConfigReader
from planner.inputs.families.family import AttentionReader
from planner.inputs.model import Attention, CompressedAttention, GroupedAttention, Indexer, LatentAttention

QkNorm = Literal["none", "per_head", "full"]

WINDOWED: Final = "windowed"
FULL: Final = "full"
KINDS: Final = {
    "sliding_attention": WINDOWED,
    "chunked_attention": WINDOWED,
    "full_attention": FULL,
    "attention": FULL,
}


def grouped_part(config: ConfigReader, **changes: Any) -> GroupedAttention:
    """One grouped-query attention with the usual key names; `changes` are fields that differ."""
    heads = config.integer("num_attention_heads", "n_heads")
    hidden = config.integer("hidden_size", "d_model")
    values = {
        "num_heads": heads,
        "num_kv_heads": config.integer("num_key_value_heads", default=heads),
        "head_dim": config.integer("head_dim", "attention_head_dim", default=max(1, hidden // heads)),
    }
    return GroupedAttention.model_validate(values | changes)


def grouped(
    *,
    qkv_bias: bool | None = None,
    output_bias: bool | None = None,
    bias_key: str = "attention_bias",
    bias_default: bool = False,
    qk_norm: QkNorm = "none",
    qk_norm_key: str = "",
    qk_norm_default: bool = False,
    sinks: bool = False,
) -> AttentionReader:
    """Grouped-query attention in every layer.

    Args:
        qkv_bias: whether queries, keys and values have biases; None: as `bias_key` says.
        output_bias: the same for the output projection.
        bias_key: the key for both.
        bias_default: what holds where that key is absent.
        qk_norm: the norms of queries and keys.
        qk_norm_key: the key that switches them on; "" if nothing does.
        qk_norm_default: what holds where that key is absent.
        sinks: one learned logit per head.
    """

    def read(config: ConfigReader, layers: int) -> list[Attention]:
        bias = config.flag(bias_key, default=bias_default)
        normed = not qk_norm_key or config.flag(qk_norm_key, default=qk_norm_default)
        one = grouped_part(
            config,
            qkv_bias=bias if qkv_bias is None else qkv_bias,
            output_bias=bias if output_bias is None else output_bias,
            qk_norm=qk_norm if normed else "none",
            sinks=sinks,
        )
        return windowed(one, _windows(config, layers))

    return read


def windowed(one: GroupedAttention, windows: list[int | None]) -> list[Attention]:
    """The same attention with the window of each layer."""
    return [one.model_copy(update={"window": window}) if window else one for window in windows]


def _windows(config: ConfigReader, layers: int) -> list[int | None]:
    """Sliding window per layer: by `layer_types` or a pattern, else for all layers if it is switched on."""
    is_off = config.values.get("use_sliding_window") is False and config.values.get("sliding_window") == 0
    window = None if is_off else config.optional_integer("sliding_window")  # a window of 0 tokens is a fault
    kinds = config.kinds("layer_types", layers, KINDS)  # kinds unknown here are told even without a window
    if not window:
        return [None] * layers
    if kinds is None and isinstance(config.values.get("sliding_window_pattern"), int):
        period = config.integer("sliding_window_pattern")
        kinds = [FULL if (index + 1) % period == 0 else WINDOWED for index in range(layers)]
    if kinds is not None:
        return [window if kind == WINDOWED else None for kind in kinds]
    return [window if config.flag("use_sliding_window", default=True) else None] * layers


def alternating(config: ConfigReader, layers: int) -> list[Attention]:
    """gpt-oss: biases and sinks; without `layer_types` every second layer, from the first, is windowed."""
    bias = config.flag("attention_bias", default=True)
    one = grouped_part(config, qkv_bias=bias, output_bias=bias, sinks=True)
    window = config.optional_integer("sliding_window")
    kinds = config.kinds("layer_types", layers, KINDS) or [FULL if i % 2 else WINDOWED for i in range(layers)]
    return windowed(one, [window if kind == WINDOWED else None for kind in kinds])


def chunked(config: ConfigReader, layers: int) -> list[Attention]:
    """Llama 4: layers with rotary positions attend within chunks, the others to everything.

    A chunk counts as a window of its size, which is the most that it keeps.
    """
    bias = config.flag("attention_bias")
    one = grouped_part(config, qkv_bias=bias, output_bias=bias)
    chunk = config.optional_integer("attention_chunk_size")
    kinds = config.kinds("layer_types", layers, KINDS)
    if kinds is None:
        rotary = config.integers("no_rope_layers")  # despite its name 1 means: with rotary positions
        if not rotary or len(rotary) < layers:
            period = config.integer("no_rope_layer_interval", default=4)
            rotary = [int((index + 1) % period != 0) for index in range(layers)]
        kinds = [WINDOWED if flag else FULL for flag in rotary[:layers]]
    return windowed(one, [chunk if kind == WINDOWED else None for kind in kinds])


def two_shapes(config: ConfigReader, layers: int) -> list[Attention]:
    """Gemma 4: global layers have wider heads, and may make values from the keys' projection."""
    bias = config.flag("attention_bias")
    common: dict[str, Any] = {"qk_norm": "per_head", "qkv_bias": bias, "output_bias": bias}
    local = grouped_part(config, window=config.optional_integer("sliding_window"), **common)
    own, default_dim = _of_global_layers(config, local.head_dim)
    wide = grouped_part(
        config,
        **common,
        head_dim=own.integer("global_head_dim", "head_dim", default=default_dim),
        num_kv_heads=own.integer("num_global_key_value_heads", "num_key_value_heads", default=local.num_kv_heads),
        value_from_key=config.flag("attention_k_eq_v"),
    )
    kinds = config.kinds("layer_types", layers, KINDS)
    if kinds is None:
        kinds = [FULL if (index + 1) % 6 == 0 or index == layers - 1 else WINDOWED for index in range(layers)]
    return [local if kind == WINDOWED else wide for kind in kinds]


def _of_global_layers(config: ConfigReader, local_dim: int) -> tuple[ConfigReader, int]:
    """Where the shape of global layers stands, and their head_dim if nothing does.

    Keys of their own on the hub; since transformers 5 per layer, and there only what differs from the others.
    """
    per_layer = config.values.get("per_layer_config")
    if isinstance(per_layer, dict) and per_layer:
        return config.inside("per_layer_config").inside(min(per_layer)), local_dim
    names = ("global_head_dim", "num_global_key_value_heads")
    return config.only(*names), 512


def latent_part(config: ConfigReader, **changes: Any) -> LatentAttention:
    """Multi-head latent attention with DeepSeek's key names."""
    values = {
        "num_heads": config.integer("num_attention_heads"),
        "q_lora_rank": config.optional_integer("q_lora_rank"),
        "kv_lora_rank": config.integer("kv_lora_rank"),
        "qk_nope_head_dim": config.integer("qk_nope_head_dim"),
        "qk_rope_head_dim": config.integer("qk_rope_head_dim"),
        "v_head_dim": config.integer("v_head_dim"),
    }
    return LatentAttention.model_validate(values | changes)


def latent(config: ConfigReader, layers: int) -> list[Attention]:
    """Latent attention in every layer."""
    return [latent_part(config)] * layers


def double_latent(config: ConfigReader, layers: int) -> list[Attention]:
    """LongCat-Flash: two blocks of latent attention in every layer."""
    return [latent_part(config, blocks=2)] * layers


def sparse_latent(config: ConfigReader, layers: int) -> list[Attention]:
    """Latent attention over the tokens that an indexer picks; `shared` layers reuse an earlier choice."""
    indexer = _indexer(config)
    kinds = config.kinds("indexer_types", layers, {"full": FULL, "shared": "shared"}) or [FULL] * layers
    own = latent_part(config, indexer=indexer)
    reused = latent_part(config, indexer=indexer.model_copy(update={"own": False}))
    return [own if kind == FULL else reused for kind in kinds]


def _indexer(config: ConfigReader) -> Indexer:
    return Indexer(
        num_heads=config.integer("index_n_heads"),
        head_dim=config.integer("index_head_dim"),
        top_k=config.integer("index_topk"),
    )


_COMPRESSED: Final = {
    "sliding_attention": WINDOWED,
    "compressed_sparse_attention": "sparse",
    "heavily_compressed_attention": "heavy",
}


def compressed(config: ConfigReader, layers: int) -> list[Attention]:
    """DeepSeek-V4: window only, or with sparse (1 entry per 4 tokens) or heavy (per 128) compression."""
    kinds = config.kinds("layer_types", layers, _COMPRESSED)
    if kinds is None:
        by_ratio = {0: WINDOWED, 4: "sparse", 128: "heavy"}
        ratios = config.listing("compress_ratios", layers)
        strange = sorted({str(ratio) for ratio in ratios or [] if not isinstance(ratio, int) or ratio not in by_ratio})
        if ratios is None or strange:
            message = f"{', '.join(strange)} is not a known compression" if strange else "compress_ratios is missing"
            config.log.add(message, where=config.place("compress_ratios"), hint="known: 0, 4 and 128, one per layer")
            return [compressed_part(config, WINDOWED)] * layers
        kinds = [by_ratio[ratio] for ratio in ratios]
    made = {kind: compressed_part(config, kind) for kind in set(kinds)}
    return [made[kind] for kind in kinds]


def compressed_part(config: ConfigReader, kind: str) -> CompressedAttention:
    """One layer's attention of DeepSeek-V4."""
    rates = config.inside("compress_rates") if config.values.get("compress_rates") else config
    rate = None
    if kind == "sparse":
        rate = rates.integer("compressed_sparse_attention", "compress_rate_csa", default=4)
    elif kind == "heavy":
        rate = rates.integer("heavily_compressed_attention", "compress_rate_hca", default=128)
    return CompressedAttention(
        num_heads=config.integer("num_attention_heads"),
        head_dim=config.integer("head_dim"),
        q_lora_rank=config.integer("q_lora_rank"),
        output_groups=config.integer("o_groups"),
        output_lora_rank=config.integer("o_lora_rank"),
        window=config.integer("sliding_window"),
        compress_rate=rate,
        indexer=_indexer(config) if kind == "sparse" else None,
    )
