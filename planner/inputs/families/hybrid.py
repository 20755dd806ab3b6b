"""Families that mix attention with recurrent layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from planner.inputs.config_reader import ConfigReader
from planner.inputs.families.experts import (
    after_first_dense,
    counted_shared,
    every_layer,
    experts,
    periodic,
    sparse_step,
    wide_shared,
)
from planner.inputs.families.family import AttentionReader, Family
from planner.inputs.families.recurrent import gated_delta, kimi_delta, lightning, mamba, mamba2, short_conv
from planner.inputs.families.softmax import grouped_part, latent_part
from planner.inputs.model import Attention, DenseFfn, NoAttention

Part = Callable[[ConfigReader], Attention]
Kinds = Callable[[ConfigReader, int], list[str]]

FULL: Final = "full"
STATE: Final = "state"
_KINDS: Final = {
    "full_attention": FULL,
    "attention": FULL,
    "sliding_attention": FULL,
    "linear_attention": STATE,
    "mamba": STATE,
    "conv": STATE,
}


def mixed(full: Part, state: Part, kinds: Kinds) -> AttentionReader:
    """Attention in the layers that `kinds` calls full, the recurrent mixer in the others."""

    def read(config: ConfigReader, layers: int) -> list[Attention]:
        chosen = kinds(config, layers)
        parts = {kind: (full if kind == FULL else state)(config) for kind in dict.fromkeys(chosen)}
        return [parts[kind] for kind in chosen]

    return read


def _listed(config: ConfigReader, layers: int) -> list[str] | None:
    return config.kinds("layer_types", layers, _KINDS) or config.kinds("layers_block_type", layers, _KINDS)


def _every(period: int, offset: int, layers: int) -> list[str]:
    return [FULL if index % period == offset else STATE for index in range(layers)]


def _qwen_kinds(config: ConfigReader, layers: int) -> list[str]:
    period = config.integer("full_attention_interval", default=4)
    return _listed(config, layers) or _every(period, period - 1, layers)


def _jamba_kinds(config: ConfigReader, layers: int) -> list[str]:
    period = config.integer("attn_layer_period", default=8)
    offset = config.integer("attn_layer_offset", default=4, minimum=0)
    return _every(period, offset, layers)


def _minimax_kinds(config: ConfigReader, layers: int) -> list[str]:
    """MiniMax's own files say 1 for attention and 0 for lightning attention."""
    listed = _listed(config, layers)
    numbers = config.listing("attn_type_list", layers)
    if listed is None and numbers is not None:
        return [FULL if number == 1 else STATE for number in numbers]
    return listed or _every(2, 0, layers)


def _kimi_kinds(config: ConfigReader, layers: int) -> list[str]:
    """Kimi's own files list the layers of full attention, counted from 1."""
    listed = _listed(config, layers)
    if listed is not None:
        return listed
    full = set(config.inside("linear_attn_config").integers("full_attn_layers") or [])
    return [FULL if index + 1 in full else STATE for index in range(layers)]


def _lfm2_kinds(config: ConfigReader, layers: int) -> list[str]:
    listed = _listed(config, layers)
    if listed is None:
        config.log.add("layer_types is missing", where=config.place(), hint='one of "conv", "full_attention" per layer')
    return listed or [FULL] * layers


def _granite_kinds(config: ConfigReader, layers: int) -> list[str]:
    return _listed(config, layers) or [STATE] * layers


def _grouped(**changes: bool | str) -> Part:
    def read(config: ConfigReader) -> Attention:
        bias = config.flag("attention_bias")
        return grouped_part(config, **({"qkv_bias": bias, "output_bias": bias} | changes))

    return read


# --- Nemotron-H: every layer is one part alone ----------------------------------------------------

_BLOCKS: Final = {"M": STATE, "*": FULL, "E": "moe", "-": "mlp"}
_BLOCK_NAMES: Final = _KINDS | {"moe": "moe", "mlp": "mlp"}


def _nemotron_blocks(config: ConfigReader) -> list[str]:
    pattern = config.text("hybrid_override_pattern")
    strange = sorted(set(pattern) - set(_BLOCKS))
    if strange:
        hint = "known: M (Mamba-2), * (attention), E (experts), - (dense)"
        config.log.add(f"{strange} in the pattern", where=config.place("hybrid_override_pattern"), hint=hint)
        return []
    if pattern:
        return [_BLOCKS[letter] for letter in pattern]
    count = config.values.get("layers_block_type")
    name = "layers_block_type" if count is not None else "layer_types"
    listed = config.values.get(name)
    return config.kinds(name, len(listed), _BLOCK_NAMES) or [] if isinstance(listed, list) else []


