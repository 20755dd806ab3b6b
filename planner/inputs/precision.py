"""Number formats: how many bytes a weight or an activation takes, and what computes it.

Bits of a weight include its share of the scales, because scales are loaded and stored with it.
Sources: OCP Microscaling Formats v1.0 (mxfp4: 32 weights share one 8-bit scale); NVIDIA Blackwell
documentation (nvfp4: 16 weights share one fp8 scale); DeepSeek-V3 config.json (fp8 with one fp32
scale per 128 x 128 block); common int4 checkpoints (128 weights share one 16-bit scale).
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Final, Literal

from planner.inputs.documents import Frozen

WeightName = Literal["fp32", "bf16", "fp8", "fp8_block", "int8", "int4", "mxfp4", "nvfp4"]
ActivationName = Literal["fp32", "bf16", "fp8", "nvfp4", "mxfp8"]
ComputeName = Literal["fp32", "bf16", "fp8", "fp4"]

COMPUTE_ORDER: Final[tuple[ComputeName, ...]] = ("fp4", "fp8", "bf16", "fp32")  # ever wider


@dataclass(frozen=True)
class WeightFormat:
    """How weights are stored."""

    bits: Fraction
    """Of one weight, its share of the scales included."""
    compute: ComputeName
    """The arithmetic that the format is meant for."""
    block: int | None = None
    """What a tensor-parallel shard must be a multiple of; None: anything."""


WEIGHTS: Final[dict[WeightName, WeightFormat]] = {
    "fp32": WeightFormat(Fraction(32), "fp32"),
    "bf16": WeightFormat(Fraction(16), "bf16"),
    "fp8": WeightFormat(Fraction(8), "fp8"),
    "fp8_block": WeightFormat(Fraction(8) + Fraction(32, 128 * 128), "fp8", 128),
    "int8": WeightFormat(Fraction(8), "bf16"),
    "int4": WeightFormat(Fraction(4) + Fraction(16, 128), "bf16", 128),
    "mxfp4": WeightFormat(Fraction(4) + Fraction(8, 32), "fp4", 32),
    "nvfp4": WeightFormat(Fraction(4) + Fraction(8, 16), "fp4", 16),
}

# Bytes of one activation element on the wire or in the KV cache; fp8 dispatch carries one fp32
# scale per 128 elements (DeepEP), nvfp4 one fp8 scale per 16 and mxfp8 one per 32.
ACTIVATION_BITS: Final[dict[ActivationName, Fraction]] = {
    "fp32": Fraction(32),
    "bf16": Fraction(16),
    "fp8": Fraction(8) + Fraction(32, 128),
    "nvfp4": Fraction(4) + Fraction(8, 16),
    "mxfp8": Fraction(8) + Fraction(8, 32),
}
CACHE_BITS: Final[dict[str, Fraction]] = {"fp32": Fraction(32), "bf16": Fraction(16), "fp8": Fraction(8)}


class Precision(Frozen):
    """What is kept and sent in which format; every field set (defaults come from the model)."""

    experts: WeightName
    """Expert weights."""
    dense: WeightName
    """Attention, dense and shared weights."""
    embedding: WeightName
    """Embedding, LM head, routers and norms."""
    kv_cache: Literal["fp32", "bf16", "fp8"]
    """KV cache."""
    dispatch: ActivationName
    """Tokens on the way to experts."""
    combine: ActivationName
    """Results on the way back."""


def compute_format(weights: WeightName, supported: frozenset[str]) -> tuple[ComputeName, bool]:
    """The arithmetic that runs these weights on a GPU, and whether that is an assumption.

    A GPU that does not list the format computes at the next wider one that it lists.
    """
    wanted = WEIGHTS[weights].compute
    for name in COMPUTE_ORDER[COMPUTE_ORDER.index(wanted) :]:
        if name in supported:
            return name, name != wanted
    narrower = [name for name in reversed(COMPUTE_ORDER) if name in supported]
    return (narrower[0] if narrower else wanted), True


def stored_bytes(parameters: int, weights: WeightName) -> int:
    """Bytes of so many weights, rounded up."""
    exact = Fraction(parameters) * WEIGHTS[weights].bits / 8
    return -(-exact.numerator // exact.denominator)
