"""Experts, shared experts, and the rules that say which layers have them."""

from __future__ import annotations

from collections.abc import Callable

from planner.inputs.config_reader import EXPERTS, SHARED, TOP_K, ConfigReader
from planner.inputs.families.family import MoeReader
from planner.inputs.model import MoeFfn

Width = Callable[[ConfigReader], int]


def experts(
    *width: str,
    shared: Width | None = None,
    shared_gate: bool = False,
    groups: bool = False,
    correction_bias: bool | str = False,
    biases: bool = False,
    zero_experts: str = "",
    latent: str = "",
    lists: bool = False,
    gated: bool = True,
) -> MoeReader:
    """Experts whose width stands under one of the names; the rest as the family does it.

    Args:
        width: names of the key for the width of one expert.
        shared: gives the width of all shared experts together.
        shared_gate: whether a gate of its own scales the shared experts.
        groups: whether the router chooses groups first (`n_group`, `topk_group`).
        correction_bias: whether the router has a bias for balance, or the key that switches it on.
        biases: whether router and experts have biases.
        zero_experts: the key for the number of experts that do nothing.
        latent: the key for the width of the space in which the experts work.
        lists: whether the family may write a list of equal numbers, one per layer, for one number.
        gated: whether experts have a gate projection beside up and down.
    """

    def read(config: ConfigReader) -> MoeFfn:
        correction = correction_bias
        if isinstance(correction, str):
            correction = config.flag(correction, default=True)
        number = config.uniform if lists else config.integer
        values = {
            "num_experts": number(*EXPERTS),
            "top_k": number(*TOP_K),
            "intermediate_size": number(*width),
            "gated": gated,
            "expert_bias": biases,
            "router_bias": biases,
            "latent_size": config.optional_integer(latent) if latent else None,
            "zero_experts": config.integer(zero_experts, default=0, minimum=0) if zero_experts else 0,
            "shared_intermediate_size": shared(config) if shared else 0,
            "shared_gate": shared_gate,
            "num_groups": config.integer("n_group", "num_expert_group", default=1) if groups else 1,
            "groups_per_token": config.integer("topk_group", default=1) if groups else 1,
            "correction_bias": correction,
        }
        return MoeFfn.model_validate(values)

    return read


def counted_shared(*width: str, default: int = 0, lists: bool = False) -> Width:
    """So many shared experts of the width of a routed one; `lists` as for `experts`."""

    def read(config: ConfigReader) -> int:
        number = config.uniform if lists else config.integer
        count = number(*SHARED, default=default, minimum=0)
        return count * number(*(width or ("moe_intermediate_size",)))

    return read


def wide_shared(*names: str) -> Width:
    """Shared experts whose whole width stands under a key; 0 or absent: none."""

    def read(config: ConfigReader) -> int:
        return config.integer(*names, default=0, minimum=0)

    return read


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
    kinds = config.kinds("mlp_layer_types", layers, {"dense": "dense", "sparse": "sparse"})
    if kinds is not None:
        return [kind != "dense" for kind in kinds]
    first = config.integer("first_k_dense_replace", "num_dense_layers", default=0, minimum=0)
    step = config.integer("moe_layer_freq", default=1)
    return [index >= first and index % step == 0 for index in range(layers)]


def interleaved(config: ConfigReader, layers: int) -> list[bool]:
    """Llama 4: the layers of `moe_layers`, else the last of every `interleave_moe_layer_step`."""
    listed = config.integers("moe_layers")
    if listed:
        chosen = set(listed)
        return [index in chosen for index in range(layers)]
    step = config.integer("interleave_moe_layer_step", default=1)
    return [(index + 1) % step == 0 for index in range(layers)]


def periodic(config: ConfigReader, layers: int) -> list[bool]:
    """Jamba: one layer in every period, at an offset."""
    period = config.integer("expert_layer_period", default=2)
    offset = config.integer("expert_layer_offset", default=1, minimum=0)
    return [index % period == offset for index in range(layers)]


def between(config: ConfigReader, layers: int) -> list[bool]:
    """ERNIE: every `moe_layer_interval`-th layer from a first to a last one (-1: the last of all)."""
    first = config.uniform("moe_layer_start_index", default=1, minimum=0)
    last = config.uniform("moe_layer_end_index", default=-1, minimum=-1)
    step = config.integer("moe_layer_interval", default=1)
    last = layers - 1 if last == -1 else last
    return [(index + 1) % step == 0 and first <= index <= last for index in range(layers)]