def _nemotron_layers(config: ConfigReader) -> int:
    blocks = _nemotron_blocks(config)
    if not blocks:
        config.log.add("hybrid_override_pattern (or layers_block_type) is missing", where=config.place())
    stated = config.optional_integer("num_hidden_layers")
    if blocks and stated not in (None, len(blocks)):
        message = f"{stated} layers, but the pattern has {len(blocks)}"
        config.log.add(message, where=config.place("num_hidden_layers"))
    return max(1, len(blocks))


def _nemotron_mixers(config: ConfigReader, layers: int) -> list[Attention]:
    blocks = _nemotron_blocks(config)
    parts: dict[str, Attention] = {kind: NoAttention() for kind in blocks}
    if STATE in parts:
        parts[STATE] = mamba2(config)
    if FULL in parts:
        parts[FULL] = grouped_part(config)
    return [parts[kind] for kind in blocks] or [NoAttention()] * layers


def _nemotron_is_moe(config: ConfigReader, layers: int) -> list[bool]:
    return [kind == "moe" for kind in _nemotron_blocks(config)] or [True] * layers


def _nemotron_dense(config: ConfigReader, layers: int) -> list[DenseFfn]:
    blocks = _nemotron_blocks(config)
    width = config.integer("intermediate_size") if "mlp" in blocks else 0
    part = DenseFfn(intermediate_size=width, gated=False)
    none = DenseFfn(intermediate_size=0)
    return [part if kind == "mlp" else none for kind in blocks] or [none] * layers


def _nemotron_shared(config: ConfigReader) -> int:
    count = config.integer("n_shared_experts", default=1, minimum=0)
    return config.integer("moe_shared_expert_intermediate_size") if count else 0


_QWEN3_NEXT: Final = Family(
    mixed(_grouped(output_gate=True, qk_norm="per_head"), gated_delta, _qwen_kinds),
    experts("moe_intermediate_size", shared=wide_shared("shared_expert_intermediate_size"), shared_gate=True),
    sparse_step,
)
_MINIMAX: Final = Family(mixed(grouped_part, lightning, _minimax_kinds), experts("intermediate_size"), every_layer)

FAMILIES: Final[dict[str, Family]] = {
    "qwen3_next": _QWEN3_NEXT,
    "qwen3_5_moe": _QWEN3_NEXT,
    "qwen3_5_moe_text": _QWEN3_NEXT,
    "jamba": Family(mixed(grouped_part, mamba, _jamba_kinds), experts("intermediate_size"), periodic),
    "minimax": _MINIMAX,
    "minimax_m1": _MINIMAX,
    "minimax_text_01": _MINIMAX,
    "granitemoehybrid": Family(
        mixed(_grouped(), mamba2, _granite_kinds),
        experts("intermediate_size", shared=wide_shared("shared_intermediate_size")),
        every_layer,
    ),
    "kimi_linear": Family(
        mixed(latent_part, kimi_delta, _kimi_kinds),
        experts("moe_intermediate_size", shared=counted_shared(), groups=True, correction_bias=True),
        after_first_dense,
        refused=("attention_bias", "mla_use_output_gate", "latent_moe_use_norm", "attn_res_block_size"),
    ),
    "lfm2_moe": Family(
        mixed(_grouped(qkv_bias=False, output_bias=False, qk_norm="per_head"), short_conv, _lfm2_kinds),
        experts("moe_intermediate_size", correction_bias="use_expert_bias"),
        after_first_dense,
        tied_by_default=True,
    ),
    "nemotron_h": Family(
        _nemotron_mixers,
        experts(
            "moe_intermediate_size",
            shared=_nemotron_shared,
            groups=True,
            correction_bias=True,
            latent="moe_latent_size",
            gated=False,  # squared ReLU
        ),
        _nemotron_is_moe,
        dense=_nemotron_dense,
        layers=_nemotron_layers,
        norms=1,
        refused=("attention_bias", "mlp_bias", "block_configs"),
    ),
}
