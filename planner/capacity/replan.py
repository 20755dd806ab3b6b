"""From the plan in force to a better one with few moves: what is worth moving now, and what is not.

For each number of moves the fastest placement is sought (`solve/moves.py`), priced by the cost model on the new
trace, and held against what moving it costs over the real links. Time gained is judged on windows that the
placement was not made from: windows are dealt out in turn to four parts, and each judges what the others planned.
A gain that chance could explain is none, so that an unchanged load moves nothing.

Legend: S windows, L MoE layers, P slots.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from planner.capacity.jobs import cores_for
from planner.capacity.migration import Migration, migration
from planner.check import cost_of, limits_of, structure
from planner.cost.instance import Instance
from planner.cost.prepare import from_plan
from planner.cost.step import Cuts, SplitCost, predict, split_cost, stage_of_layers
from planner.errors import BadAnswerError
from planner.plan.decision import cuts_of, placement_of
from planner.plan.placement import Placement, widened
from planner.plan.plan import Plan
from planner.processes import in_order
from planner.rules import Limits
from planner.solve.moves import Moved, MoveJob, few_moves, spread
from planner.solve.problem import LayerProblem, layer_problem
from planner.solve.watch import Watch
from planner.trace.windows import subset

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Why = Literal["nothing", "gains", "too_few_windows", "chance", "small", "costs_more", "no_room"]

_LEAST_WINDOWS: Final = 4
FOLDS: Final = 4
"""Placements that are judged are made from three quarters of the windows, nearly as many as those that serve."""
LEAST_GAIN: Final = 0.005
"""Part of a step: the search for placements leaves so much on purpose (`solve/place.py`)."""
_ERRORS: Final = 2.0
"""A gain counts if it is so many times its standard error."""
_BUDGETS: Final = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096)


@dataclass(frozen=True)
class Answer:
    """One number of moves: what it gains, and what it costs."""

    moves: int
    step_s: float
    """On all windows of the new trace."""
    judged_s: float | None
    """Mean step on windows that the placement was not made from; None with fewer than two windows."""
    gain_error_s: float | None
    """Standard error of the gain over the plan in force on those windows."""
    gained_per_interval_s: float
    """Time that the work of an interval takes less."""
    migration_s: float
    net_s: float
    """Gained less migration."""
    break_even_s: float | None
    """Serving at the old pace after which the migration has paid; None: never."""
    why: Why
    """nothing: nothing moves; gains; or why it is not to be done."""


@dataclass(frozen=True)
class Asked:
    """What the user wants of a replan."""

    interval_s: float
    """How long the next plan will be in force."""
    budget: int | None = None
    """Most moves; None: as many as help."""
    least_gain: float = LEAST_GAIN
    """Part of a step that must be gained."""


@dataclass(frozen=True)
class Replan:
    """All answers, the first of them to do nothing, and the best."""

    interval_s: float
    budget: int | None
    """Most moves that were allowed; None: as many as help."""
    windows: int
    answers: tuple[Answer, ...]
    best: int
    """Index of the answer that is recommended."""
    migrations: tuple[Migration, ...]
    """Of each answer; layers in the order in which to move them."""
    placements: tuple[Placement, ...]
    warnings: tuple[str, ...] = ()
    """Of the traces."""


def replan(plan: Plan, path: Path, traces: Sequence[Path], asked: Asked, watch: Watch) -> Replan:
    """What to move for a new trace.

    Args:
        plan: the plan in force.
        path: its file.
        traces: recent routing.
        asked: what the user wants of it.
        watch: told of every layer that is done.

    Raises:
        BadAnswerError: the plan is broken.
        InputError: the trace covers other layers.
    """
    prepared = from_plan(plan, path, traces, others=True)
    found = replanned_from(Deck.of(plan, prepared.instance, path), asked, watch)
    return replace(found, warnings=(*prepared.warnings, *_untraced(prepared.instance)))


def _untraced(instance: Instance) -> tuple[str, ...]:
    traced, every = len(instance.traced_layer_ids), len(instance.model.moe_layer_ids)
    stay = "experts of the others stay where they are"
    return () if traced == every else (f"the traces cover {traced} of {every} MoE layers: {stay}",)


def replanned_from(deck: Deck, asked: Asked, watch: Watch) -> Replan:
    """The same from a placement that is in force; arguments as of `replan`."""
    instance = deck.instance
    folds = _folds(deck)
    tables = _frontiers([deck, *(fold.planning for fold in folds)], asked.budget, watch)
    most = sum(options[-1].moves for options in tables[0])
    most = most if asked.budget is None else min(most, asked.budget)
    budgets = sorted({*(number for number in _BUDGETS if number < most), most})
    chosen = [spread(table, most) for table in tables]
    answers: list[Answer] = []
    placements: list[Placement] = []
    for moves in budgets:
        placed = deck.placement(tables[0], chosen[0][moves][1])
        if placements and deck.step_s(placed) > deck.step_s(placements[-1]):
            placed = placements[-1]  # with stages the slowest counts, and not the sum of layers
        tried = [
            fold.planning.placement(table, one[moves][1])
            for fold, table, one in zip(folds, tables[1:], chosen[1:], strict=True)
        ]
        answer = _answer(deck, placed, _Judged.of(deck, folds, tried), asked)
        if not answers or answer.moves > answers[-1].moves:
            answers.append(answer)
            placements.append(placed)
    best = max(range(len(answers)), key=lambda index: (_worth(answers[index]), -index))
    migrations = tuple(_ordered(deck, placed) for placed in placements)
    return Replan(
        asked.interval_s, asked.budget, instance.num_windows, tuple(answers), best, migrations, tuple(placements)
    )


def _worth(answer: Answer) -> float:
    return answer.net_s if answer.why == "gains" else 0.0


@dataclass(frozen=True)
class Deck:
    """A plan's split and placement on some windows."""

    instance: Instance
    cost: SplitCost
    cuts: Cuts
    before: Placement
    limits: Limits

    @staticmethod
    def of(plan: Plan, instance: Instance, path: Path) -> Deck:
        """The plan in a file on the windows of an instance; raises `BadAnswerError` if it is broken."""
        broken = structure(plan, instance)
        if broken:
            raise BadAnswerError(f"the plan in force is broken: {broken[0]}", hint=f"see: ep-plan check {path}")
        return Deck(instance, cost_of(plan, instance), cuts_of(plan), placement_of(plan), limits_of(plan))

    def on(self, windows: Sequence[int]) -> Deck:
        """The same on some of the windows."""
        assert self.instance.windows is not None
        instance = replace(self.instance, windows=subset(self.instance.windows, windows))
        gpus = [stage.grid.gpus for stage in self.cost.stages]
        slots = [stage.slots_R for stage in self.cost.stages]
        redundant = self.cost.physical_experts - instance.model.moe.num_experts
        cost = split_cost(instance, self.cost.split, redundant, gpus, slots)
        return replace(self, instance=instance, cost=cost)

    @cached_property
    def problems(self) -> tuple[tuple[int, LayerProblem], ...]:
        """Rows of the placement of the layers with recorded routing, each as a problem."""
        stage_of, moe = stage_of_layers(self.cost, self.cuts), self.instance.model.moe
        row_of = {layer: row for row, layer in enumerate(self.before.layer_ids)}
        traced = zip(self.instance.traced_layer_ids, self.instance.loads, strict=True)
        return tuple((row_of[layer], layer_problem(stage_of[layer], load, moe, self.limits)) for layer, load in traced)

    def placement(self, table: Sequence[Sequence[Moved]], chosen: Sequence[int]) -> Placement:
        """The placement in force with one of the options of each traced layer."""
        expert_LP = self.before.expert_LP.copy()
        for (row, problem), options, number in zip(self.problems, table, chosen, strict=True):
            if options[number].moves:
                expert_LP[row] = widened(options[number].expert_P, problem.num_ranks, self.before.slots_per_rank)
        return replace(self.before, expert_LP=expert_LP)

    def max_over_mean(self, placement: Placement) -> float:
        """Rows of the fullest rank over those of the mean one, mean over traced layers and windows."""
        found = []
        for row, problem in self.problems:
            rows_SR = problem.moe.rank_rows(problem.load, placement.expert_LP[row])
            found.append(float((rows_SR.max(axis=1) / rows_SR.mean(axis=1)).mean()))
        return float(np.mean(found))

    def step_S(self, placement: Placement) -> Floats:
        """Step time in each window."""
        return predict(self.cost, self.cuts, placement).step_S

    def step_s(self, placement: Placement) -> float:
        """Step time, mean over windows."""
        return predict(self.cost, self.cuts, placement).step_s


