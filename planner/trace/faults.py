"""What goes wrong when routing is recorded: every trap has a name, an explanation and a cure.

A fault refuses the trace unless its name is accepted, which turns it into a warning. Those that leave
no valid trace (`NEVER`) cannot be accepted.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from planner.errors import Place, Problem

FAULTS: Final[dict[str, str]] = {
    "dense-layer": "rows of dense layers hold zeros, which look like expert 0 chosen by every token",
    "filler-ids": "ids such as 255, or zeros in all choices of a token, stand for no expert: padding, dropped tokens",
    "physical-ids": "ids or columns count slots of a run with redundant experts, not logical experts",
    "shared-experts": "a fused shared expert is recorded beside the routed ones",
    "repeated-expert": "one token chose the same expert twice in a layer, which no router does",
    "double-count": "the same tokens are counted by several ranks",
    "pipeline-ranks": "pipeline stages numbered their layers from 0, or overwrote each other",
    "layer-index": "rows are numbered by MoE layer where hidden layers are meant, or the other way round",
    "zero-layer": "an MoE layer was never recorded",
    "token-sum": "the choices of a layer are not top_k for each of the same tokens",
    "dummy-tokens": "many tokens chose the same experts in every layer: padding or dummy requests that were routed",
    "mixed-phases": "prefill and decode are pooled, though they route differently and are planned apart",
}
NEVER: Final = frozenset({"physical-ids", "dense-layer"})


@dataclass(frozen=True)
class Fault:
    """One trap that a trace fell into."""

    name: str
    message: str
    where: Place
    cure: str

    def __post_init__(self) -> None:
        assert self.name in FAULTS


def sort_out(faults: Sequence[Fault], accepted: Collection[str]) -> tuple[list[Problem], list[str]]:
    """What refuses the trace, and what only needs saying because it was accepted."""
    problems, warnings = [], []
    for fault in faults:
        if fault.name in accepted and fault.name not in NEVER:
            warnings.append(f"{fault.where}: {fault.message} [{fault.name}, accepted]")
            continue
        hint = fault.cure
        if fault.name not in NEVER:
            hint += f"\nif it is meant so: --accept {fault.name}"
        problems.append(Problem(f"{fault.message} [{fault.name}]", fault.where, hint))
    return problems, warnings
