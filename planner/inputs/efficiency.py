"""What kernels reach of a GPU's datasheet rates: a handful of numbers per kind of work and number format.

Where several kernels do the same work there is a curve for each, and the fastest counts: engines choose by measuring.

A GPU profile (or an inline GPU) names the curves that were fitted to measurements of that GPU; all others come from
`profiles/efficiency.yaml`, whose curves were fitted over several GPUs and are *transferred*.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import BeforeValidator, Field, GetJsonSchemaHandler, SerializerFunctionWrapHandler, WrapSerializer
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

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

    time = base + per_expert * experts + (a**exponent + b**exponent + c**exponent)**(1/exponent) + moved,
    a = FLOP / (compute * peak), b = bytes / (memory * HBM), c = serial * steps of the longest chain,
    moved = activations in and out / (activation * HBM).
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
    serial: Duration = 0.0
    """Time per step of the longest chain of work, which no parallel unit shortens."""
    exponent: Annotated[float, Field(ge=1, le=8)] = 4
    """Sharpness of the smooth maximum."""


class Errors(Frozen):
    """Absolute relative errors over measurements."""

    median: Percentage
    """Half of them are smaller."""
    p90: Percentage
    """Nine in ten are smaller."""


class Curve(Sourced[Roofline]):
    """A roofline with its source, and how well it meets measurements."""

    engine: str | None = None
    """Engine that the kernel was measured in; engines that run their own kernels alone take no others."""
    fit: Errors | None = None
    """On the measurements that it was fitted to."""
    held_out: Errors | None = None
    """On those of a model shape (for transferred curves: of a GPU) that was left out of the fit.

    Where several kernels were measured on the same work: of the least of their curves, against the fastest of them.
    """


class _OneOrMore:
    """A list of one may be written as what it holds."""

    @staticmethod
    def __get_pydantic_json_schema__(core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        several = handler(core)
        return {"anyOf": [several["items"], several]}


def _listed(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _bare(value: tuple[Curve, ...], written: SerializerFunctionWrapHandler) -> Any:
    found = written(value)
    return found[0] if len(found) == 1 else found


Curves = Annotated[
    tuple[Curve, ...], BeforeValidator(_listed), WrapSerializer(_bare), Field(min_length=1), _OneOrMore()
]
"""Of every kernel that does some work: the fastest counts."""


class Efficiency(Frozen):
    """What kernels reach on a GPU, by kind of work and format: a curve, or a list of which the fastest counts."""

    experts: dict[WeightName, Curves] = Field(default={})
    """Grouped GEMM over the experts of a rank, by the format of their weights."""
    gemm: dict[WeightName, Curves] = Field(default={})
    """Dense GEMM (projections, router, dense and shared parts, LM head), by the format of the weights."""
    attention_prefill: dict[AttentionName, Curves] = Field(default={})
    """Attention over the prompt: grouped-query or latent (mla), over a bf16 or fp8 cache."""
    attention_decode: dict[AttentionName, Curves] = Field(default={})
    """Attention over the KV cache, one token per sequence."""
    overlap: Sourced[Percentage] | None = None
    """Part of what could hide behind other work that does."""
    small_kernel: Sourced[Duration] | None = None
    """Constant time of one small kernel (a norm with its residual), besides the bytes that it moves."""


def load_default_efficiency() -> Efficiency:
    """What is taken for GPUs and formats that nobody measured."""
    efficiency, _ = documents.load(profiles.folder() / "efficiency.yaml", Efficiency, "efficiency")
    return efficiency


def transferred(own: Efficiency | None, other: Efficiency | None, name: str) -> Efficiency:
    """A GPU's own curves, and beside them those of another GPU, called `name`, as transferred."""
    own, other = own or Efficiency(), other or Efficiency()
    update: dict[str, dict[str, tuple[Curve, ...]]] = {}
    for work in get_args(Work):
        taken = {
            key: tuple(
                curve.model_copy(
                    update={
                        "basis": "transferred",
                        "source": f"{curve.source}; of {name}",
                        "fit": None,
                        "held_out": None,
                    }
                )
                for curve in curves
            )
            for key, curves in getattr(other, work).items()
        }
        update[work] = taken | getattr(own, work)
    return own.model_copy(update=update)


def curves_of(known: Sequence[Efficiency], work: Work, name: str, engine: str | None = None) -> tuple[Curve, ...]:
    """The curves for some work: a GPU's own before the default, and the very format before one that is alike.

    Args:
        known: the GPU's own efficiency if it has one, then the default.
        work: the kind of work.
        name: format of the weights, or kind of attention.
        engine: where any of them are of this engine's kernels, these alone.

    Raises:
        KeyError: not even the default has a curve for such work.
    """
    for efficiency in known:
        table: dict[str, tuple[Curve, ...]] = dict(getattr(efficiency, work))
        for alike in _alike(name):
            if alike in table:
                own = tuple(curve for curve in table[alike] if engine in (None, curve.engine))
                found = own or table[alike]
                return found if alike == name else tuple(_stand_in(curve, alike, name) for curve in found)
    raise KeyError(f"{work}: {name}")


def _stand_in(curve: Curve, of: str, name: str) -> Curve:
    """The curve of one format, taken for another."""
    source = f"{curve.source}; curve of {of}, transferred to {name}"
    return curve.model_copy(update={"basis": "transferred", "source": source, "fit": None})


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
