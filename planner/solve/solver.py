"""From an instance to a plan: search, judge on held-out windows, book, check."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from planner import __version__
from planner.baselines import score
from planner.check import check
from planner.cost.booking import book
from planner.cost.instance import Instance
from planner.cost.notes import notes
from planner.cost.step import Cuts, predict
from planner.held_out import held_out
from planner.plan.objective import objective_of
from planner.plan.placement import Placement
from planner.plan.plan import (
    CandidateRecord,
    HeldOutRecord,
    PlacementRecord,
    Plan,
    PlanInputs,
    ProgressRecord,
    RuleRecord,
    SolverRecord,
    SplitRecord,
    StageRecord,
)
from planner.plan.split import Split
from planner.rules import Limits, Verdict, verdicts
from planner.rules.grid import SearchSpace
from planner.rules.headroom import Headroom, headroom
from planner.solve.candidates import Candidate
from planner.solve.master import Master
from planner.solve.place import LayerJob
from planner.solve.problem import CLOSED
from planner.solve.solution import Best, Options, Solution
from planner.solve.watch import GaveUpError, Watch
from planner.solve.workers import TimeIsUpError, Workers

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Solved:
    """A plan, or why there is none."""

    plan: Plan | None
    solution: Solution


@dataclass(frozen=True)
class GivenPlacement:
    """A placement with its split, and how both lie on the machine."""

    split: Split
    cuts: Cuts
    gpus: tuple[tuple[int, ...], ...]
    """Of each stage, in rank order."""
    placement: Placement

    def is_of(self, candidate: Candidate) -> bool:
        """Whether this is a placement of a candidate."""
        slots = [stage.slots_R for stage in candidate.cost.stages]
        filled_R = (self.placement.expert_LP[0] >= 0).reshape(self.split.ep, -1).sum(axis=1)
        same = candidate.split == self.split and candidate.shares.gpus == self.gpus
        return same and np.array_equal(slots[0], filled_R)


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
                held_out = _held_out(solution.best, master, workers, watch)
        except TimeIsUpError:
            solution.stopped_by = "time_limit"
        except GaveUpError:
            raise
        except KeyboardInterrupt:
            solution.stopped_by = "interrupt"
    return Solved(_finished(instance, space, solution, solution.best, held_out, inputs, watch), solution)


def booked_placement(
    instance: Instance,
    space: SearchSpace,
    options: Options,
    inputs: PlanInputs,
    given: GivenPlacement,
    workers: Workers,
    watch: Watch,
) -> Plan:
    """A placement that was found elsewhere as a plan: all splits are bounded, none is searched.

    Raises:
        AssertionError: the placement's split is not among the candidates, or fails the check, which is a bug.
    """
    master = Master(instance, space, options, workers, watch)
    candidates = master.bounded()
    mine = next(one for one in candidates if one.is_feasible and given.is_of(one))
    prediction = predict(mine.cost, given.cuts, given.placement)
    reached_s = mine.step_s = objective_of(prediction.step_s, prediction.step_S, options.risk)
    bound_s = min(reached_s, *(one.bound_s for one in candidates if one.is_feasible))
    best = Best(mine, given.cuts, given.placement, prediction, reached_s)
    closed = reached_s - bound_s <= CLOSED * reached_s
    solution = Solution(best, candidates, bound_s, "proof" if closed else "effort", master.effort)
    halves = _held_out(best, master, workers, watch)
    return _finished(instance, space, solution, best, halves, inputs, watch)


def _finished(
    instance: Instance,
    space: SearchSpace,
    solution: Solution,
    best: Best,
    held_out: HeldOutRecord | None,
    inputs: PlanInputs,
    watch: Watch,
) -> Plan:
    """The plan, booked and checked."""
    plan = _booked(instance, solution, best, held_out, inputs, Told(space.limits, _rooms(solution, best, watch)))
    findings = check(plan, instance)
    assert not findings, "the plan fails its own check:\n" + "\n".join(map(str, findings))
    return plan


def _rooms(solution: Solution, best: Best, watch: Watch) -> dict[int, Headroom]:
    """What the splits that fit could hold besides; where the search was stopped only the chosen one's."""
    rooms = {id(best.candidate): headroom(best.candidate)}
    if solution.stopped_by in ("time_limit", "interrupt"):
        return rooms
    others = [one for one in solution.candidates if one.is_feasible and one is not best.candidate]
    try:
        with watch.stoppable():
            watch.begin("finding what else fits", len(others))
            for candidate in others:
                rooms[id(candidate)] = headroom(candidate)
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
    objective = best.objective_s
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
            copy_rule=instance.copy_rule(best.candidate.split),
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
            history=tuple(
                ProgressRecord(effort=round(one.effort, 6), objective_s=one.best_s, bound_s=one.bound_s)
                for one in solution.history
            ),
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
            free_bytes=None if candidate.held is None else candidate.free_bytes,
            reasons=tuple(str(reason) for reason in candidate.reasons),
            rules=_rule_records(candidate.reasons),
        )
    outcome: Literal["chosen", "priced", "bounded"] = "bounded" if candidate.step_s is None else "priced"
    rules: tuple[RuleRecord, ...] = ()
    chosen = candidate is best.candidate
    if chosen:
        outcome = "chosen"
        rules = _rule_records(verdicts(instance, candidate.split, candidate.redundant_experts, told.limits))
    room = told.rooms.get(id(candidate), Headroom(None, None, None))
    return CandidateRecord(
        split=split,
        redundant_experts=candidate.redundant_experts,
        layout=candidate.layout,
        outcome=outcome,
        bound_s=candidate.bound_s,
        step_s=best.objective_s if chosen else candidate.step_s,  # the two may be a tie
        free_bytes=candidate.free_bytes,
        spare_kv_tokens=room.spare_kv_tokens,
        most_sequences=room.most_sequences,
        longest_context=room.longest_context,
        rules=rules,
    )


def _rule_records(rules: Iterable[Verdict]) -> tuple[RuleRecord, ...]:
    return tuple(RuleRecord(**asdict(rule)) for rule in rules)


# --- held-out windows -------------------------------------------------------------------------------


def _held_out(best: Best, master: Master, workers: Workers, watch: Watch) -> HeldOutRecord | None:
    """Place some layers on one half of the windows and judge on the other."""
    halves = held_out(best.candidate.cost)
    if halves is None:
        return None
    watch.begin("judging on held-out windows", len(halves.rows))
    stage, loads = halves.planning.stages[0], halves.planning.instance.loads
    problems = [master.layers.problem(stage, loads[row]) for row in halves.rows]
    jobs = [LayerJob(problem, 0.0, master.options.seed, master.options.gap) for problem in problems]
    placed: dict[int, Ints] = {}
    for index, result in workers.place(jobs):
        placed[halves.rows[index]] = result.expert_P
        watch.advance()
    judged = {name: halves.judge(layout) for name, layout in {"plan": placed, **halves.rivals()}.items()}
    return HeldOutRecord(
        how=halves.how,
        layers=len(halves.rows),
        imbalance={name: imbalance for name, (imbalance, _) in judged.items()},
        layer_s={name: seconds for name, (_, seconds) in judged.items()},
    )
