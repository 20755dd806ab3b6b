"""Is balancing worth it, once or again and again, and is the plan in force still good?

The verdict is that of `verdict.py`, on windows that planning has not seen; `ep-plan trace info` shows the same. The
drift watch holds a plan against what replanning without limits would save on a fresh recording, judged the same way.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

import numpy as np

from planner.capacity.placing import Ranks, eplb_place, ranks_for, search_place
from planner.capacity.replan import Asked, Deck, replanned_from
from planner.capacity.verdict import Verdict, verdict
from planner.cost.prepare import from_plan
from planner.errors import UsageError
from planner.inputs.named_files import named_twice
from planner.inputs.workload import Phase
from planner.plan.plan import Plan
from planner.solve.watch import NoWatch, Watch
from planner.solve.workers import Workers
from planner.trace.consistency import suspicions
from planner.trace.native import read_trace
from planner.trace.trace import TokenTrace, Trace
from planner.trace.windows import Windows, cut, of_layers, of_steps

JUDGED_LAYERS: Final = 12
State = Literal["good", "stale", "insufficient_evidence"]


@dataclass(frozen=True)
class Work:
    """For which work and which ranks a trace is judged."""

    phase: Phase
    step_tokens: int
    """Tokens that one step routes, over all GPUs."""
    ranks: int | None = None
    """Expert-parallel ranks; None: 8."""
    redundant: int | None = None
    """Redundant experts; None: one on each rank."""


@dataclass(frozen=True)
class Advice:
    """What to do about balance."""

    paths: tuple[Path, ...]
    verdict: Verdict
    """With the placement that `ep-plan solve` would make."""
    engine: Verdict
    """With EPLB's, which is what engines make by themselves."""
    group: Ranks
    num_experts: int
    windows: int
    """On which the verdict rests."""
    tokens: int
    """In them."""
    layers: int
    """Judged: all, or an even sample of many."""
    how: str
    """How the windows were made."""


@dataclass(frozen=True)
class DriftWatch:
    """A plan in force on fresh routing."""

    state: State
    stale: float
    """Part of a step that placing anew would save on windows that it was not made from; never below 0."""
    error: float | None
    """Standard error of that; None: no windows to judge on."""
    threshold: float
    windows: int
    booked_max_over_mean: float | None
    """Rows of the fullest rank over the mean one, as the plan books them; None without a trace."""
    max_over_mean: float
    """The same on the fresh windows."""
    booked_step_s: float
    step_s: float
    warnings: tuple[str, ...]
    """Of the traces."""


def advise(paths: Sequence[Path], work: Work, asked: Collection[str] = ()) -> tuple[Advice, tuple[str, ...]]:
    """Judge a workload; also the warnings of its traces.

    Args:
        paths: the traces' files.
        work: for which they are judged.
        asked: options of the work that the user gave; of those without effect a warning tells.

    Raises:
        InputError: a file is no good trace, or traces disagree.
        UsageError: ranks or copies do not fit the experts, or a trace is named twice.
    """
    twice = named_twice(paths)
    if twice:
        raise UsageError.of(twice)
    read = [read_trace(path) for path in paths]
    traces = [one.trace for one in read]
    windows = cut(traces, work.phase, work.step_tokens)
    advice = advice_on(paths, traces[0], windows, judged_windows(windows, traces, work.step_tokens), work)
    told = (warning for one in read for warning in (*one.warnings, *suspicions(one.trace)))
    return advice, (*told, *without_effect(traces, asked))


