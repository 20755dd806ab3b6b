"""The work: phase, batch and context; and how tokens travel between experts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from planner.inputs.documents import Frozen
from planner.inputs.units import Percentage

Phase = Literal["prefill", "decode"]
Dedup = Literal["expert", "gpu", "node"]
Overlap = Literal["none", "shared", "two_batch"]


class Workload(Frozen):
    """What one step computes. The work is the same for every split: B = tokens_per_gpu x GPUs."""

    phase: Phase
    """prefill: all prompt tokens in one step; decode: one token per sequence and step."""
    tokens_per_gpu: Annotated[int, Field(ge=1, le=10**7)]
    """Tokens in flight per step, divided by all GPUs (decode: concurrent sequences per GPU, times
    1 + draft_tokens)."""
    context_length: Annotated[int, Field(ge=1, le=10**8)]
    """Tokens of KV cache held per sequence."""
    prefill_chunk: Annotated[int, Field(ge=0, le=10**7)] = 0
    """Prompt tokens that a data-parallel rank works on at once, with working space for them: in decode
    beside its sequences (0: prefill runs elsewhere), in prefill at most (0: a whole micro-batch). Memory
    only: the time of a step is that of its own tokens."""
    draft_tokens: Annotated[int, Field(ge=0, le=64)] = 0
    """Tokens that each sequence of a decode step has verified besides its next one (multi-token prediction)."""
    acceptance: Percentage | None = None
    """Probability that a draft token is accepted once those before it are; to be given with draft_tokens."""

    @model_validator(mode="after")
    def _draft(self) -> Workload:
        if self.draft_tokens and self.phase == "prefill":
            raise ValueError("draft_tokens: there are none in prefill\nleave it out, or say phase: decode")
        if bool(self.draft_tokens) != (self.acceptance is not None):
            missing, given = ("acceptance", "draft_tokens") if self.draft_tokens else ("draft_tokens", "acceptance")
            raise ValueError(f"{given} needs {missing}\nsuch as draft_tokens: 1, acceptance: 80%")
        return self

    @property
    def tokens_per_sequence(self) -> int:
        """Tokens that a sequence brings to a decode step."""
        return 1 + self.draft_tokens

    @property
    def tokens_gained(self) -> float:
        """Mean output tokens of a sequence per decode step: drafts count up to the first that is refused."""
        return 1.0 + sum((self.acceptance or 0.0) ** place for place in range(1, self.draft_tokens + 1))


CopyRule = Literal["even", "nearest"]
"""How the copies of an expert share its tokens."""


class Communication(Frozen):
    """Which kernel moves tokens and which copies of a token it sends."""

    kernel: str
    """Name of the kernel profile."""
    dedup: Dedup
    """expert: one copy per chosen expert; gpu: one per GPU; node: one per node, forwarded inside."""
    overlap: Overlap = "none"
    """What traffic hides behind. shared: the shared experts, on a stream of their own; two_batch: one of two
    micro-batches that take turns, its attention and experts, while the other travels."""
