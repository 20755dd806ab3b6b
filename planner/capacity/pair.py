"""Prefill and decode on machines of their own, sized as a pair, and on one machine in turn.

Requests of given input and output lengths come at a given rate. Prefill must put through rate x input tokens, decode
rate x output tokens; the KV cache of every request travels from one to the other over the outermost link. Serving
both on one machine (aggregated) gives each phase its part of the time: prefill what its prompts need, decode the rest,
so its steps must be that much faster. Rates are means: nothing is said about queueing or bursts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from planner.capacity.size import Answer, Kind, Point, SizeJob, Wanted, fastest_on, size, tried_on
from planner.capacity.transfer import cache_bytes, way_out
from planner.inputs.deployment import Deployment
from planner.solve.watch import Watch


@dataclass(frozen=True)
class Requests:
    """What comes in, on average."""

    input_tokens: int
    output_tokens: int
    per_s: float
    max_step_s: float | None = None
    """Longest time per output token."""
    max_ttft_s: float | None = None
    """Longest time to the first token: prefill and the transfer of the KV cache, without queueing."""


@dataclass(frozen=True)
class Transfer:
    """The KV cache of requests on its way from prefill to decode."""

    bytes: int
    """Of one request."""
    seconds: float
    """Of one request, from one GPU to one other over the outermost link."""
    link_share: float
    """Part of what the prefill machine's GPUs can send that all requests together need."""
    level: str


@dataclass(frozen=True)
class Aggregated:
    """Both phases on one machine in turn."""

    point: Point | None
    """Decode on it; None if no count looked at will do."""
    prefill_share: float
    """Part of the time that prefill takes."""
    time_s: float | None
    """Per output token as a request sees it: decode steps wait for prefill."""
    looked_at: int
    why_not: str = ""


@dataclass(frozen=True)
class Pair:
    """Prefill and decode for one kind of machine, and both on one."""

    kind: str
    prefill: Answer
    decode: Answer
    transfer: Transfer | None
    """None if one of the two has no answer."""
    ttft_s: float | None
    aggregated: Aggregated


def pair(
    prefill: Deployment,
    decode: Deployment,
    kinds: Sequence[Kind],
    requests: Requests,
    most_nodes: int,
    watch: Watch,
    dask: str | None = None,
) -> list[Pair]:
    """Size both phases for each kind.

    Args:
        prefill: what is allowed in prefill, with its own traces.
        decode: the same in decode, of the same model.
        kinds: machines.
        requests: what comes in.
        most_nodes: larger counts are not looked at.
        watch: told of every machine that is done.
        dask: address of a Dask scheduler; default: the cores of this machine.
    """
    prefill = _with_context(prefill, requests.input_tokens)
    decode = _with_context(decode, requests.input_tokens + requests.output_tokens // 2)
    moved = cache_bytes(prefill, requests.input_tokens)
    first = Wanted(requests.per_s * requests.input_tokens, None, None, requests.max_ttft_s, moved)
    second = Wanted(requests.per_s * requests.output_tokens, None, requests.max_step_s)
    prefills = size(prefill, kinds, first, most_nodes, watch, dask)
    decodes = size(decode, kinds, second, most_nodes, watch, dask)
    found = []
    for kind, one, other in zip(kinds, prefills.answers, decodes.answers, strict=True):
        sent = ttft_s = None
        if one.point is not None and other.point is not None:
            sent, ttft_s = kv_transfer(prefill, kind, one.point, requests), one.point.ttft_s
        together = _aggregated(prefill, decode, kind, requests, most_nodes, watch)
        found.append(Pair(kind.name, one, other, sent, ttft_s, together))
    return found


def _with_context(deployment: Deployment, tokens: int) -> Deployment:
    """The deployment with KV caches of so many tokens: in decode the mean over a request's life."""
    work = deployment.workload.model_copy(update={"context_length": tokens})
    return replace(deployment, file=deployment.file.model_copy(update={"workload": work}), workload=work)


def kv_transfer(prefill: Deployment, kind: Kind, point: Point, requests: Requests) -> Transfer:
    """What the KV cache of a request takes over the outermost link, and how much of that link all take."""
    each = cache_bytes(prefill, requests.input_tokens)
    out = way_out(prefill, kind.of(max(2, point.nodes)), each)
    share = requests.per_s * each / (point.gpus * out.bytes_per_s_per_gpu)
    return Transfer(each, out.seconds, share, out.level)


def _aggregated(
    prefill: Deployment, decode: Deployment, kind: Kind, requests: Requests, most_nodes: int, watch: Watch
) -> Aggregated:
    """The fewest nodes that do both in turn."""
    need = Wanted(requests.per_s * requests.input_tokens, None, None, requests.max_ttft_s)
    share, why = 0.0, ""
    for nodes in range(1, most_nodes + 1):
        watch.begin(f"{nodes} nodes, both phases", 2)
        fastest = fastest_on(SizeJob(prefill, kind, nodes, need, nodes))
        watch.advance()
        if fastest is None:
            why = "prefill does not fit, or not in time"
            continue
        assert fastest.figures is not None, "it was planned"
        share = requests.per_s * requests.input_tokens / fastest.figures.tokens_per_s
        if share >= 1:
            why = "prefill alone takes all the time"
            continue
        left = 1 - share
        step_s = None if requests.max_step_s is None else requests.max_step_s * left
        wanted = Wanted(requests.per_s * requests.output_tokens / left, None, step_s)
        point = tried_on(SizeJob(decode, kind, nodes, wanted, nodes))[-1]
        watch.advance()
        if point.does and point.time_s is not None:
            return Aggregated(point, share, point.time_s / left, nodes)
        why = f"beside prefill, {share:.0%} of the time: {point.why_not}"
    return Aggregated(None, share, None, most_nodes, why)
