"""Families with latent or compressed attention: DeepSeek, Kimi, GLM-5, LongCat, Mistral 4."""

from __future__ import annotations

from typing import Final

from planner.inputs.config_reader import ConfigReader
from planner.inputs.families.experts import after_first_dense, counted_shared, every_layer, experts
from planner.inputs.families.family import Family
from planner.inputs.families.softmax import compressed, double_latent, latent, sparse_latent
from planner.inputs.model import MoeFfn


def _both_dense_parts(config: ConfigReader) -> int:
    return 2 * config.integer("ffn_hidden_size", "intermediate_size")


def _layers_not_blocks(config: ConfigReader) -> int:
    """LongCat's `num_hidden_layers`, where given, counts attention blocks: two per layer."""
    if config.values.get("num_layers") is not None:
        return config.integer("num_layers")
    return max(1, config.integer("num_hidden_layers") // 2)


def _hyper_connections(config: ConfigReader) -> int:
    """Two per layer: m streams of H are read by m + m + m^2 mixing weights each, with bias and three scales."""
    streams, hidden = config.integer("hc_mult"), config.integer("hidden_size")
    mixers = streams * (streams + 2)
    return 2 * (mixers * (streams * hidden + 1) + 3)


def _hyper_head(config: ConfigReader) -> int:
    streams, hidden = config.integer("hc_mult"), config.integer("hidden_size")
    return streams * (streams * hidden + 1) + 1


def _hash_layers(config: ConfigReader, moe: MoeFfn, layers: int) -> list[MoeFfn]:
    """DeepSeek-V4: the first layers choose experts by token id, from a table, and keep no bias for balance."""
    kinds = config.kinds("mlp_layer_types", layers, {"hash_moe": "hash", "moe": "scores"})
    if kinds is None:
        hashed = config.integer("num_hash_layers", default=3, minimum=0)
        kinds = ["hash" if index < hashed else "scores" for index in range(layers)]
    unbiased = moe.model_copy(update={"correction_bias": False})
    return [unbiased if kind == "hash" else moe for kind in kinds]


_DEEPSEEK_V3: Final = Family(
    latent,
    experts("moe_intermediate_size", shared=counted_shared(), groups=True, correction_bias=True),
    after_first_dense,
    refused=("attention_bias",),
)
_DEEPSEEK_V2: Final = Family(
    latent,
    experts("moe_intermediate_size", shared=counted_shared(), groups=True),
    after_first_dense,
    refused=("attention_bias", "mlp_bias"),
)
_SPARSE: Final = Family(
    sparse_latent,
    experts("moe_intermediate_size", shared=counted_shared(), groups=True, correction_bias=True),
    after_first_dense,
    refused=("attention_bias",),
)

FAMILIES: Final[dict[str, Family]] = {
    "deepseek_v2": _DEEPSEEK_V2,
    "mistral4": _DEEPSEEK_V2,
    "deepseek_v3": _DEEPSEEK_V3,
    "kimi_k2": _DEEPSEEK_V3,
    "glm4_moe_lite": _DEEPSEEK_V3,
    "deepseek_v32": _SPARSE,
    "glm_moe_dsa": _SPARSE,
    "deepseek_v4": Family(
        compressed,
        experts("moe_intermediate_size", shared=counted_shared(), correction_bias=True),
        every_layer,
        variants=_hash_layers,
        layer_extra=_hyper_connections,
        model_extra=_hyper_head,
        refused=("attention_bias", "mlp_bias"),
    ),
    "longcat_flash": Family(
        double_latent,
        experts(
            "expert_ffn_hidden_size",
            "moe_intermediate_size",
            shared=_both_dense_parts,
            zero_experts="zero_expert_num",
            correction_bias=True,
        ),
        every_layer,
        layers=_layers_not_blocks,
        norms=4,
        refused=("attention_bias",),
    ),
}
