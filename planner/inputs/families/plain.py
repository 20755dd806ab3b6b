"""Families with grouped-query attention in every layer."""

from __future__ import annotations

from typing import Final

from planner.inputs.config_reader import ConfigReader
from planner.inputs.families.experts import (
    after_first_dense,
    between,
    counted_shared,
    every_layer,
    experts,
    interleaved,
    sparse_step,
    wide_shared,
)
from planner.inputs.families.family import Family
from planner.inputs.families.softmax import alternating, chunked, grouped, grouped_part, two_shapes
from planner.inputs.model import Attention, MoeFfn


def _dbrx_attention(config: ConfigReader, layers: int) -> list[Attention]:
    inner = config.inside("attn_config")
    return [grouped_part(config, num_kv_heads=inner.integer("kv_n_heads"))] * layers


def _dbrx_experts(config: ConfigReader) -> MoeFfn:
    return experts("ffn_hidden_size")(config.inside("ffn_config"))


def _phi_layer_biases(config: ConfigReader) -> int:
    return 2 * config.integer("hidden_size")  # both LayerNorms


def _phi_head_biases(config: ConfigReader) -> int:
    head = config.integer("vocab_size") if config.flag("lm_head_bias") else 0
    return config.integer("hidden_size") + head


def _gemma_experts(config: ConfigReader) -> MoeFfn:
    """Beside its experts each layer has a dense part; the router scales every expert's output."""
    read = experts("moe_intermediate_size", shared=wide_shared("intermediate_size"))
    return read(config).model_copy(update={"router_bias": True})


def _gemma_is_moe(config: ConfigReader, layers: int) -> list[bool]:
    return [config.flag("enable_moe_block")] * layers


_QWEN3: Final = Family(grouped(qk_norm="per_head"), experts("moe_intermediate_size"), sparse_step)
_MIXTRAL: Final = Family(grouped(qkv_bias=False, output_bias=False), experts("intermediate_size"), every_layer)
_GRANITE: Final = Family(
    grouped(), experts("intermediate_size", shared=wide_shared("shared_intermediate_size")), every_layer
)
_LLAMA4: Final = Family(
    chunked,
    experts("intermediate_size", shared=wide_shared("intermediate_size")),
    interleaved,
    dense_width=("intermediate_size_mlp",),
)
_DEEPSEEK_EXPERTS: Final = experts("moe_intermediate_size", shared=counted_shared(), groups=True, correction_bias=True)
_GLM4: Final = Family(
    grouped(output_bias=False, qk_norm="per_head", qk_norm_key="use_qk_norm"), _DEEPSEEK_EXPERTS, after_first_dense
)
_DOTS: Final = Family(grouped(qk_norm="per_head"), _DEEPSEEK_EXPERTS, after_first_dense, refused=("mlp_bias",))
_ERNIE: Final = Family(
    grouped(bias_key="use_bias"),
    experts("moe_intermediate_size", shared=counted_shared(), correction_bias="moe_use_aux_free"),
    between,
    tied_by_default=True,
    refused=("use_bias",),
)
_GEMMA4: Final = Family(
    two_shapes,
    _gemma_experts,
    _gemma_is_moe,
    norms=8,  # before and after each of attention, dense part and experts, one of both; the router's scale
    tied_by_default=True,
    refused=("hidden_size_per_layer_input", "num_kv_shared_layers", "use_double_wide_mlp"),
)

FAMILIES: Final[dict[str, Family]] = {
    "mixtral": _MIXTRAL,
    "phimoe": Family(
        grouped(),
        experts("intermediate_size"),
        every_layer,
        layer_extra=_phi_layer_biases,
        model_extra=_phi_head_biases,
    ),
    "dbrx": Family(_dbrx_attention, _dbrx_experts, every_layer),
    "qwen2_moe": Family(
        grouped(output_bias=False, bias_key="qkv_bias", bias_default=True),
        experts("moe_intermediate_size", shared=wide_shared("shared_expert_intermediate_size"), shared_gate=True),
        sparse_step,
    ),
    "qwen3_moe": _QWEN3,
    "qwen3_vl_moe": _QWEN3,
    "qwen3_vl_moe_text": _QWEN3,
    "olmoe": Family(grouped(qk_norm="full"), experts("intermediate_size"), every_layer),
    "flex_olmo": Family(grouped(qk_norm="full"), experts("intermediate_size"), every_layer),
    "gpt_oss": Family(alternating, experts("intermediate_size", biases=True), every_layer),
    "granitemoe": _GRANITE,
    "granitemoeshared": _GRANITE,
    "hunyuan_v1_moe": Family(
        grouped(qk_norm="per_head", qk_norm_key="use_qk_norm", qk_norm_default=True),
        experts("intermediate_size", shared=counted_shared("intermediate_size", default=1, lists=True), lists=True),
        every_layer,
    ),
    "ernie4_5_moe": _ERNIE,
    "minimax_m2": Family(
        grouped(qk_norm="full", qk_norm_key="use_qk_norm", qk_norm_default=True),
        experts("intermediate_size", correction_bias=True),
        every_layer,
    ),
    "llama4": _LLAMA4,
    "llama4_text": _LLAMA4,
    "glm4_moe": _GLM4,
    "glm4v_moe": _GLM4,
    "glm4v_moe_text": _GLM4,
    "solar_open": _GLM4,
    "dots1": _DOTS,
    "hy_v3": _DOTS,
    "mellum": Family(grouped(qk_norm="per_head"), experts("moe_intermediate_size"), after_first_dense),
    "exaone_moe": Family(
        grouped(qkv_bias=False, output_bias=False, qk_norm="per_head"), _DEEPSEEK_EXPERTS, after_first_dense
    ),
    "gemma4": _GEMMA4,
    "gemma4_text": _GEMMA4,
}
