"""A communication library: how fast, which copies it sends, what memory it takes, what it can run.

An exchange (dispatch or combine) takes a constant and the bytes on its slowest link; a collective
(`Collective`) softens the step from one to the other, or takes the faster of two algorithms. The
formulas stand in docs/model.md, "Traffic" and "Collectives". How many bytes each kind of buffer has is
worked out in `planner/cost/buffers.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import AfterValidator, Field

from planner.inputs import profiles
from planner.inputs.documents import Frozen
from planner.inputs.efficiency import Errors
from planner.inputs.sourced import Basis, Sourced
from planner.inputs.units import Duration, Percentage, Size, SizeOrZero
from planner.inputs.workload import Dedup

Count = Annotated[int, Field(ge=1, le=1 << 24)]
KernelName = Annotated[str, AfterValidator(partial(profiles.known, "kernels"))]
"""Name of a kernel profile."""


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
    one_domain: bool = False
    """Whether all ranks must lie in one scale-up domain."""
    source: str = ""
    """Where the limits come from."""


Value = TypeVar("Value")


class Fitted(Sourced[Value], Generic[Value]):
    """A value with its source and, where it was fitted, how well it meets measurements."""

    fit: Errors | None = None
    """On the measurements that it was fitted to."""
    held_out: Errors | None = None
    """On measurements that were left out of the fit."""


class OneWay(Frozen):
    """A dispatch or a combine: its constant time, and what a byte costs beside one at full rate."""

    launch: Duration
    """In any case, on top of the latency of the slowest link."""
    between: Duration = 0.0
    """Further time where some message leaves the scale-up domain."""
    per_doubling: Duration = 0.0
    """Further time for each doubling of the ranks."""
    per_token: Duration = 0.0
    """Further time for each token that a GPU brings."""
    handshake: Duration = 0.0
    """Further time where messages are long: their two ends agree first on where to put them."""
    handshake_bytes: Size = 65536
    """Mean message, from a GPU to each rank, at which half of `handshake` is taken."""
    copied: Annotated[float, Field(ge=0, le=2)] = 0.0
    """Part of a rank's own share that takes as long as one sent, because it is copied; inside one scale-up domain."""
    slower: Annotated[float, Field(gt=0, le=100)] = 1.0
    """Time of a byte over that of one at the rates of scale_up and scale_out."""


class Collective(Frozen):
    """All-reduce, all-gather and reduce-scatter over n ranks: (a**p + b**p)**(1/p).

    a is the launch and a step per phase and further rank of the scale-up domain, b the bytes that a
    rank sends over the rate; an all-reduce has two phases, the others one. With `one_shot` an all-reduce
    may instead read the whole tensors of all other ranks at once, where that is faster.
    """

    launch: Duration
    """Constant time of one collective, on links of latency `at_latency`."""
    step: Duration
    """Further time per phase for each further rank in the scale-up domain."""
    softness: Annotated[float, Field(gt=0, le=1)] = 1.0
    """p: 1 adds latency and transfer; smaller ones smear the passage from one to the other."""
    scale_up: Percentage
    """Part of the bandwidth in the scale-up domain that large collectives reach."""
    scale_out: Percentage | None = None
    """The same beyond it; null: it runs only inside one domain."""
    copied: Annotated[float, Field(ge=0, le=2)] = 0.0
    """Part of a rank's own share of the result that takes as long as a share sent, because it is copied; inside one
    scale-up domain."""
    all_reduce: Annotated[float, Field(gt=0, le=2)] = 1.0
    """Time of an all-reduce's bytes over that of its two phases one after the other; inside one scale-up domain."""
    one_shot: Duration | None = None
    """Launch of an all-reduce in which each rank reads all others' tensors whole; null: there is none."""
    at_latency: Duration = 3e-6
    """Latency of the links that `launch` was measured on; what slower ones have beyond it comes on top."""
    most_bytes: Size | None = None
    """Largest tensor that it is used for; null: any."""


class KernelFigures(Frozen):
    """What a library reaches on some GPU, or on the very machine, instead of its general figures."""

    dispatch: Fitted[OneWay] | None = None
    """Constant time of a dispatch."""
    combine: Fitted[OneWay] | None = None
    """Constant time of a combine."""
    scale_up: Sourced[Percentage] | None = None
    """Part of the bandwidth inside the scale-up domain that large messages reach."""
    scale_out: Sourced[Percentage] | None = None
    """Part of the bandwidth beyond it that large messages reach."""
    collective: Fitted[Collective] | None = None
    """All-reduce, all-gather, reduce-scatter."""
    levels: dict[str, Sourced[Percentage]] = Field(default={})
    """Part of the bandwidth reached at single levels, by name."""

    def given(self) -> dict[str, Any]:
        """The figures that are set."""
        return {name: value for name in type(self).model_fields if (value := getattr(self, name))}


