"""How model families name the tensors of an MoE block in their safetensors files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

LAYER: Final = re.compile(r"model\.layers\.(\d+)\.(mlp|block_sparse_moe)\.(.+)")
EXPERT: Final = re.compile(r"experts\.(\d+)\.(.+)")
STACKED: Final = re.compile(r"experts\.([A-Za-z_]\w*)")


@dataclass(frozen=True)
class Names:
    """One family; experts are `experts.{e}.*`, or stacked along axis 0 as `experts.*`."""

    router: tuple[str, ...]
    """Tensors with one row for each expert that must be there."""
    optional: tuple[str, ...] = ()
    """Tensors with one row for each expert that may be there."""
    shared: tuple[str, ...] = ()
    """Beginnings of names that have nothing to do with routed experts."""

    @property
    def per_expert(self) -> tuple[str, ...]:
        """All tensors of the router."""
        return (*self.router, *self.optional)


_BIAS: Final = "gate.e_score_correction_bias"
_DEEPSEEK: Final = Names(("gate.weight",), (_BIAS,), ("shared_experts.",))

FAMILIES: Final[dict[str, Names]] = {
    "mixtral": Names(("gate.weight",)),
    "qwen2_moe": Names(("gate.weight",), (), ("shared_expert.", "shared_expert_gate.")),
    "qwen3_moe": Names(("gate.weight",)),
    "olmoe": Names(("gate.weight",)),
    "gpt_oss": Names(("router.weight", "router.bias")),
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK,
    "glm4_moe": _DEEPSEEK,
}
