"""What changed against the golden plan, whether that is a regression, whose, and what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from planner import __version__
from planner.inputs.deployment import Deployment
from planner.inputs.units import format_percent, format_seconds
from planner.plan.finding import CLOSE, Finding
from planner.plan.objective import objective_s
from planner.plan.plan import Plan
from planner.plan.plan_file import plan_text
from planner.review.golden import Golden
from planner.review.input_changes import Cause, input_changes
from planner.review.plan_changes import Row, Side, changes
from planner.review.pricing import Priced

NOISE: Final = 1e-3
"""So much slower than the golden plan passes: other versions of libraries round and search differently."""
_BOOKED: Final = ("predicted", "baselines", "solver", "held_out", "candidates", "rejected_left_out", "notes", "inputs")
_OF_OTHERS: Final = re.compile(r"baselines|candidates\[\d+\]\.(free_bytes|spare_kv|most_seq|longest)")
"""Figures of other placements and splits, priced by the same cost model."""
_SHOWN: Final = 3
_SHOWN_SLOWER: Final = 5e-5
"""What two digits of a percentage show."""
_VALUES_SHOWN: Final = 4
Status = Literal["same", "better", "as good", "regression", "created", "renewed", "unchanged"]


@dataclass(frozen=True)
class Compared:
    """How a plan stands against the golden plan."""

    path: Path
    """The golden plan."""
    status: Status
    findings: tuple[str, ...] = ()
    """Why the check fails."""
    notes: tuple[str, ...] = ()
    """What else there is to know."""
    causes: tuple[Cause, ...] = ()
    """Parts of the inputs that changed."""
    rows: tuple[Row, ...] = ()
    """The diff."""
    to_do: str = ""
    """What would end the findings, or should be done anyway."""


def golden_text(plan: Plan) -> str:
    """A plan as it is kept beside a deployment: its rejected splits only counted, a fraction of the size."""
    kept = tuple(record for record in plan.candidates if record.outcome != "rejected")
    left_out = len(plan.candidates) - len(kept)
    return plan_text(plan.model_copy(update={"candidates": kept, "rejected_left_out": left_out}))


def compare_golden(golden: Golden, plan: Plan, today: Priced, deployment: Deployment) -> Compared:
    """Hold a plan just solved against the golden plan.

    Args:
        golden: the golden plan.
        plan: the plan found today.
        today: the same, priced.
        deployment: what both are for.
    """
    now = Side(plan, plan.predicted, today.cost, plan.solver, plan.held_out)
    causes = () if golden.plan is None else input_changes(golden.plan.inputs, plan.inputs, deployment.file)
    with_effect = bool(causes) and _has_effect(golden)
    rows = () if golden.side is None else changes(golden.side, now)
    told = [*_stale(golden), *_violations(golden), *_slower(golden, plan), *_bounds(golden, plan, with_effect)]
    named = tuple(_told(cause) for cause in causes)
    steps = tuple(_steps(golden, plan)) if told or with_effect else ()
    if with_effect:
        findings, notes = (*named, *told), steps
    else:
        findings, notes = tuple(told), (*(f"{text}; no figure depends on it" for text in named), *steps)
    compared = Compared(golden.path, "same", findings, (*_other_version(golden), *notes), causes, rows)
    return _judged(compared, golden, plan, deployment)


def _judged(compared: Compared, golden: Golden, plan: Plan, deployment: Deployment) -> Compared:
    """With the verdict, and what to do about it."""
    update = f"ep-plan check --update {deployment.path}"
    if compared.findings:
        return replace(compared, status="regression", to_do=_to_do(compared, golden, update))
    reached_s = _reached_s(golden, plan)
    if reached_s is not None and plan.solver.objective_s < reached_s * (1 - NOISE):
        better = format_percent(1 - plan.solver.objective_s / reached_s, 2)
        note = f"{better} faster than the golden plan"
        return replace(compared, status="better", notes=(note, *compared.notes), to_do=f"to keep it: {update}")
    if compared.rows or compared.causes:
        slower = plan.solver.objective_s / reached_s - 1 if reached_s else 0.0
        notes = compared.notes
        if slower > _SHOWN_SLOWER:
            within = "the gap asked for" if slower > NOISE else "what counts as noise"
            notes = (f"{format_percent(slower, 2)} slower than the golden plan, within {within}", *notes)
        return replace(compared, status="as good", notes=notes, to_do=f"to renew: {update}")
    return compared


def _to_do(compared: Compared, golden: Golden, update: str) -> str:
    name = golden.path.name
    if compared.causes and _has_effect(golden):
        parts = " and ".join(cause.part for cause in compared.causes if not cause.only_words)
        return f"if {parts} was meant to change, {name} is out of date: {update}; else take the change back"
    if golden.stale and not _is_cost_model(golden.stale):
        return f"restore {name} from version control, or make it again: {update}"
    if golden.stale:
        return f"if the cost model was meant to change, {name} is out of date: {update}; else mend the cost model"
    if golden.plan is None:
        return f"the plan made by hand is the better one, or breaks a rule: correct {name}, or replace it: {update}"
    return f"inputs and cost model are those of {name}: look at the search; if that is accepted: {update}"


# --- what speaks against the golden plan itself ---------------------------------------------------


def _is_cost_model(stale: tuple[Finding, ...]) -> bool:
    """Whether figures that no edit of the plan's own touches moved together with those."""
    moved = {_booked_in(finding) for finding in stale}
    return "predicted" in moved and any(_OF_OTHERS.match(finding.rule) for finding in stale)


