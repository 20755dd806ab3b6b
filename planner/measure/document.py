"""validation.json: what was run, what was found, what is judged."""

from __future__ import annotations

import json
from typing import Literal

from planner.inputs.documents import Frozen

Verdict = Literal["pass", "fail", "inconclusive"]
Judged = Literal["pass", "fail", "inconclusive", "not judged"]


class RunRecord(Frozen):
    """How the run was made."""

    mode: Literal["cuda", "cpu", "emulate"]
    """cuda: the plan's GPUs; cpu: cores stand for GPUs, real sizes; emulate: shrunken sizes."""
    backend: str
    """Communication library."""
    ranks: int
    """Ranks of the run, one for each GPU of the plan."""
    hosts: tuple[str, ...]
    """Host of each rank."""
    devices: tuple[str, ...]
    """Device of each rank."""
    scale: int
    """What sizes were divided by; 1: real sizes."""
    windows: int
    """Windows replayed."""
    timed_windows: tuple[int, ...]
    """Windows that were timed."""
    repeats: int
    """Timed passes over each of them, after one to warm up."""
    shows: str
    """What this run can and cannot show."""


class CountsRecord(Frozen):
    """Choices served, counted by the receivers, against the booked `rank_tokens`."""

    judged: Judged
    """Whether all agree exactly."""
    layers: int
    """Layers replayed."""
    choices: int
    """Choices that receivers counted, over all layers and windows."""
    findings: tuple[str, ...]
    """Every layer that differs, with ranks and experts."""


class OutputsRecord(Frozen):
    """Results against a single-process reference."""

    judged: Judged
    """Whether all are within rounding."""
    worst_error: float
    """Largest norm of a token's difference over the norm of its reference."""
    allowed: float
    """What rounding of the formats allows there."""
    findings: tuple[str, ...]
    """Every layer and rank that differs."""


class LevelRecord(Frozen):
    """Copies of tokens handed to one link level in dispatch, all ranks, layers and windows together."""

    level: str
    """Name of the level."""
    counted: int
    """By the senders, from the splits that they handed to the library."""
    predicted: int
    """From the plan's map and the trace, without running."""
    model: float | None
    """What the cost model expects, homes taken as even; null: expert sets were not recorded."""
    bytes: int
    """Counted copies at the plan's real row size."""
    judged: Judged
    """Whether counted and predicted agree exactly on every rank, and the model is within tolerance."""


class TermRecord(Frozen):
    """One part of the step, summed over the replayed layers, mean over the timed windows, one micro-batch."""

    name: str
    """What takes the time."""
    predicted_s: float | None
    """By the plan's cost model; null: not modelled."""
    measured_s: float
    """Slowest rank of each layer, its waiting left out."""
    wait_s: float
    """Mean waiting of the ranks for each other before it (arrival skew)."""
    spread: float
    """Middle 80 % of the samples as a part of the median."""
    judged: Judged
    """Whether it is within tolerance."""


class RankRecord(Frozen):
    """One rank."""

    rank: int
    """GPU id of the plan."""
    host: str
    """Where it ran."""
    phases_s: dict[str, float]
    """Seconds of its own in each phase, one pass over all replayed layers."""
    wait_s: float
    """Seconds that it waited for others."""
    high_water_bytes: int
    """Most memory held (cpu: of the process)."""
    booked_bytes: int
    """Memory that the plan books."""
    gemm_flop_per_s: float | None
    """Measured alone; null in an emulation."""
    memory_bytes_per_s: float | None
    """Measured alone; null in an emulation."""


class PlacementRun(Frozen):
    """One placement on the same windows."""

    name: str
    """plan, or a baseline."""
    imbalance: float
    """Mean over layers and windows of the ranks' max/mean choices served."""
    step_s: float | None
    """Modelled parts of the step as measured; null in an emulation."""
    predicted_s: float | None
    """The same, predicted."""
    whole_s: float | None
    """A whole pass back to back, with what the model leaves out."""


class Nodes(Frozen):
    """Hosts, to keep or to look at."""

    passing: tuple[str, ...]
    """Nothing was found against them."""
    failing: tuple[str, ...]
    """Something was."""


class Validation(Frozen):
    """A validation.json."""

    version: str
    """Version of ep-plan."""
    plan: str
    """Path of the plan as given."""
    plan_sha256: str
    """Of the plan file."""
    verdict: Verdict
    """pass, fail, or inconclusive."""
    reasons: tuple[str, ...]
    """Why not pass."""
    tolerance: float
    """Allowed part by which a measured time may differ from the predicted one."""
    run: RunRecord
    """How the run was made."""
    counts: CountsRecord
    """Choices served."""
    outputs: OutputsRecord
    """Results."""
    levels: tuple[LevelRecord, ...]
    """Copies by link level."""
    terms: tuple[TermRecord, ...]
    """Seconds by term; without predictions in an emulation."""
    placements: tuple[PlacementRun, ...]
    """The plan, and the baselines asked for."""
    ranks: tuple[RankRecord, ...]
    """Every rank."""
    machine: tuple[str, ...]
    """Slow links, slow GPUs, stragglers, with rank and host."""
    nodes: Nodes
    """Hosts passing and failing."""


def validation_text(validation: Validation) -> str:
    """As JSON."""
    data = {"schema": "ep-plan/validation/1", **validation.model_dump(mode="json")}
    return json.dumps(data, ensure_ascii=False, indent=1) + "\n"
