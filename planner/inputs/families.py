"""One entry per Hugging Face model family: which keys hold the shape, which layers are MoE.

Facts follow the configuration and modelling classes of transformers 5 (and the configs on the hub
where they differ). A family that is not listed is refused by name; nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from planner.inputs.config_reader import EXPERTS, TOP_K, ConfigReader
from planner.inputs.model import Attention, DenseFfn, Ffn, GroupedAttention, LatentAttention, MoeFfn

AttentionReader = Callable[[ConfigReader, int], list[Attention]]
MoeReader = Callable[[ConfigReader], MoeFfn]
LayerRule = Callable[[ConfigReader, int], list[bool]]


@dataclass(frozen=True)
class Family:
    """How to read one family; each function gets the config and, if needed, the layer count."""

    attention: AttentionReader
    moe: MoeReader
    is_moe: LayerRule
    dense_width: tuple[str, ...] = ("intermediate_size",)
    tied_by_default: bool = False


# --- attention ------------------------------------------------------------------------------------


def grouped(
    *, qkv_bias: bool | None = None, output_bias: bool | None = None, qk_norm: str = "none", sinks: bool = False
) -> AttentionReader:
    """Grouped-query attention; a bias given as None is read from the key `attention_bias`."""

    def read(config: ConfigReader, layers: int) -> list[Attention]:
        heads = config.integer("num_attention_heads")
        hidden = config.integer("hidden_size")
        bias = config.flag("attention_bias")
        one = GroupedAttention(
            num_heads=heads,
            num_kv_heads=config.integer("num_key_value_heads", default=heads),
            head_dim=config.integer("head_dim", default=max(1, hidden // heads)),
            qkv_bias=bias if qkv_bias is None else qkv_bias,
            output_bias=bias if output_bias is None else output_bias,
            qk_norm=qk_norm,  # type: ignore[arg-type]  # one of the literals, from the table below
            sinks=sinks,
        )
        windows = _windows(config, layers)
        return [one.model_copy(update={"window": window}) if window else one for window in windows]

    return read


def _windows(config: ConfigReader, layers: int) -> list[int | None]:
    """Sliding window per layer: by `layer_types`, else for all layers if it is switched on."""
    window = config.optional_integer("sliding_window")
    kinds = config.listing("layer_types", layers)
    _known_kinds(config, "layer_types", kinds, ("full_attention", "sliding_attention"))
    if window is None:
        return [None] * layers
    if kinds is not None:
        return [window if kind == "sliding_attention" else None for kind in kinds]
    return [window if config.flag("use_sliding_window", default=True) else None] * layers


def _known_kinds(config: ConfigReader, name: str, kinds: list[Any] | None, known: tuple[str, ...]) -> None:
    """Note the first entry of a list of layer kinds that is not known."""
    unknown = [kind for kind in kinds or () if kind not in known]
    if unknown:
        config.log.add(f"{unknown[0]!r} is not known", where=config.place(name), hint=f"known: {', '.join(known)}")


def latent(config: ConfigReader, layers: int) -> list[Attention]:
    """Multi-head latent attention with DeepSeek's key names."""
    one = LatentAttention(
        num_heads=config.integer("num_attention_heads"),
        q_lora_rank=config.optional_integer("q_lora_rank"),
        kv_lora_rank=config.integer("kv_lora_rank"),
        qk_nope_head_dim=config.integer("qk_nope_head_dim"),
        qk_rope_head_dim=config.integer("qk_rope_head_dim"),
        v_head_dim=config.integer("v_head_dim"),
    )
    return [one] * layers


# --- experts --------------------------------------------------------------------------------------


def experts(
    width: str,
    *,
    shared: Callable[[ConfigReader], int] | None = None,
    shared_gate: bool = False,
    groups: bool = False,
    correction_bias: bool = False,
    biases: bool = False,
) -> MoeReader:
    """Experts whose width stands under `width`; the rest as the family does it."""

    def read(config: ConfigReader) -> MoeFfn:
        num_experts = config.integer(*EXPERTS)
        num_groups = config.integer("n_group", default=1) if groups else 1
        values = {
            "num_experts": num_experts,
            "top_k": config.integer(*TOP_K),
            "intermediate_size": config.integer(width),
            "gated": _gated(config),
            "expert_bias": biases,
            "router_bias": biases,
            "shared_intermediate_size": shared(config) if shared else 0,
            "shared_gate": shared_gate,
            "num_groups": num_groups,
            "groups_per_token": config.integer("topk_group", default=1) if groups else 1,
            "correction_bias": correction_bias,
        }
        return MoeFfn.model_validate(values)

    return read