@dataclass(frozen=True)
class _Fold:
    """Some windows to judge on, and all others to plan on."""

    planning: Deck
    judging: Deck


def _folds(deck: Deck) -> list[_Fold]:
    """Windows are dealt out, each part judges what the others planned; none with fewer than two windows."""
    windows = range(deck.instance.num_windows)
    parts = min(FOLDS, len(windows))
    if parts < 2:
        return []
    judged = [list(windows[start::parts]) for start in range(parts)]
    return [_Fold(deck.on([one for one in windows if one not in part]), deck.on(part)) for part in judged]


def _frontiers(decks: Sequence[Deck], budget: int | None, watch: Watch) -> list[list[tuple[Moved, ...]]]:
    """For each deck and traced layer the placements with few moves."""
    jobs = []
    for deck in decks:
        for row, problem in deck.problems:
            most = problem.num_slots if budget is None else min(budget, problem.num_slots)
            jobs.append(MoveJob(problem, deck.before.expert_LP[row], most))
    watch.begin("looking for moves", len(jobs))
    found = []
    size = sum(job.problem.num_windows * job.problem.num_slots * job.problem.num_experts for job in jobs)
    for options in in_order(cores_for(size), few_moves, jobs):
        found.append(options)
        watch.advance()
    layers = len(decks[0].problems)
    return [found[start : start + layers] for start in range(0, len(found), layers)]


