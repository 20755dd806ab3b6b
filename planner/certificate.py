"""What a plan claims about all other plans, held against everything that can be derived without the solver.

Derived again: which splits there are, what each breaks, its memory and what it could hold besides, the
least of the booked bounds, the gap, and the baselines on held-out windows. Taken as booked, because only
solving would give them: the bound of each candidate, step times of candidates other than the plan, the
effort, and the plan's own figures on held-out windows. They must still go with each other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from itertools import pairwise
from typing import Any

from planner.cost.instance import Instance
from planner.cost.step import SplitCost
from planner.held_out import held_out
from planner.plan.finding import CLOSE, Finding, differences, equal
from planner.plan.objective import objective_s
from planner.plan.plan import CandidateRecord, Plan
from planner.plan.split import Split
from planner.rules import Limits, verdicts
from planner.rules.grid import SearchSpace
from planner.rules.headroom import Headroom, headroom, is_headroom
from planner.rules.ruled import RuledSplit, all_ruled

_OPTIMAL = 1e-6
_TIE = 1e-5
"""Where step times are within 1e-6 of each other balance and traffic decide; several ties may follow."""
_CUT_SHORT = ("time_limit", "interrupt")


def certificate(plan: Plan, instance: Instance, space: SearchSpace, cost: SplitCost) -> Iterator[Finding]:
    """What is wrong with bound, gap, candidates and held-out figures.

    Args:
        plan: as read from its file.
        instance: rebuilt from its inputs.
        space: the splits it was chosen from, rebuilt from its inputs.
        cost: the instance bound to the plan's split.
    """
    yield from _solver(plan)
    yield from _history(plan)
    yield from _held_out(plan, cost)
    chosen = [index for index, record in enumerate(plan.candidates) if record.outcome == "chosen"]
    if len(chosen) != 1:
        yield Finding("candidates", f"{len(chosen)} are chosen, expected one")
        return
    yield from _chosen(plan, f"candidates[{chosen[0]}]", plan.candidates[chosen[0]])
    yield from _candidates(plan, instance, space)


def _solver(plan: Plan) -> Iterator[Finding]:
    record, wanted = plan.solver, plan.inputs.search.gap
    if not equal(record.objective_s, again := objective_s(plan.predicted, plan.inputs.search.risk)):
        what = "step_s" if plan.inputs.search.risk is None else "mean of its slowest windows"
        detail = f"objective_s {record.objective_s!r} is not the predicted {what} {again!r}"
        yield Finding("solver.objective_s", detail)
    if record.bound_s > record.objective_s * (1 + CLOSE):
        yield Finding("solver.bound_s", f"{record.bound_s!r} is above the objective {record.objective_s!r}")
    if record.objective_s <= 0:
        yield Finding("solver.objective_s", f"{record.objective_s!r} is no time")
        return
    gap = (record.objective_s - record.bound_s) / record.objective_s
    if not math.isclose(record.gap, max(0.0, gap), rel_tol=1e-6, abs_tol=1e-12):
        yield Finding("solver.gap", f"booked {record.gap!r}, objective and bound give {gap!r}")
    if (record.status == "optimal") != (gap <= _OPTIMAL):
        yield Finding("solver.status", f"{record.status!r} does not go with a gap of {gap:.3g}")
    allowed = {"proof": gap <= _OPTIMAL, "gap": gap <= wanted * (1 + CLOSE), "effort": gap > _OPTIMAL}
    if not allowed.get(record.stopped_by, True):
        yield Finding("solver.stopped_by", f"{record.stopped_by!r} does not go with a gap of {gap:.3g}")
    bounds = [c.bound_s for c in plan.candidates if c.bound_s is not None]
    if bounds and not equal(record.bound_s, least := min(record.objective_s, *bounds)):
        detail = f"{record.bound_s!r} is not the least of all bounds and the objective, {least!r}"
        yield Finding("solver.bound_s", detail)


def _history(plan: Plan) -> Iterator[Finding]:
    """Effort grows, the best plan only gets faster, the bound only rises, and the end is what is booked."""
    record, steps = plan.solver, plan.solver.history
    for index, (before, after) in enumerate(pairwise(steps), start=1):
        wrong = {
            "effort": after.effort < before.effort,
            "objective_s": after.objective_s > before.objective_s * (1 + _TIE),
            "bound_s": after.bound_s < before.bound_s * (1 - _TIE),
        }
        for name in (name for name, is_wrong in wrong.items() if is_wrong):
            detail = f"{getattr(after, name)!r} after {getattr(before, name)!r}"
            yield Finding(f"solver.history[{index}].{name}", detail)
    for index, step in enumerate(steps):
        if step.bound_s > step.objective_s:
            yield Finding(f"solver.history[{index}].bound_s", f"{step.bound_s!r} is above {step.objective_s!r}")
    if steps and steps[-1].effort > record.effort:
        yield Finding("solver.effort", f"{record.effort!r} is less than {steps[-1].effort!r} in its history")
    if steps and not (equal(steps[-1].objective_s, record.objective_s) and equal(steps[-1].bound_s, record.bound_s)):
        last = f"ends with {steps[-1].objective_s!r} and {steps[-1].bound_s!r}"
        yield Finding("solver.history", f"{last}, booked are {record.objective_s!r} and {record.bound_s!r}")


def _held_out(plan: Plan, cost: SplitCost) -> Iterator[Finding]:
    booked, halves = plan.held_out, held_out(cost)
    if booked is None or halves is None:
        if (booked is None) != (halves is None) and plan.solver.stopped_by not in _CUT_SHORT:
            yield Finding("held_out", "is missing" if booked is None else "there are no windows to hold out")
        return
    judged = {name: halves.judge(layout) for name, layout in halves.rivals().items()}
    own = booked.imbalance.get("plan", 0.0), booked.layer_s.get("plan", 0.0)
    again: dict[str, Any] = {
        "how": halves.how,
        "layers": len(halves.rows),
        "imbalance": {"plan": max(1.0, own[0]), **{name: figures[0] for name, figures in judged.items()}},
        "layer_s": {"plan": own[1], **{name: figures[1] for name, figures in judged.items()}},
    }
    yield from differences("held_out", booked.model_dump(), again)
    if own[1] <= 0:
        yield Finding("held_out.layer_s.plan", f"{own[1]!r} is not above 0")


def _chosen(plan: Plan, key: str, record: CandidateRecord) -> Iterator[Finding]:
    """The figures of the chosen candidate are the plan's."""
    if record.split != plan.split:
        yield Finding("candidates", "the chosen candidate is not the plan's split")
    yield from differences(f"{key}.redundant_experts", record.redundant_experts, plan.placement.redundant_experts)
    yield from differences(f"{key}.step_s", record.step_s, plan.solver.objective_s)