def _gated(config: ConfigReader) -> bool:
    """Squared-ReLU feed-forward parts (Nemotron style) have no gate projection; others have."""
    return config.text("hidden_act", default="silu") != "relu2"


def _counted_shared(config: ConfigReader) -> int:
    name, _ = config.find("n_shared_experts", "num_shared_experts", "moe_num_shared_experts")
    count = config.integer(name, minimum=0) if name else 0
    return count * config.integer("moe_intermediate_size")


def _wide_shared(config: ConfigReader) -> int:
    return config.integer("shared_expert_intermediate_size", default=0, minimum=0)


# --- which layers are MoE -------------------------------------------------------------------------


def every_layer(_config: ConfigReader, layers: int) -> list[bool]:
    """All layers are MoE."""
    return [True] * layers


def sparse_step(config: ConfigReader, layers: int) -> list[bool]:
    """Qwen: every `decoder_sparse_step`-th layer, but not those of `mlp_only_layers`."""
    step = config.integer("decoder_sparse_step", default=1)
    dense = set(config.integers("mlp_only_layers") or [])
    return [index not in dense and (index + 1) % step == 0 for index in range(layers)]


def after_first_dense(config: ConfigReader, layers: int) -> list[bool]:
    """DeepSeek, GLM: from `first_k_dense_replace` on, every `moe_layer_freq`-th; or an explicit list."""
    kinds = config.listing("mlp_layer_types", layers)
    _known_kinds(config, "mlp_layer_types", kinds, ("dense", "sparse"))
    if kinds is not None:
        return [kind != "dense" for kind in kinds]
    first = config.integer("first_k_dense_replace", default=0, minimum=0)
    step = config.integer("moe_layer_freq", default=1)
    return [index >= first and index % step == 0 for index in range(layers)]


# --- the table ------------------------------------------------------------------------------------

_DEEPSEEK_V2 = Family(
    latent,
    experts("moe_intermediate_size", shared=_counted_shared, groups=True),
    after_first_dense,
)
_DEEPSEEK_V3 = Family(
    latent,
    experts("moe_intermediate_size", shared=_counted_shared, groups=True, correction_bias=True),
    after_first_dense,
)
_GLM_MOE = Family(
    grouped(output_bias=False),
    experts("moe_intermediate_size", shared=_counted_shared, groups=True, correction_bias=True),
    after_first_dense,
)

FAMILIES: Final[dict[str, Family]] = {
    "mixtral": Family(grouped(qkv_bias=False, output_bias=False), experts("intermediate_size"), every_layer),
    "qwen2_moe": Family(
        grouped(qkv_bias=True, output_bias=False),
        experts("moe_intermediate_size", shared=_wide_shared, shared_gate=True),
        sparse_step,
    ),
    "qwen3_moe": Family(grouped(qk_norm="per_head"), experts("moe_intermediate_size"), sparse_step),
    "olmoe": Family(grouped(qk_norm="full"), experts("intermediate_size"), every_layer),
    "gpt_oss": Family(
        grouped(qkv_bias=True, output_bias=True, sinks=True),
        experts("intermediate_size", biases=True),
        every_layer,
    ),
    "deepseek_v2": _DEEPSEEK_V2,
    "deepseek_v3": _DEEPSEEK_V3,
    "kimi_k2": _DEEPSEEK_V3,
    "glm4_moe": _GLM_MOE,
}


def read_layers(family: Family, config: ConfigReader, layers: int) -> list[tuple[Attention, Ffn]]:
    """Attention and feed-forward part of every layer."""
    attention = family.attention(config, layers)
    flags = family.is_moe(config, layers)
    moe = family.moe(config)
    dense: Ffn = moe
    if not all(flags):
        width = config.integer(*family.dense_width)
        dense = DenseFfn(intermediate_size=width, gated=_gated(config))
    return [(part, moe if flag else dense) for part, flag in zip(attention, flags, strict=True)]
