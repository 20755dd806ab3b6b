"""From an instance to a plan: search, judge on held-out windows, book, check."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from planner import __version__
from planner.baselines import placements, score, weights_of
from planner.check import check
from planner.cost.booking import book
from planner.cost.instance import Instance
from planner.cost.notes import notes
from planner.cost.step import SplitCost, split_cost
from planner.plan.plan import (
    CandidateRecord,
    HeldOutRecord,
    PlacementRecord,
    Plan,
    PlanInputs,
    RuleRecord,
    SolverRecord,
    SplitRecord,
    StageRecord,
)
from planner.plan.split import Split
from planner.rules import Limits, Verdict, verdicts
from planner.solve.candidates import Candidate, SearchSpace
from planner.solve.headroom import Headroom, headroom
from planner.solve.master import Best, Master, Options, Solution
from planner.solve.place import LayerJob
from planner.solve.problem import CLOSED, LayerProblem
from planner.solve.watch import GaveUpError, Watch
from planner.solve.workers import TimeIsUpError, Workers
from planner.trace.windows import subset

Ints = NDArray[np.int64]

_HELD_OUT_LAYERS = 12
_TIME_ORDERED_WINDOWS = 16


@dataclass(frozen=True)
class Solved:
    """A plan, or why there is none."""

    plan: Plan | None
    solution: Solution


@dataclass(frozen=True)
class Told:
    """What candidates are told with: the limits they keep, and what they could hold besides, by identity."""

    limits: Limits
    rooms: dict[int, Headroom]


def solve(
    instance: Instance, space: SearchSpace, options: Options, inputs: PlanInputs, workers: Workers, watch: Watch
) -> Solved:
    """Find, judge, book and check a plan.

    Returns:
        The plan; None if every split is rejected (then the candidates say why).

    Raises:
        AssertionError: the plan fails its own check, which is a bug.
    """
    master = Master(instance, space, options, workers, watch)
    solution = master.run()
    if solution.best is None:
        return Solved(None, solution)
    held_out = None
    if solution.stopped_by not in ("time_limit", "interrupt"):
        try:
            with watch.stoppable():
                held_out = _held_out(instance, solution.best, master, workers, watch)
        except TimeIsUpError:
            solution.stopped_by = "time_limit"
        except GaveUpError:
            raise
        except KeyboardInterrupt:
            solution.stopped_by = "interrupt"
    rooms = _rooms(instance, solution, solution.best, watch)
    plan = _booked(instance, solution, solution.best, held_out, inputs, Told(space.limits, rooms))
    findings = check(plan, instance)
    assert not findings, "the plan fails its own check:\n" + "\n".join(map(str, findings))
    return Solved(plan, solution)


def _rooms(instance: Instance, solution: Solution, best: Best, watch: Watch) -> dict[int, Headroom]:
    """What the splits that fit could hold besides; where the search was stopped only the chosen one's."""
    rooms = {id(best.candidate): headroom(instance, best.candidate)}
    if solution.stopped_by in ("time_limit", "interrupt"):
        return rooms
    others = [one for one in solution.candidates if one.is_feasible and one is not best.candidate]
    try:
        with watch.stoppable():
            watch.begin("finding what else fits", len(others))
            for candidate in others:
                rooms[id(candidate)] = headroom(instance, candidate)
                watch.advance()
    except GaveUpError:
        raise
    except KeyboardInterrupt:
        solution.stopped_by = "interrupt"
    return rooms


def _booked(
    instance: Instance,
    solution: Solution,
    best: Best,
    held_out: HeldOutRecord | None,
    inputs: PlanInputs,
    told: Told,
) -> Plan:
    cost = best.candidate.cost
    assert cost is not None
    objective = best.prediction.step_s
    gap = max(0.0, (objective - solution.bound_s) / objective)
    placement = best.placement
    return Plan(
        version=__version__,
        split=_split_record(best.candidate.split),
        stages=tuple(
            StageRecord(layers=(layers.start, layers.stop), gpus=stage.grid.gpus)
            for stage, layers in zip(cost.stages, best.cuts, strict=True)
        ),
        placement=PlacementRecord(
            layer_ids=placement.layer_ids,
            slots_per_rank=placement.slots_per_rank,
            redundant_experts=best.candidate.redundant_experts,
            copy_rule=instance.constants.copy_rule,
            physical_to_logical=tuple(tuple(row) for row in placement.expert_LP.tolist()),
        ),
        predicted=book(cost, best.cuts, placement, best.prediction),
        solver=SolverRecord(
            status="optimal" if gap <= CLOSED else "feasible",
            objective_s=objective,
            bound_s=solution.bound_s,
            gap=gap,
            effort=round(solution.effort, 6),
            stopped_by=solution.stopped_by,
        ),
        baselines=score(cost, best.cuts),
        held_out=held_out,
        notes=notes(instance, solution.stopped_by, gap),
        candidates=tuple(_candidate_record(instance, candidate, best, told) for candidate in solution.candidates),
        inputs=inputs,
    )