@dataclass(frozen=True)
class _Judged:
    """Step times on windows that the placement was not made from, and of the plan in force on the same."""

    after_S: Floats
    before_S: Floats

    @staticmethod
    def of(deck: Deck, folds: Sequence[_Fold], tried: Sequence[Placement]) -> _Judged | None:
        """Each fold's placement on the windows that it was not made from; None without folds."""
        if not folds:
            return None
        after = [fold.judging.step_S(placed) for fold, placed in zip(folds, tried, strict=True)]
        before = [fold.judging.step_S(deck.before) for fold in folds]
        return _Judged(np.concatenate(after), np.concatenate(before))

    @property
    def gain_s(self) -> float:
        """Mean time that a step takes less."""
        return float((self.before_S - self.after_S).mean())

    @property
    def error_s(self) -> float:
        """Standard error of that."""
        return float((self.before_S - self.after_S).std(ddof=1) / math.sqrt(len(self.after_S)))


def _answer(deck: Deck, placed: Placement, judged: _Judged | None, asked: Asked) -> Answer:
    now_s, step_s = deck.step_s(deck.before), deck.step_s(placed)
    moved = migration(deck.cost, deck.cuts, deck.before, placed)
    gain_s, base_s = now_s - step_s, now_s
    if judged is not None:
        gain_s, base_s = judged.gain_s, float(judged.before_S.mean())
    gained = asked.interval_s * gain_s / base_s
    why: Why = "gains"
    if not moved.moves:
        why, gained = "nothing", 0.0
    elif judged is None or len(judged.after_S) < _LEAST_WINDOWS:
        why = "too_few_windows"
    elif gain_s <= _ERRORS * judged.error_s:
        why = "chance"
    elif gain_s < asked.least_gain * base_s:
        why = "small"
    elif gained <= moved.seconds:
        why = "costs_more"
    elif moved.lacking_bytes:
        why = "no_room"
    return Answer(
        moves=moved.moves,
        step_s=step_s,
        judged_s=None if judged is None else float(judged.after_S.mean()),
        gain_error_s=None if judged is None else judged.error_s,
        gained_per_interval_s=gained,
        migration_s=moved.seconds,
        net_s=gained - moved.seconds,
        break_even_s=moved.seconds * base_s / gain_s if gain_s > 0 else None,
        why=why,
    )


def _ordered(deck: Deck, placed: Placement) -> Migration:
    """What moves, the layer first that gains most for each second of its migration."""
    moved = migration(deck.cost, deck.cuts, deck.before, placed)
    problem_of = {deck.before.layer_ids[row]: (row, problem) for row, problem in deck.problems}

    def gain(layer: int) -> float:
        row, problem = problem_of[layer]
        return problem.seconds(deck.before.expert_LP[row]) - problem.seconds(placed.expert_LP[row])

    order = sorted(moved.layers, key=lambda one: (-gain(one.layer) / one.seconds, one.layer))
    return Migration(tuple(order))
