"""A communication library: how fast, which copies it sends, what memory it takes, what it can run.

How many bytes each kind of buffer has is worked out in `planner/cost/buffers.py`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from planner.inputs.documents import Frozen
from planner.inputs.sourced import Basis, Sourced
from planner.inputs.units import Duration, Percentage, Size, SizeOrZero
from planner.inputs.workload import Dedup

Count = Annotated[int, Field(ge=1, le=1 << 24)]


class PhaseDedup(Frozen):
    """Which copies of a token are sent, by phase."""

    prefill: Dedup
    """In prefill."""
    decode: Dedup
    """In decode."""


class FixedBuffer(Frozen):
    """One buffer for the exchange of tokens, whatever the number of ranks."""

    kind: Literal["fixed"] = "fixed"
    size: Sourced[SizeOrZero]
    """Its size."""


class GroupBuffer(Frozen):
    """Buffers of each communicator, by the number of its ranks (NCCL, HCCL)."""

    kind: Literal["group"] = "group"
    sizes: dict[Count, SizeOrZero]
    """Bytes on each GPU by ranks of the group: the entry of the most ranks that it has at least."""
    basis: Basis
    """What the sizes rest on."""
    source: str
    """Where they come from."""


class LowLatencyBuffer(Frozen):
    """DeepEP's low-latency buffer: a place for every token of every rank at every expert."""

    kind: Literal["deepep_low_latency"] = "deepep_low_latency"
    tokens: Sourced[Count]
    """Tokens per rank that it is made for; more where a step has more."""
    nvlink: Sourced[SizeOrZero] | None = None
    """A buffer inside the node that an engine has beside it."""
    source: str
    """Where the formula comes from."""


class ChunkedBuffer(Frozen):
    """DeepEP's normal buffers: queues of chunks to the GPUs of the node, and to the nodes."""

    kind: Literal["deepep_normal"] = "deepep_normal"
    sms: Count
    """Multiprocessors that the kernels run on; half as many channels."""
    receive_tokens: dict[Count, tuple[Count, Count]]
    """By EP size: tokens that a channel's queue holds inside the node, and between nodes."""
    nvlink: Sourced[SizeOrZero] | None = None
    """Size of the buffer inside the node where an engine fixes it; null: as the library recommends."""
    rdma: Sourced[SizeOrZero] | None = None
    """Size of the buffer between nodes where an engine fixes it; null: as the library recommends."""
    source: str
    """Where the formula comes from."""


Buffer = Annotated[
    FixedBuffer | GroupBuffer | LowLatencyBuffer | ChunkedBuffer,
    Field(discriminator="kind"),
]


class KernelLimits(Frozen):
    """What a library can run; what is left out is not limited."""

    ep_sizes: tuple[Count, ...] = ()
    """EP sizes that it is built for."""
    node_ranks: Count | None = None
    """Ranks that it expects on every node, consecutive; fewer ranks must share one node."""
    even_experts: bool = False
    """Whether every rank must hold equally many experts."""
    hidden_sizes: tuple[Count, ...] = ()
    """Widths of a token that it is built for; engines pad to the next."""
    most_top_k: Count | None = None
    """Most experts per token."""
    most_tokens: Count | None = None
    """Most tokens that a rank may send at once."""
    most_buffer: Sourced[Size] | None = None
    """Largest buffer that it can address."""
    source: str = ""
    """Where the limits come from."""


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
    buffer: Buffer
    """Memory that it takes on each GPU."""
    limits: KernelLimits = KernelLimits()
    """What it can run."""
    note: str = ""
    """Anything a reader should know."""


class EngineBuffer(Frozen):
    """What an engine asks of a kernel's buffer instead of the library's own defaults."""

    tokens: Sourced[Count] | None = None
    """Tokens per rank of a low-latency buffer."""
    nvlink: Sourced[SizeOrZero] | None = None
    """Size of the buffer inside the node."""
    rdma: Sourced[SizeOrZero] | None = None
    """Size of the buffer between nodes."""


def as_used(kernel: KernelFile, asked: EngineBuffer | None) -> KernelFile:
    """The kernel with the buffer sizes that an engine asks for."""
    if asked is None:
        return kernel
    update = {name: value for name in type(kernel.buffer).model_fields if (value := getattr(asked, name, None))}
    return kernel.model_copy(update={"buffer": kernel.buffer.model_copy(update=update)})
