"""What a family of Hugging Face models is, to the reader of its config.json."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from planner.inputs.config_reader import ConfigReader
from planner.inputs.model import Attention, DenseFfn, Ffn, MoeFfn

AttentionReader = Callable[[ConfigReader, int], list[Attention]]
MoeReader = Callable[[ConfigReader], MoeFfn]
MoeVariants = Callable[[ConfigReader, MoeFfn, int], list[MoeFfn]]
LayerRule = Callable[[ConfigReader, int], list[bool]]
DenseReader = Callable[[ConfigReader, int], list[DenseFfn]]


def _nothing(_config: ConfigReader) -> int:
    return 0


LAYER_COUNTS: Final = ("num_hidden_layers", "n_layers", "n_layer", "num_layers")


def hidden_layers(config: ConfigReader) -> int:
    """How many layers the config states, under the name of the family or the time."""
    return config.integer(*LAYER_COUNTS)


@dataclass(frozen=True)
class Family:
    """How to read one family; each function gets the config and, where needed, the layer count."""

    attention: AttentionReader
    moe: MoeReader
    is_moe: LayerRule
    variants: MoeVariants | None = None
    """MoE part of each layer, made from the common one, where a few layers differ in small things."""
    dense_width: tuple[str, ...] = ("intermediate_size",)
    dense: DenseReader | None = None
    """Feed-forward parts of the layers that are not MoE, where `dense_width` does not say it."""
    layers: Callable[[ConfigReader], int] = hidden_layers
    norms: int = 2
    """Vectors of hidden_size for norms in each layer."""
    layer_extra: Callable[[ConfigReader], int] = _nothing
    """Further small weights of each layer."""
    model_extra: Callable[[ConfigReader], int] = _nothing
    """Further small weights outside the layers."""
    tied_by_default: bool = False
    refused: tuple[str, ...] = ()
    """Switches of the config that change the shape in ways that are not read here."""


def read_layers(family: Family, config: ConfigReader, layers: int) -> list[tuple[Attention, Ffn]]:
    """Attention and feed-forward part of every layer."""
    for name in family.refused:
        if config.values.get(name):
            hint = "describe such a model in a model.yaml (schema: ep-plan/model/1)"
            shown = config.values[name]
            config.log.add(f"{shown!r}: this variant of the family is not read", where=config.place(name), hint=hint)
    attention = family.attention(config, layers)
    flags = family.is_moe(config, layers)
    if not any(flags):
        config.log.add("the model has no MoE layer: there is nothing to place", where=config.place())
        return []
    moe = family.moe(config)
    variants = family.variants(config, moe, layers) if family.variants else [moe] * layers
    dense: list[DenseFfn] | None = None
    if not all(flags):
        dense = family.dense(config, layers) if family.dense else _equal_dense(family, config, layers)
    return [
        (part, variants[index] if flag or dense is None else dense[index])
        for index, (part, flag) in enumerate(zip(attention, flags, strict=True))
    ]


def _equal_dense(family: Family, config: ConfigReader, layers: int) -> list[DenseFfn]:
    width = config.integer(*family.dense_width)
    return [DenseFfn(intermediate_size=width)] * layers