def _split_record(split: Split) -> SplitRecord:
    return SplitRecord(
        tp=split.tp,
        dp=split.dp,
        pp=split.pp,
        ep=split.ep,
        etp=split.etp,
        edp=split.edp,
        micro_batches=split.micro_batches,
    )


def _candidate_record(instance: Instance, candidate: Candidate, best: Best, told: Told) -> CandidateRecord:
    split = _split_record(candidate.split)
    if not candidate.is_feasible:
        return CandidateRecord(
            split=split,
            redundant_experts=candidate.redundant_experts,
            layout=candidate.layout,
            outcome="rejected",
            free_bytes=None if not candidate.memories else candidate.free_bytes,
            reasons=tuple(str(reason) for reason in candidate.reasons),
            rules=rule_records(candidate.reasons),
        )
    outcome: Literal["chosen", "priced", "bounded"] = "bounded" if candidate.step_s is None else "priced"
    rules: tuple[RuleRecord, ...] = ()
    chosen = candidate is best.candidate
    if chosen:
        outcome = "chosen"
        rules = rule_records(verdicts(instance, candidate.split, candidate.redundant_experts, told.limits))
    room = told.rooms.get(id(candidate), Headroom(None, None, None))
    return CandidateRecord(
        split=split,
        redundant_experts=candidate.redundant_experts,
        layout=candidate.layout,
        outcome=outcome,
        bound_s=candidate.bound_s,
        step_s=best.prediction.step_s if chosen else candidate.step_s,  # the two may be a tie
        free_bytes=candidate.free_bytes,
        spare_kv_tokens=room.spare_kv_tokens,
        most_sequences=room.most_sequences,
        longest_context=room.longest_context,
        rules=rules,
    )


def rule_records(rules: Iterable[Verdict]) -> tuple[RuleRecord, ...]:
    """Verdicts as data."""
    return tuple(RuleRecord(**asdict(rule)) for rule in rules)


# --- held-out windows -------------------------------------------------------------------------------


def _held_out(instance: Instance, best: Best, master: Master, workers: Workers, watch: Watch) -> HeldOutRecord | None:
    """Place some layers on one half of the windows and judge on the other."""
    windows = instance.windows
    if windows is None or windows.num_windows < 2 or best.candidate.split.ep == 1:
        return None
    count = windows.num_windows
    if count >= _TIME_ORDERED_WINDOWS:
        seen, unseen = list(range(count // 2)), list(range(count // 2, count))
        how = f"placed on the first {len(seen)} windows, judged on the last {len(unseen)}"
    else:
        seen, unseen = list(range(0, count, 2)), list(range(1, count, 2))
        how = f"placed on every other window ({len(seen)}), judged on the rest ({len(unseen)})"
    split, redundant = best.candidate.split, best.candidate.redundant_experts
    assert best.candidate.cost is not None
    stages = best.candidate.cost.stages
    shares = [stage.grid.gpus for stage in stages], [stage.slots_R for stage in stages]
    planning = split_cost(replace(instance, windows=subset(windows, seen)), split, redundant, *shares)
    judging = split_cost(replace(instance, windows=subset(windows, unseen)), split, redundant, *shares)
    rows = len(instance.traced_layer_ids)
    step = max(1, rows // _HELD_OUT_LAYERS)
    chosen = list(range(step // 2, rows, step))[:_HELD_OUT_LAYERS]
    watch.begin("judging on held-out windows", len(chosen))
    placed: dict[int, Ints] = {}
    jobs = [LayerJob(_problem(planning, row, master), 0.0, master.options.seed, master.options.gap) for row in chosen]
    for index, result in workers.place(jobs):
        placed[chosen[index]] = result.expert_P
        watch.advance()
    assert planning.instance.windows is not None
    stage_of = dict.fromkeys(range(instance.model.num_layers), planning.stages[0])
    rivals = placements(planning, stage_of, weights_of(planning.instance.windows))
    row_of = {layer: row for row, layer in enumerate(best.placement.layer_ids)}
    imbalance: dict[str, float] = {}
    layer_s: dict[str, float] = {}
    layouts = {"plan": placed}
    for name, rival in rivals.items():
        layouts[name] = {row: rival.expert_LP[row_of[instance.traced_layer_ids[row]]] for row in chosen}
    for name, layout in layouts.items():
        imbalance[name], layer_s[name] = _judge(judging, layout, chosen)
    return HeldOutRecord(how=how, layers=len(chosen), imbalance=imbalance, layer_s=layer_s)


def _problem(cost: SplitCost, row: int, master: Master) -> LayerProblem:
    return master.problem(cost.stages[0], cost.instance.loads[row])


def _judge(cost: SplitCost, layout: dict[int, Ints], rows: Sequence[int]) -> tuple[float, float]:
    moe = cost.stages[0].moe
    imbalance, seconds = [], []
    for row in rows:
        load = cost.instance.loads[row]
        rows_SR = moe.rank_load(load, layout[row])[0]
        imbalance.append(float((rows_SR.max(axis=1) / rows_SR.mean(axis=1)).mean()))
        seconds.append(float(moe.layer(load, layout[row]).total_S.mean()))
    return float(np.mean(imbalance)), float(np.mean(seconds))
