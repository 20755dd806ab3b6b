"""The fewest nodes that do what is wanted: one plan for each machine and batch, by the same program as always.

For every kind of node the count rises until a plan does what is wanted; GPUs may be left idle, so no larger count
needs to be looked at, and the count before it is the reason why one node less does not do. Where a throughput is
wanted the batch is the smallest that reaches it (to a sixteenth), because every larger one takes longer per token; in
prefill no smaller than a prompt on the whole machine, and one whose prompts are through in time.
Nothing is said about queueing: a step always finds its batch full.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from planner.capacity.figures import Figures, figures_of
from planner.capacity.jobs import job_of, plan_or_why, run_all
from planner.capacity.transfer import way_out
from planner.errors import InputError, Place, Problem, UsageError
from planner.inputs.deployment import Deployment
from planner.inputs.edits import on_machine, with_tokens
from planner.inputs.named_files import Named, existing_file
from planner.inputs.topology import Topology, links_within, load_topology, resolve, topology_of_nodes
from planner.inputs.topology_file import JOIN_NODES, TopologyFile
from planner.inputs.units import format_count, format_seconds
from planner.plan.plan import Plan
from planner.solve.diagnosis import Short
from planner.solve.watch import Watch

_MOST_TOKENS = 1 << 20
"""Per GPU: larger batches are not looked for."""
_EXACT = 16
"""The smallest batch is found to this part of it, or exactly where it decides."""
_MORE = 1.01
"""A doubled batch must put so much more through to be worth its time."""
_MARGIN = 2.0
"""A rate is out of reach if it is so many times what larger batches and more nodes could come to."""

_FAR = "out of reach of larger batches and more nodes"


@dataclass(frozen=True)
class Kind:
    """A kind of machine, of which any number of nodes can be had."""

    name: str
    one: TopologyFile
    """Any number of such nodes."""

    def of(self, nodes: int) -> Topology:
        """So many nodes; only the link levels that they need."""
        links = links_within(self.one.links, nodes)
        return resolve(self.one.model_copy(update={"nodes": nodes, "links": links}))


@dataclass(frozen=True)
class Wanted:
    """What a machine must do; at least a throughput or a number of sequences."""

    tokens_per_s: float | None = None
    """In decode output tokens, in prefill prompt tokens."""
    sequences: int | None = None
    """Served at the same time."""
    max_step_s: float | None = None
    """Longest time per output token (prefill: per step)."""
    max_ttft_s: float | None = None
    """Prefill: longest time until a prompt is through, and its KV cache has moved on."""
    moved_bytes: int = 0
    """Prefill: KV cache of a request that another machine waits for."""


@dataclass(frozen=True)
class Point:
    """One machine with one batch: what it does, or why it cannot."""

    kind: str
    nodes: int
    gpus: int
    tokens_per_gpu: int
    figures: Figures | None
    time_s: float | None
    """Per output token; prefill: per step."""
    does: bool
    """Whether it does all that is wanted."""
    why_not: str = ""
    ttft_s: float | None = None
    """Prefill: until a prompt is through and its KV cache has moved on."""

    @property
    def takes_prompts_in_parts(self) -> bool:
        """Prefill: whether a rank has less than a prompt in a step, so that more tokens may help a prompt."""
        of = self.figures
        return of is not None and of.time_to_first_token_s is not None and of.time_to_first_token_s > of.step_s


@dataclass(frozen=True)
class Answer:
    """The fewest nodes of one kind, or that none of the counts looked at will do."""

    kind: str
    gpu: str
    point: Point | None
    one_less: Point | None
    """The best that one node less gives; None if a single node does."""
    looked_at: int
    """Counts of nodes."""


@dataclass(frozen=True)
class Sizes:
    """An answer for each kind, and all plans that were made on the way."""

    wanted: Wanted
    phase: str
    answers: tuple[Answer, ...]
    points: tuple[Point, ...]

    @property
    def front(self) -> tuple[Point, ...]:
        """Points that no other beats in both throughput per GPU and time per token, by rising time."""
        alive = [point for point in self.points if point.figures is not None]
        kept: list[Point] = []
        for point in sorted(alive, key=lambda one: (_time(one), -_rate(one), one.gpus)):
            if not kept or _rate(point) > _rate(kept[-1]):
                kept.append(point)
        return tuple(kept)


def _rate(point: Point) -> float:
    assert point.figures is not None, "only points that can run are held against each other"
    return point.figures.tokens_per_s_per_gpu


def _time(point: Point) -> float:
    assert point.time_s is not None, "only points that can run are held against each other"
    return point.time_s


def kinds_of(deployment: Deployment, catalogue: Sequence[str]) -> list[Kind]:
    """The kinds to look at: those of a catalogue, else the deployment's own nodes.

    Raises:
        UsageError: an entry is no node profile and no topology of equal nodes.
    """
    if not catalogue:
        file = deployment.topology.file
        return [Kind(deployment.file.topology, _plain(file, deployment.file.topology))]
    return [_named(text) for text in dict.fromkeys(catalogue)]


def refuse_unjoined(kinds: Sequence[Kind], hint: str = "") -> None:
    """Several nodes of a kind need a level of links that joins them.

    Raises:
        UsageError: there is none; all such kinds at once.
    """
    repair = JOIN_NODES + (f"; {hint}" if hint else "")
    problems = [
        Problem(f"{kind.name}: only the level {kind.one.links[-1].level!r} inside a node", None, repair)
        for kind in kinds
        if not kind.one.joins_nodes
    ]
    if problems:
        raise UsageError.of(problems)


def _named(text: str) -> Kind:
    """An entry of a catalogue."""
    option = Place("--catalogue")
    named = Named(text, Path(), option)
    try:
        if named.is_profile:
            return Kind(text, topology_of_nodes(2, text, option).file)
        return Kind(text, _plain(load_topology(existing_file(named)).file, text))
    except InputError as error:
        if any(problem.where == option for problem in error.problems):
            raise UsageError.of(error.problems) from None
        raise


def _plain(file: TopologyFile, name: str) -> TopologyFile:
    """A machine of equal nodes, all in service; only such can be had in any number."""
    if file.groups or file.out_of_service or file.overrides or file.gpu is None:
        hint = "name node profiles or topologies of equal nodes with --catalogue"
        raise UsageError(f"{name}: nodes that differ cannot be counted up", hint=hint)
    return file


def size(
    deployment: Deployment,
    kinds: Sequence[Kind],
    wanted: Wanted,
    most_nodes: int,
    watch: Watch,
    dask: str | None = None,
) -> Sizes:
    """For each kind the fewest nodes that do what is wanted.

    Args:
        deployment: model, work and what is allowed; its number of tokens is not looked at.
        kinds: machines.
        wanted: what must be done.
        most_nodes: larger counts are not looked at.
        watch: told of every machine that is done.
        dask: address of a Dask scheduler; default: the cores of this machine.
    """
    tried: dict[str, list[list[Point]]] = {kind.name: [] for kind in kinds}
    looking = list(kinds)
    while looking:
        jobs = [SizeJob(deployment, kind, len(tried[kind.name]) + 1, wanted, most_nodes) for kind in looking]
        watch.begin(f"{jobs[0].nodes} nodes", len(jobs))
        for kind, batches in zip(looking, run_all(tried_on, jobs, watch, dask), strict=True):
            tried[kind.name].append(batches)
        looking = [kind for kind in looking if not tried[kind.name][-1][-1].does and len(tried[kind.name]) < most_nodes]
    answers = tuple(_answer(kind, tried[kind.name]) for kind in kinds)
    points = tuple(point for lists in tried.values() for points in lists for point in points)
    return Sizes(wanted, deployment.workload.phase, answers, points)


def _answer(kind: Kind, tried: list[list[Point]]) -> Answer:
    gpu = kind.of(1).gpu.name
    last = tried[-1][-1]
    less = tried[-2][-1] if len(tried) > 1 else None
    return (
        Answer(kind.name, gpu, last, less, len(tried)) if last.does else Answer(kind.name, gpu, None, last, len(tried))
    )


# --- one machine ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SizeJob:
    """So many nodes of a kind, and what they are to do."""

    deployment: Deployment
    kind: Kind
    nodes: int
    wanted: Wanted
    most_nodes: int
    """The largest count that is looked at."""

    @property
    def machine(self) -> Deployment:
        """The deployment on these nodes."""
        return on_machine(self.deployment, self.kind.of(self.nodes), f"{self.nodes} x {self.kind.name}")


def tried_on(job: SizeJob) -> list[Point]:
    """What so many nodes can do: every batch that was planned, the one that decides last."""
    return list(_batches(job, job.machine))


def _batches(job: SizeJob, machine: Deployment) -> Iterator[Point]:
    wanted = job.wanted
    point, plan = _planned(job, machine, _fewest_tokens(machine, wanted))
    if wanted.tokens_per_s is None or plan is None or point.does:
        yield point
        return
    yield from _until_fast(job, machine, point, _most_tokens(plan))


def _fewest_tokens(machine: Deployment, wanted: Wanted) -> int:
    """Tokens per GPU of the smallest batch looked at: in prefill a prompt on the whole machine."""
    work, gpus = machine.workload, machine.topology.num_gpus
    if work.phase == "prefill":
        return -(-(wanted.sequences or 1) * work.context_length // gpus)
    return 1 if wanted.sequences is None else -(-wanted.sequences * work.tokens_per_sequence // gpus)


def fastest_on(job: SizeJob) -> Point | None:
    """The batch that puts most through within the times allowed, among doubled ones; None if none keeps them."""
    machine = job.machine
    point, plan = _planned(job, machine, _fewest_tokens(machine, job.wanted))
    room = 0 if plan is None else _most_tokens(plan)
    best, most = None, 0.0
    while point.figures is not None:
        rate = point.figures.tokens_per_s
        if _too_slow(point, job.wanted):
            if not point.takes_prompts_in_parts:
                break
        elif rate < most * _MORE:
            break
        else:
            best, most = point, rate
        if point.tokens_per_gpu >= room:
            break
        point, _ = _planned(job, machine, min(2 * point.tokens_per_gpu, room))
    return best


def _until_fast(job: SizeJob, machine: Deployment, point: Point, room: int) -> Iterator[Point]:
    """Ever larger batches until the throughput is reached; then the smallest that reaches it, to a sixteenth.

    Ends early where the throughput is out of reach of any batch on any number of nodes.
    """
    below, before = point.tokens_per_gpu, None
    while True:
        if before is not None and _is_out_of_reach(job, before, point, room):
            yield replace(point, why_not=f"{point.why_not}; {_FAR}")
            return
        yield point
        if _reaches(point, job.wanted) or point.figures is None:
            break
        if below >= room or (_too_slow(point, job.wanted) and not point.takes_prompts_in_parts):
            return
        below, tokens, before = point.tokens_per_gpu, min(2 * point.tokens_per_gpu, room), point
        point, _ = _planned(job, machine, tokens)
    above = point
    while above.tokens_per_gpu - below > (max(1, above.tokens_per_gpu // _EXACT) if above.does else 1):
        point, _ = _planned(job, machine, (below + above.tokens_per_gpu) // 2)
        yield point
        if _reaches(point, job.wanted):
            above = point
        else:
            below = point.tokens_per_gpu
    yield above


def _is_out_of_reach(job: SizeJob, before: Point, point: Point, room: int) -> bool:
    """Whether the rate stays far off even if each doubling up to `room` gains as much as the last, on all nodes.

    Doublings gain ever less, and nodes add at most their own, so that this is more than there can be.
    """
    wanted = job.wanted.tokens_per_s
    if wanted is None or before.figures is None or point.figures is None:
        return False
    gain = max(1.0, point.figures.tokens_per_s / before.figures.tokens_per_s)
    doublings = math.log2(max(1.0, room / point.tokens_per_gpu))
    nodes = job.most_nodes / job.nodes
    return point.figures.tokens_per_s * math.pow(gain, doublings) * nodes * _MARGIN < wanted


def _most_tokens(plan: Plan) -> int:
    """Tokens per GPU with which some split still fits."""
    each = plan.inputs.workload.tokens_per_sequence
    limits = [record.most_sequences for record in plan.candidates if record.outcome != "rejected"]
    if any(limit is None for limit in limits):
        return _MOST_TOKENS
    return min(_MOST_TOKENS, max(limit for limit in limits if limit is not None) * each // plan.inputs.gpus)


def _reaches(point: Point, wanted: Wanted) -> bool:
    """Whether the throughput is reached, and a larger batch would help no prompt that takes too long."""
    rate = wanted.tokens_per_s
    if point.figures is None or (rate is not None and point.figures.tokens_per_s < rate):
        return False
    return not (point.takes_prompts_in_parts and _too_slow(point, wanted))


def _too_slow(point: Point, wanted: Wanted) -> bool:
    """Whether it takes longer than it may."""
    limited = ((point.time_s, wanted.max_step_s), (point.ttft_s, wanted.max_ttft_s))
    return any(time_s is not None and limit is not None and time_s > limit for time_s, limit in limited)


def _planned(job: SizeJob, machine: Deployment, tokens: int) -> tuple[Point, Plan | None]:
    gpus, name = machine.topology.num_gpus, job.kind.name
    asked = with_tokens(machine, max(1, tokens))
    plan = plan_or_why(job_of(asked, asked.path))
    if isinstance(plan, Short):
        why = f"{plan.message}; the nearest {plan.nearest}" if plan.nearest else plan.message
        return Point(name, job.nodes, gpus, tokens, None, None, does=False, why_not=why), None
    figures = figures_of(plan)
    time_s = figures.step_s if figures.time_per_output_token_s is None else figures.time_per_output_token_s
    ttft_s = figures.time_to_first_token_s
    if ttft_s is not None and job.wanted.moved_bytes:
        ttft_s += way_out(machine, job.kind.of(max(2, job.nodes)), job.wanted.moved_bytes).seconds
    point = Point(name, job.nodes, gpus, asked.workload.tokens_per_gpu, figures, time_s, does=False, ttft_s=ttft_s)
    why = "; ".join(_missed(point, job.wanted, plan))
    return replace(point, does=not why, why_not=why), plan


def _missed(point: Point, wanted: Wanted, plan: Plan) -> Iterator[str]:
    """What of the wanted is missed, in words."""
    assert point.figures is not None and point.time_s is not None, "it was planned"  # noqa: PT018
    unit = "per output token" if plan.inputs.workload.phase == "decode" else "per step"
    rate = wanted.tokens_per_s
    if rate is not None and point.figures.tokens_per_s < rate:
        told = f"{format_count(point.figures.tokens_per_s)} tokens/s of {format_count(rate)}"
        full = point.tokens_per_gpu >= _most_tokens(plan)
        yield f"{told} with {point.tokens_per_gpu:,} tokens per GPU" + (", and no more fit" if full else "")
    if wanted.max_step_s is not None and point.time_s > wanted.max_step_s:
        yield f"{format_seconds(point.time_s)} {unit}, {format_seconds(wanted.max_step_s)} allowed"
    if wanted.max_ttft_s is not None and point.ttft_s is not None and point.ttft_s > wanted.max_ttft_s:
        yield f"first token after {format_seconds(point.ttft_s)}, {format_seconds(wanted.max_ttft_s)} allowed"