def _candidates(plan: Plan, instance: Instance, space: SearchSpace) -> Iterator[Finding]:
    """Every split of the grid stands there once, its figures are right, and none beats the plan."""
    grid = {_key(one.split, one.redundant_experts, one.layout): one for one in all_ruled(instance, space)}
    seen: set[tuple[Split, int, str]] = set()
    for index, record in enumerate(plan.candidates):
        name = f"candidates[{index}]"
        key = _key(Split(**record.split.model_dump()), record.redundant_experts, record.layout)
        if key in seen:
            yield Finding(name, f"{key[0]} stands twice")
        elif key not in grid:
            yield Finding(f"{name}.split", f"{key[0]} with {key[1]} copies was not to be looked at")
        else:
            yield from _ruled(plan, name, record, grid[key], space.limits)
            yield from _outcome(name, record, plan.solver.objective_s)
        seen.add(key)
    missing = [key for key in grid if key not in seen]
    left_out = sum(not grid[key].is_feasible for key in missing)
    if plan.rejected_left_out:
        if left_out != plan.rejected_left_out:
            detail = f"booked {plan.rejected_left_out}, but {left_out} of those not listed are rejected"
            yield Finding("rejected_left_out", detail)
        missing = [key for key in missing if grid[key].is_feasible]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        yield Finding("candidates", f"{missing[0][0]} with {missing[0][1]} copies is missing{more}")


def _key(split: Split, redundant: int, layout: str) -> tuple[Split, int, str]:
    return split, redundant, layout


def _ruled(plan: Plan, key: str, record: CandidateRecord, again: RuledSplit, limits: Limits) -> Iterator[Finding]:
    """What a split breaks, its memory, and what it could hold besides."""
    is_chosen = record.outcome == "chosen"
    shown = verdicts(again.instance, again.split, again.redundant_experts, limits) if is_chosen else again.reasons
    derived = {
        "reasons": [str(reason) for reason in again.reasons],
        "rules": [asdict(rule) for rule in shown],
        "free_bytes": None if again.held is None else again.free_bytes,
    }
    booked = {"reasons": list(record.reasons), "rules": [rule.model_dump() for rule in record.rules]}
    yield from differences(key, {**booked, "free_bytes": record.free_bytes}, derived)
    if (record.outcome == "rejected") == again.is_feasible:
        yield Finding(f"{key}.outcome", f"{record.outcome!r}, though it breaks {len(again.reasons)} rules")
    room = Headroom(record.spare_kv_tokens, record.most_sequences, record.longest_context)
    untold = plan.solver.stopped_by in _CUT_SHORT and not is_chosen
    if room == Headroom(None, None, None) and (untold or not again.is_feasible):
        return
    if not again.is_feasible or not is_headroom(room, again):
        found = headroom(again) if again.is_feasible else Headroom(None, None, None)
        yield from differences(key, asdict(room), asdict(found))


def _outcome(key: str, record: CandidateRecord, best_s: float) -> Iterator[Finding]:
    """A candidate's outcome goes with its figures, and no other beats the plan."""
    bound_s, step_s, is_rejected = record.bound_s, record.step_s, record.outcome == "rejected"
    if is_rejected != (bound_s is None):
        yield Finding(f"{key}.bound_s", f"{bound_s!r} does not go with {record.outcome!r}")
    if (record.outcome in ("chosen", "priced")) != (step_s is not None):
        yield Finding(f"{key}.step_s", f"{step_s!r} does not go with {record.outcome!r}")
    if bound_s is not None and bound_s <= 0:
        yield Finding(f"{key}.bound_s", f"{bound_s!r} is not above 0")
    if bound_s is not None and step_s is not None and bound_s > step_s * (1 + CLOSE):
        yield Finding(f"{key}.bound_s", f"{bound_s!r} is above the step time {step_s!r}")
    if step_s is not None and step_s * (1 + _TIE) < best_s:
        yield Finding(f"{key}.step_s", f"{step_s!r} is less than that of the plan, {best_s!r}")
