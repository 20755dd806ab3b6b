"""What kernels reach of a GPU's datasheet rates: a handful of numbers per kind of work and number format.

A GPU profile (or an inline GPU) names the curves that were fitted to measurements of that GPU; all others come from
`profiles/efficiency.yaml`, whose curves were fitted over several GPUs and are *transferred*.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, get_args

from pydantic import Field

from planner.inputs import documents, profiles
from planner.inputs.documents import Frozen
from planner.inputs.precision import COMPUTE_ORDER, WEIGHTS, WeightName
from planner.inputs.sourced import Sourced
from planner.inputs.units import Duration, Percentage

Work = Literal["experts", "gemm", "attention_prefill", "attention_decode"]
AttentionName = Literal["gqa", "gqa_fp8", "mla", "mla_fp8"]
_ATTENTION: Final[tuple[AttentionName, ...]] = get_args(AttentionName)


class Roofline(Frozen):
    """How a kernel family falls short of the speed of light; see docs/model.md, "Compute".

    time = base + per_expert * experts + (a**exponent + b**exponent)**(1/exponent) + moved,
    a = FLOP / (compute * peak), b = bytes / (memory * HBM), moved = activations in and out /
    (activation * HBM).
    """

    base: Duration
    """Constant time of one launch."""
    per_expert: Duration = 0.0
    """Further time per expert slot."""
    compute: Percentage
    """Part of the peak compute rate reached."""
    memory: Percentage
    """Part of the HBM bandwidth reached when reading weights or a KV cache."""
    activation: Percentage | None = None
    """Part of the HBM bandwidth reached when moving activations; default: as memory."""
    exponent: Literal[2, 4] = 4
    """Sharpness of the smooth maximum."""


class Errors(Frozen):
    """Absolute relative errors over measurements."""

    median: Percentage
    """Half of them are smaller."""
    p90: Percentage
    """Nine in ten are smaller."""


class Curve(Sourced[Roofline]):
    """A roofline with its source, and how well it meets measurements."""

    fit: Errors | None = None
    """On the measurements that it was fitted to."""
    held_out: Errors | None = None
    """On those of a model shape (for transferred curves: of a GPU) that was left out of the fit."""


class Efficiency(Frozen):
    """What kernels reach on a GPU, by kind of work and number format."""

    experts: dict[WeightName, Curve] = Field(default={})
    """Grouped GEMM over the experts of a rank, by the format of their weights."""
    gemm: dict[WeightName, Curve] = Field(default={})
    """Dense GEMM (projections, router, dense and shared parts, LM head), by the format of the weights."""
    attention_prefill: dict[AttentionName, Curve] = Field(default={})
    """Attention over the prompt: grouped-query or latent (mla), over a bf16 or fp8 cache."""
    attention_decode: dict[AttentionName, Curve] = Field(default={})
    """Attention over the KV cache, one token per sequence."""
    overlap: Sourced[Percentage] | None = None
    """Part of what could hide behind other work that does."""
    small_kernel: Sourced[Duration] | None = None
    """Constant time of one small kernel (a norm with its residual), besides the bytes that it moves."""


def load_default_efficiency() -> Efficiency:
    """What is taken for GPUs and formats that nobody measured."""
    efficiency, _ = documents.load(profiles.folder() / "efficiency.yaml", Efficiency, "efficiency")
    return efficiency


def curve_of(known: Sequence[Efficiency], work: Work, name: str) -> Curve:
    """The curve for some work: a GPU's own before the default, and the very format before one that is alike.

    Args:
        known: the GPU's own efficiency if it has one, then the default.
        work: the kind of work.
        name: format of the weights, or kind of attention.

    Raises:
        KeyError: not even the default has a curve for such work.
    """
    for efficiency in known:
        table: dict[str, Curve] = dict(getattr(efficiency, work))
        for alike in _alike(name):
            if alike in table:
                curve = table[alike]
                if alike == name:
                    return curve
                source = f"{curve.source}; curve of {alike}, transferred to {name}"
                return curve.model_copy(update={"basis": "transferred", "source": source, "fit": None})
    raise KeyError(f"{work}: {name}")


def _alike(name: str) -> tuple[str, ...]:
    """Names whose curve may stand for one, nearest first."""
    if name in _ATTENTION:
        kind = name.partition("_")[0]
        return (name, *(other for other in _ATTENTION if other != name and other.startswith(kind)))
    wanted: WeightName = name  # type: ignore[assignment]
    compute = WEIGHTS[wanted].compute
    same = [other for other, found in WEIGHTS.items() if found.compute == compute and other != name]
    later = COMPUTE_ORDER[COMPUTE_ORDER.index(compute) + 1 :]
    wider = [other for step in later for other, found in WEIGHTS.items() if found.compute == step]
    narrower = [] if wider else [other for other, found in WEIGHTS.items() if found.compute == "bf16"]
    return (name, *same, *wider, *narrower)