def _booked_in(finding: Finding) -> str | None:
    """The section of the plan that books a wrong figure; None for a broken rule."""
    section = re.split(r"[.\[]", finding.rule)[0]
    return section if section in _BOOKED else None


def _stale(golden: Golden) -> Iterator[str]:
    name = golden.path.name
    broken = [finding for finding in golden.stale if _booked_in(finding) is None]
    figures = [finding for finding in golden.stale if _booked_in(finding) is not None]
    if broken:
        yield f"{name} was edited, or rules have changed: {_some(broken)}"
    if not figures or golden.plan is None:
        return
    count = f"{len(figures)} figure{'s' if len(figures) > 1 else ''}"
    if not _is_cost_model(golden.stale):
        yield f"{name} was edited: {count} of it cannot be derived from the rest: {_some(figures)}"
        return
    told = "" if golden.again is None else _cost_moved(golden.plan, golden.again.step_s, _terms_moved(golden))
    yield f"the cost model has changed: {count} of {name} cannot be derived from its own inputs any more{told}"


def _cost_moved(plan: Plan, again_s: float, terms: str) -> str:
    booked_s = plan.predicted.step_s
    change = 100 * (again_s / booked_s - 1)
    return f"; step {format_seconds(booked_s)} booked, {format_seconds(again_s)} derived ({change:+.2f} %){terms}"


def _terms_moved(golden: Golden) -> str:
    """The parts of the step that the cost model prices otherwise now."""
    assert golden.plan is not None
    assert golden.again is not None
    before, after = ({t.name: t.seconds for t in one.terms} for one in (golden.plan.predicted, golden.again))
    moved = [
        f"{name} {100 * (after.get(name, 0.0) / seconds - 1):+.2f} %"
        for name, seconds in before.items()
        if seconds and abs(after.get(name, 0.0) / seconds - 1) > CLOSE
    ]
    return f": {', '.join(moved)}" if moved else ""


def _some(findings: list[Finding]) -> str:
    shown = "; ".join(str(finding) for finding in findings[:_SHOWN])
    return shown + (f"; and {len(findings) - _SHOWN} more" if len(findings) > _SHOWN else "")


def _violations(golden: Golden) -> Iterator[str]:
    """Rules that the golden plan's decision breaks on today's inputs."""
    if golden.today.findings and not golden.stale:
        yield f"what {golden.path.name} decides cannot run any more: {_some(list(golden.today.findings))}"


# --- the inputs and the search --------------------------------------------------------------------


