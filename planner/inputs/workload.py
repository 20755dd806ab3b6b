"""The work: phase, batch and context; and how tokens travel between experts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from planner.inputs.documents import Frozen
from planner.inputs.sourced import Sourced
from planner.inputs.units import Duration, Percentage, SizeOrZero

Phase = Literal["prefill", "decode"]
Dedup = Literal["expert", "gpu", "node"]


class Workload(Frozen):
    """What one step computes. The work is the same for every split: B = tokens_per_gpu x GPUs."""

    phase: Phase
    """prefill: all prompt tokens in one step; decode: one token per sequence and step."""
    tokens_per_gpu: Annotated[int, Field(ge=1, le=10**7)]
    """Tokens in flight per step, divided by all GPUs (decode: concurrent sequences per GPU)."""
    context_length: Annotated[int, Field(ge=1, le=10**8)]
    """Tokens of KV cache held per sequence."""


class PhaseDedup(Frozen):
    """Which copies of a token are sent, by phase."""

    prefill: Dedup
    """In prefill."""
    decode: Dedup
    """In decode."""


class KernelFile(Frozen):
    """A communication library as the cost model sees it."""

    version: str
    """Version that the figures are for."""
    dedup: PhaseDedup
    """Which copies of a token it sends."""
    launch: Sourced[Duration]
    """Constant time of one dispatch or one combine, on top of the links' latency."""
    scale_up: Sourced[Percentage]
    """Part of the bandwidth inside the node that large messages reach."""
    scale_out: Sourced[Percentage]
    """Part of the bandwidth between nodes that large messages reach."""
    header_bytes: Annotated[int, Field(ge=0)] = 0
    """Bytes sent with each copy besides the activations and their scales."""
    buffer: Sourced[SizeOrZero]
    """Memory that the library takes on each GPU for its exchange."""
    note: str = ""
    """Anything a reader should know."""


class Communication(Frozen):
    """Which kernel moves tokens and which copies of a token it sends."""

    kernel: str
    """Name of the kernel profile."""
    dedup: Dedup
    """expert: one copy per chosen expert; gpu: one per GPU; node: one per node, forwarded inside."""
