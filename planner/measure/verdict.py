"""Pass, fail or inconclusive: what the ranks found against what the plan promises.

Counts, results and copies must agree whatever the machine. Seconds are judged only where sizes are real and
no rank shares a core. A time outside tolerance fails, unless its own samples are spread wider than the
tolerance: then nothing is known.

Legend: L replayed layers, P slots, G ranks, R EP ranks, V link levels, S windows, E experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from planner.cost.served import all_by_home
from planner.cost.step import Cuts, SplitCost, combine_stages, stage_of_layers
from planner.measure.compute import is_native
from planner.measure.counts import count_findings
from planner.measure.document import CountsRecord, LevelRecord, OutputsRecord, PlacementRun, TermRecord, Verdict
from planner.measure.gathered import Gathered
from planner.measure.job import Job
from planner.measure.machine import MachineFinding, device_findings, link_findings, stragglers
from planner.measure.pairs import measured_from
from planner.measure.predicted import PredictedParts, model_copies_V, predicted_parts
from planner.plan.placement import Placement
from planner.plan.plan import Plan

Ints = NDArray[np.int64]

_SMALL: Final = 0.1
"""Terms below this part of the step, predicted and measured, do not decide."""
_SHOWN: Final = 8


@dataclass(frozen=True)
class Evidence:
    """Everything that is judged."""

    job: Job
    plan: Plan
    cost: SplitCost
    cuts: Cuts
    placements: Mapping[str, Placement]
    results: Sequence[Mapping[str, Any]]
    hosts: Sequence[str]
    predicted_LGV: Ints
    """Copies that each rank must send over each level, from the map and the trace."""
    timed: tuple[int, ...]
    """Windows that were timed."""
    gathered: Mapping[str, Gathered]
    """By placement."""

    @property
    def layers(self) -> tuple[int, ...]:
        """Replayed hidden layers."""
        return self.gathered["plan"].layers


def judge_counts(found: Evidence) -> CountsRecord:
    """Choices served against `rank_tokens` as booked."""
    placement, gathered = found.placements["plan"], found.gathered["plan"]
    served_LP = gathered.served_LP(placement.slots_per_rank)
    windows = found.cost.instance.windows
    choices = int(served_LP.sum())
    if windows is None:
        note = "the plan was made without a trace, so it books no counts"
        return CountsRecord(judged="not judged", layers=len(found.layers), choices=choices, findings=(note,))
    booked_LR = np.array(found.plan.predicted.rank_tokens, dtype=np.int64)
    by_home = partial(all_by_home, found.cost, stage_of_layers(found.cost, found.cuts))
    findings = count_findings(placement, booked_LR, served_LP, windows.counts_SLE, found.layers, by_home)
    return CountsRecord(
        judged="fail" if findings else "pass",
        layers=len(found.layers),
        choices=choices,
        findings=tuple(finding.message for finding in findings),
    )


def judge_outputs(found: Evidence) -> OutputsRecord:
    """Results against the reference, of every placement that ran."""
    worst, allowed, findings = 0.0, 0.0, []
    for name, gathered in found.gathered.items():
        for rank, run in enumerate(gathered.runs):
            for layer, (error, limit, part, token) in run["worst"].items():
                if limit and error / limit >= (worst / allowed if allowed else 0.0):
                    worst, allowed = error, limit
                if not error <= limit:
                    where = f"layer {layer}, rank {rank} ({found.hosts[rank]}), token {token} of its own"
                    text = f"{where}: {part} differ from the reference by {error:.2g} of its norm, {limit:.2g} allowed"
                    findings.append(text if name == "plan" else f"{name}: {text}")
        findings += gathered.broken_sends()
    return OutputsRecord(
        judged="fail" if findings else "pass", worst_error=worst, allowed=allowed, findings=tuple(findings)
    )


def judge_levels(found: Evidence) -> tuple[LevelRecord, ...]:
    """Copies handed to each link level."""
    topology, placement = found.cost.instance.topology, found.placements["plan"]
    sent_LGV = found.gathered["plan"].sent_LGV(len(topology.links))
    model_V = model_copies_V(found.cost, found.cuts, placement, found.layers)
    row_bytes = found.cost.stages[0].moe.dispatch_bytes
    records = []
    for level, link in enumerate(topology.links):
        counted, predicted = int(sent_LGV[..., level].sum()), int(found.predicted_LGV[..., level].sum())
        exact = bool((sent_LGV[..., level] == found.predicted_LGV[..., level]).all())
        expected = None if model_V is None else float(model_V[level])
        near = expected is None or abs(counted - expected) <= found.job.tolerance * max(expected, 1.0)
        records.append(
            LevelRecord(
                level=link.level,
                counted=counted,
                predicted=predicted,
                model=expected,
                bytes=round(counted * row_bytes),
                judged="pass" if exact and near else "fail",
            )
        )
    return tuple(records)


def judge_terms(found: Evidence) -> tuple[TermRecord, ...]:
    """Seconds by term; in an emulation nothing."""
    gathered = found.gathered["plan"]
    if found.job.emulates or not gathered.num_timed:
        return ()
    predicted = _predicted(found, "plan")
    measured = _measured(gathered, (*predicted.terms, "arrange", "counts"))
    total = max(predicted.step_s, sum(measured.values()))
    records = []
    for name, seconds in measured.items():
        if not seconds:
            continue
        wait = float(np.mean([gathered.mean_wait_s(name, w) for w in range(gathered.num_timed)]))
        expected = predicted.terms.get(name)
        spread = _spread(gathered, name, seconds)
        records.append(
            TermRecord(
                name=name,
                predicted_s=expected,
                measured_s=seconds,
                wait_s=wait,
                spread=spread,
                judged=_judged(found, name, expected, seconds, spread, total),
            )
        )
    return tuple(records)


def _judged(found: Evidence, name: str, expected: float | None, seconds: float, spread: float, total: float) -> Any:
    """One term; those that hardly count, and those that this run computes otherwise, decide nothing."""
    if expected is None or max(expected, seconds) < _SMALL * total:
        return "not judged"
    if run_otherwise(found.cost, name) is not None:
        return "not judged"
    return _within(expected, seconds, spread, found.job.tolerance)


def run_otherwise(cost: SplitCost, name: str) -> str | None:
    """How a term is run otherwise than it is priced, so that its time tells nothing of the plan's; None: it is not."""
    if name in ("dispatch", "combine") and cost.instance.gathers(cost.split):
        return "priced as a gather, run as an all-to-all"
    experts = cost.instance.constants.precision.experts
    if name == "experts" and not is_native(experts):
        return f"priced in {experts}, run in bf16"
    return None