def advice_on(paths: Sequence[Path], first: Trace, windows: Windows, judged: Windows, work: Work) -> Advice:
    """The same for traces that are read and cut.

    Args:
        paths: their files.
        first: one of the traces.
        windows: cut from all of them.
        judged: those of `judged_windows`.
        work: for which they are judged.
    """
    group = ranks_for(first.num_experts, work.ranks, work.redundant)
    with Workers() as workers:
        own = verdict(judged, first.top_k, group, search_place(group, workers))
    if judged.num_windows != windows.num_windows:
        own = _joined(own, windows, work.step_tokens)
    layers = len(judged.layer_ids_L)
    tokens = int(judged.tokens_S.sum())
    engine = verdict(judged, first.top_k, group, eplb_place(group))
    return Advice(tuple(paths), own, engine, group, first.num_experts, judged.num_windows, tokens, layers, judged.how)


def judged_windows(windows: Windows, traces: Sequence[Trace], step_tokens: int) -> Windows:
    """What a verdict looks at: windows of at least a step, unless steps or counts are recorded as such.

    Of many layers an even sample is taken, so that it is ready in seconds.
    """
    if all(isinstance(trace, TokenTrace) and "step_id" not in trace.columns for trace in traces):
        windows = of_steps(windows, step_tokens)
    layers = len(windows.layer_ids_L)
    count = min(layers, JUDGED_LAYERS)
    return of_layers(windows, [row * layers // count for row in range(count)])


def without_effect(traces: Sequence[Trace], asked: Collection[str]) -> tuple[str, ...]:
    """A warning for each of the options `--phase` and `--step-tokens` in `asked` that changes nothing.

    Both say how windows are cut, which recorded steps and counts say themselves; without sequences no phase matters.
    """
    cut_here = [trace for trace in traces if isinstance(trace, TokenTrace) and "step_id" not in trace.columns]
    idle: tuple[str, ...]
    if not cut_here:
        idle, why = ("--phase", "--step-tokens"), "steps or windows are those that were recorded"
    elif not any("seq_id" in trace.columns for trace in cut_here):
        idle, why = ("--phase",), "without seq_id tokens are taken in file order"
    else:
        return ()
    return tuple(f"{option} changes nothing: {why}" for option in idle if option in asked)


def _joined(own: Verdict, windows: Windows, step_tokens: int) -> Verdict:
    """The verdict on a trace of few steps, with a word on what that means."""
    if own.answer != "insufficient_evidence":
        return own
    tokens = int(windows.tokens_S.sum())
    told = f"{tokens:,} tokens are {tokens / step_tokens:.1f} steps of {step_tokens:,}: record more (--step-tokens)"
    return replace(own, reasons=(*own.reasons, told))


def drift_watch(
    plan: Plan, path: Path, traces: Sequence[Path], threshold: float, watch: Watch | None = None
) -> DriftWatch:
    """Hold a plan in force against fresh routing.

    Args:
        plan: the plan in force.
        path: its file.
        traces: fresh routing.
        threshold: the plan is stale if placing anew would save so much of a step, and chance does not explain it.
        watch: who looks on.

    Raises:
        BadAnswerError: the plan is broken.
    """
    prepared = from_plan(plan, path, traces, others=True)
    instance = prepared.instance
    deck = Deck.of(plan, instance, path)
    answers = replanned_from(deck, Asked(1.0, None, threshold), watch or NoWatch()).answers
    best = max(answers, key=lambda answer: answer.gained_per_interval_s)
    now_s = answers[0].judged_s
    error = None if best.gain_error_s is None or now_s is None else best.gain_error_s / now_s
    few = any(answer.why == "too_few_windows" for answer in answers)
    stale = any(answer.why in ("gains", "costs_more", "no_room") for answer in answers)
    booked = plan.predicted.layer_imbalance
    return DriftWatch(
        state="insufficient_evidence" if few else "stale" if stale else "good",
        stale=max(0.0, best.gained_per_interval_s),
        error=error,
        threshold=threshold,
        windows=instance.num_windows,
        booked_max_over_mean=float(np.mean(booked)) if booked else None,
        max_over_mean=deck.max_over_mean(deck.before),
        booked_step_s=plan.predicted.step_s,
        step_s=answers[0].step_s,
        warnings=prepared.warnings,
    )