def _has_effect(golden: Golden) -> bool:
    """Whether today's inputs change any figure of what the golden plan decides."""
    booked, today = golden.plan, golden.today.predicted
    if booked is None:
        return False
    if today is None or golden.today.findings or golden.traces_gone or golden.stale:
        return True
    figures = ("memory_bytes", "rank_tokens")
    if any(getattr(booked.predicted, name) != getattr(today, name) for name in figures):
        return True
    seconds = ((one.predicted.step_s, two.step_s) for one, two in ((booked, today),))
    terms = zip(booked.predicted.terms, today.terms, strict=False)
    pairs = [*seconds, *((one.seconds, two.seconds) for one, two in terms)]
    return any(abs(after - before) > CLOSE * before for before, after in pairs)


def _told(cause: Cause) -> str:
    if cause.only_words:
        return f"{cause.part}: only sources and notes changed"
    values = "; ".join(cause.values[:_VALUES_SHOWN])
    more = f"; and {len(cause.values) - _VALUES_SHOWN} more" if len(cause.values) > _VALUES_SHOWN else ""
    return f"{cause}: {values}{more}"


def _slower(golden: Golden, plan: Plan) -> Iterator[str]:
    """The plan found is worse than the golden plan would be today."""
    reached_s = _reached_s(golden, plan)
    if reached_s is None or golden.today.findings:
        return
    found_s, solver = plan.solver.objective_s, plan.solver
    slower = found_s / reached_s - 1
    if slower <= NOISE or solver.gap <= plan.inputs.search.gap:
        return
    stopped = {"time_limit": " (the time limit stopped it)", "interrupt": " (it was interrupted)"}
    yield (
        f"the search found a worse plan{stopped.get(solver.stopped_by, '')}: {format_seconds(found_s)} per step, "
        f"the golden plan reaches {format_seconds(reached_s)} today ({100 * slower:+.2f} %)"
    )


def _bounds(golden: Golden, plan: Plan, with_effect: bool) -> Iterator[str]:
    """A plan that beats what was proved shows that one of the two is wrong."""
    booked, reached_s = golden.plan, _reached_s(golden, plan)
    if booked is None or golden.stale or golden.today.findings:
        return
    report = "a bound is wrong: please report it with both files"
    same = not with_effect and _question(booked) == _question(plan)
    if same and plan.solver.objective_s < booked.solver.bound_s * (1 - CLOSE):
        beaten, found = format_seconds(booked.solver.bound_s, 6), format_seconds(plan.solver.objective_s, 6)
        yield f"the plan found ({found}) beats the bound proved for the golden plan ({beaten}); {report}"
    if reached_s is not None and reached_s < plan.solver.bound_s * (1 - CLOSE):
        bound, beats = format_seconds(plan.solver.bound_s, 6), format_seconds(reached_s, 6)
        yield f"the golden plan ({beats}) beats the bound proved today ({bound}); {report}"


def _reached_s(golden: Golden, plan: Plan) -> float | None:
    """What the golden plan would come to today, by the measure of the plan found; None if it cannot be priced."""
    predicted = golden.today.predicted
    return None if predicted is None else objective_s(predicted, plan.inputs.search.risk)


def _question(plan: Plan) -> tuple[object, ...]:
    """Which plans were looked at, and what was minimised."""
    inputs, search = plan.inputs, plan.inputs.search
    return inputs.rules, inputs.keep_groups, inputs.target, search.pins, search.redundant_experts, search.risk


def _steps(golden: Golden, plan: Plan) -> Iterator[str]:
    """The step time of the golden plan, as inputs and cost model moved it."""
    if golden.plan is None:
        return
    parts = [f"booked {format_seconds(golden.plan.predicted.step_s)}"]
    if golden.again is not None:
        parts.append(f"by today's cost model {format_seconds(golden.again.step_s)}")
    if golden.today.predicted is not None:
        parts.append(f"on today's inputs {format_seconds(golden.today.predicted.step_s)}")
    yield f"golden plan: {', '.join(parts)}; plan found: {format_seconds(plan.solver.objective_s)}"


def _other_version(golden: Golden) -> Iterator[str]:
    if golden.plan is not None and golden.plan.version != __version__:
        yield f"{golden.path.name} was written by ep-plan {golden.plan.version}, and this is {__version__}"