@dataclass(frozen=True)
class Reach:
    """Parts of the bandwidth that large messages reach."""

    scale_up: float
    scale_out: float
    levels: Mapping[str, float]
    """At single levels, by name; they come before the other two and before what the topology says."""


class KernelFile(Frozen):
    """A communication library as the cost model sees it."""

    version: str
    """Version that the figures are for."""
    method: Literal["all_to_all", "all_gather"] = "all_to_all"
    """all_to_all: tokens go to the ranks of their experts; all_gather: every rank gets all tokens and
    results are reduced (all-gather and reduce-scatter, or one all-reduce where all have all tokens)."""
    dedup: PhaseDedup
    """Which copies of a token it sends."""
    dispatch: Fitted[OneWay]
    """Constant time of a dispatch."""
    combine: Fitted[OneWay]
    """Constant time of a combine."""
    scale_up: Sourced[Percentage]
    """Part of the bandwidth inside the scale-up domain that large messages reach."""
    scale_out: Sourced[Percentage]
    """Part of the bandwidth beyond it that large messages reach."""
    levels: dict[str, Sourced[Percentage]] = Field(default={})
    """Part of the bandwidth reached at single levels, by name: where somebody measured it."""
    collective: Fitted[Collective] | None = None
    """All-reduce, all-gather, reduce-scatter; null: the library has none."""
    on: dict[str, KernelFigures] = Field(default={})
    """Figures on single GPUs, by name of their profile."""
    header_bytes: Annotated[int, Field(ge=0)] = 0
    """Bytes sent with each copy besides the activations and their scales."""
    buffer: Buffer
    """Memory that it takes on each GPU."""
    limits: KernelLimits = KernelLimits()
    """What it can run."""
    note: str = ""
    """Anything a reader should know."""

    @property
    def reach(self) -> Reach:
        """Of exchanges."""
        return Reach(self.scale_up.value, self.scale_out.value, {n: part.value for n, part in self.levels.items()})

    @property
    def collective_reach(self) -> Reach:
        """Of collectives; of exchanges where the library has none."""
        if self.collective is None:
            return self.reach
        figures = self.collective.value
        levels = {name: part.value for name, part in self.levels.items()}
        return Reach(figures.scale_up, figures.scale_out or figures.scale_up, levels)


class Calibration(KernelFigures):
    """Measured figures of one library on the very machine, as a topology file holds them."""

    kernel: KernelName
    """Name of the kernel profile that they replace figures of."""


class EngineBuffer(Frozen):
    """What an engine asks of a kernel's buffer instead of the library's own defaults."""

    tokens: Sourced[Count] | None = None
    """Tokens per rank of a low-latency buffer."""
    nvlink: Sourced[SizeOrZero] | None = None
    """Size of the buffer inside the node."""
    rdma: Sourced[SizeOrZero] | None = None
    """Size of the buffer between nodes."""


def on_machine(
    kernel: KernelFile, name: str, gpus: Iterable[Sequence[str]], measured: Iterable[Calibration]
) -> KernelFile:
    """The kernel with the figures of the machine's GPUs, and over them those measured on it.

    Args:
        kernel: the profile.
        name: its name.
        gpus: of the different GPUs of the machine, each one's own name and that of `curves_of`. Figures of
            single GPUs are taken if all have the same, since an exchange waits for the slowest of them.
        measured: from the topology file.
    """
    known = [next((kernel.on[name] for name in names if name in kernel.on), None) for names in gpus]
    update = known[0].given() if known and known[0] is not None and all(one == known[0] for one in known) else {}
    for one in measured:
        if one.kernel == name:
            update |= {key: value for key, value in one.given().items() if key != "kernel"}
    return kernel.model_copy(update={**update, "on": {}})


def as_used(kernel: KernelFile, asked: EngineBuffer | None) -> KernelFile:
    """The kernel with the buffer sizes that an engine asks for."""
    if asked is None:
        return kernel
    update = {name: value for name in type(kernel.buffer).model_fields if (value := getattr(asked, name, None))}
    return kernel.model_copy(update={"buffer": kernel.buffer.model_copy(update=update)})
