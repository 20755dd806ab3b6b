"""The work: phase, batch and context; and how tokens travel between experts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from planner.inputs.documents import Frozen

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
    prefill_chunk: Annotated[int, Field(ge=0, le=10**7)] = 0
    """Prompt tokens that a data-parallel rank works on at once, with working space for them: in decode
    beside its sequences (0: prefill runs elsewhere), in prefill at most (0: a whole micro-batch). Memory
    only: the time of a step is that of its own tokens."""


class Communication(Frozen):
    """Which kernel moves tokens and which copies of a token it sends."""

    kernel: str
    """Name of the kernel profile."""
    dedup: Dedup
    """expert: one copy per chosen expert; gpu: one per GPU; node: one per node, forwarded inside."""
