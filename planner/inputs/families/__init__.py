"""One entry per Hugging Face model family: which keys hold the shape, which layers are MoE.

Facts follow the configuration and modelling classes of transformers 5 (and the configs on the hub
where they differ). A family that is not listed is refused by name; nothing is guessed.
"""

from __future__ import annotations

from typing import Final

from planner.inputs.families import hybrid, latent, plain
from planner.inputs.families.family import LAYER_COUNTS, Family, read_layers

__all__ = ["FAMILIES", "LAYER_COUNTS", "Family", "read_layers"]

FAMILIES: Final[dict[str, Family]] = {**plain.FAMILIES, **latent.FAMILIES, **hybrid.FAMILIES}