def _within(expected: float, seconds: float, spread: float, tolerance: float) -> Verdict:
    if abs(seconds - expected) <= tolerance * expected:
        return "pass"
    return "inconclusive" if spread > tolerance else "fail"


def _measured(gathered: Gathered, names: Sequence[str]) -> dict[str, float]:
    """Mean over timed windows of each phase."""
    windows = range(gathered.num_timed)
    return {name: float(np.mean([gathered.slowest_s(name, "busy_s", w) for w in windows])) for name in names}


def _spread(gathered: Gathered, name: str, seconds: float) -> float:
    windows = range(gathered.num_timed)
    low, high = (np.mean([gathered.slowest_s(name, key, w) for w in windows]) for key in ("low_s", "high_s"))
    return float(high - low) / seconds


def _predicted(found: Evidence, name: str) -> PredictedParts:
    return predicted_parts(found.cost, found.cuts, found.placements[name], found.layers, found.timed)


def placement_runs(found: Evidence) -> tuple[PlacementRun, ...]:
    """The plan and the baselines: balance as served, and seconds where they count."""
    records = []
    for name, gathered in found.gathered.items():
        served_LSR = gathered.served_LSR()
        step_s = predicted_s = None
        if not found.job.emulates and gathered.num_timed:
            predicted = _predicted(found, name)
            predicted_s = predicted.step_s
            step_s = _measured_step(found, gathered, tuple(predicted.terms))
        records.append(
            PlacementRun(
                name=name,
                imbalance=float((served_LSR.max(axis=2) / np.maximum(served_LSR.mean(axis=2), 1e-9)).mean()),
                step_s=step_s,
                predicted_s=predicted_s,
                whole_s=gathered.whole_s(),
            )
        )
    return tuple(records)


def _measured_step(found: Evidence, gathered: Gathered, names: Sequence[str]) -> float:
    """The modelled terms as measured, put together over stages and micro-batches as the model does."""
    phase, micro_batches = found.cost.instance.workload.phase, found.cost.split.micro_batches
    steps = [combine_stages(gathered.stage_step_s(w, names), micro_batches, phase) for w in range(gathered.num_timed)]
    return float(np.mean(steps))


def judge_machine(found: Evidence) -> tuple[MachineFinding, ...]:
    """Slow links, slow devices, ranks that come late."""
    findings = device_findings(found.results)
    if found.results[0]["links"] is not None:
        measured = [measured_from(one) for result in found.results for one in result["links"]]
        findings += link_findings(measured, found.hosts)
    gathered = found.gathered["plan"]
    stage_of = [seat.stage for seat in gathered.seating.seats]
    passes_s = max(sum(run["passes_s"]) for run in gathered.runs)
    return (*findings, *stragglers(found.results, stage_of, passes_s))


def overall(
    found: Evidence,
    counts: CountsRecord,
    outputs: OutputsRecord,
    levels: Sequence[LevelRecord],
    terms: Sequence[TermRecord],
    runs: Sequence[PlacementRun],
    machine: Sequence[MachineFinding],
) -> tuple[Verdict, tuple[str, ...]]:
    """The verdict, and why it is not pass."""
    wrong = [*counts.findings[:_SHOWN]] if counts.judged == "fail" else []
    wrong += outputs.findings[:_SHOWN]
    for level in levels:
        if level.judged == "fail":
            model = "" if level.model is None else f", {level.model:,.0f} by the cost model"
            copies = f"{level.counted:,} copies were sent, {level.predicted:,} are predicted{model}"
            wrong.append(f"level {level.level}: {copies}")
    if found.job.emulates:
        return ("fail" if wrong else "pass"), tuple(wrong)
    unknown: list[str] = []
    for term in terms:
        if term.judged in ("fail", "inconclusive"):
            text = f"{term.name}: measured {_ratio(term.measured_s, term.predicted_s)} of the predicted time"
            spread = f", but its samples spread over {term.spread:.0%}"
            (wrong if term.judged == "fail" else unknown).append(text + (spread if term.judged != "fail" else ""))
    plan = runs[0]
    if plan.step_s is not None and plan.predicted_s is not None:
        widest = max((term.spread for term in terms), default=0.0)
        judged = _within(plan.predicted_s, plan.step_s, widest, found.job.tolerance)
        text = f"step: measured {_ratio(plan.step_s, plan.predicted_s)} of the predicted time"
        if judged != "pass":
            (wrong if judged == "fail" else unknown).append(text)
    wrong += [finding.message for finding in machine]
    if wrong:
        return "fail", tuple(wrong + unknown)
    return ("inconclusive" if unknown else "pass"), tuple(unknown)


def _ratio(measured: float, predicted: float | None) -> str:
    return "?" if not predicted else f"{measured / predicted:.2f} times"
