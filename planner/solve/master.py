"""Choosing the split: best-first over all candidates, each priced by placing its experts.

Every candidate carries a bound that no plan with its split can beat (`candidates.py`). The one with
the least bound is priced first; what is proved about its layers goes back into its bound. The search
ends when the least bound of all candidates is within the gap of the best plan (docs/model.md,
"Master"). A candidate that a sample of layers shows to be clearly slower than the best plan waits
until the others are done; if effort runs out first, its bound still counts.

Legend: K stages, L hidden layers, M traced MoE layers, P slots.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from planner.cost.instance import Instance
from planner.cost.step import Prediction, predict
from planner.errors import NoPlanFoundError
from planner.plan.objective import objective_of
from planner.rules.grid import SearchSpace
from planner.solve.candidates import Bounder, Candidate, all_candidates, bounded, count_candidates
from planner.solve.focus import Focus
from planner.solve.history import History, Progress, stops
from planner.solve.layers import Key, Layers
from planner.solve.place import LayerJob, LayerResult, has_program
from planner.solve.problem import CLOSED
from planner.solve.solution import Best, Options, Solution, StoppedBy, better
from planner.solve.watch import GaveUpError, NoWatch, Watch
from planner.solve.workers import TimeIsUpError, Workers

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_SAMPLED_LAYERS = 4
_HOPELESS = 1.03
"""A sample that predicts so much more than the best plan postpones the candidate."""
_EXACT_EFFORT = 4.0
"""CP-SAT's deterministic time per layer, where so much is left."""


@dataclass
class _Work:
    """A candidate and what has been placed for it."""

    candidate: Candidate
    results: dict[Key, LayerResult] = field(default_factory=dict)
    level: int = 0
    postponed: bool = False

    @property
    def turn(self) -> tuple[bool, float, tuple[int, ...]]:
        return self.postponed, self.candidate.bound_s, self.candidate.order


_DONE = 3


class Master:
    """One search. Deterministic: the same inputs give the same plan, however many cores there are."""

    def __init__(
        self, instance: Instance, space: SearchSpace, options: Options, workers: Workers, watch: Watch | None = None
    ) -> None:
        self.instance, self.space, self.options = instance, space, options
        self.workers, self.watch = workers, watch or NoWatch()
        self.focus = Focus(instance, options.risk)
        self.bounder = Bounder(instance)
        self.layers = Layers(instance, space.limits)
        self.best: Best | None = None
        self._latest: Best | None = None
        """The plan offered last."""
        self.effort = 0.0
        self._history = History()
        self._works: list[_Work] = []
        self._first_effort: float | None = None
        """Effort until the layers of a candidate had all been placed."""
        self._known: dict[Key, Ints] = {}
        """Placements of layers, by the ranks of the stage."""

    def run(self) -> Solution:
        """Search until proof, gap, effort, time limit or Ctrl-C; the best plan is kept in any case.

        Raises:
            NoPlanFoundError: the time limit passed before there was one.
            KeyboardInterrupt: Ctrl-C before there was a plan, or for the second time.
        """
        candidates = self.bounded()
        alive = [candidate for candidate in candidates if candidate.is_feasible]
        if not alive:
            return Solution(None, candidates, 0.0, "proof", self.effort)
        stopped: StoppedBy
        try:
            with self.watch.stoppable():
                self._linear(alive[0])
                stopped = self._search(alive)
                while not self._is_enough(stopped) and self._narrowed(alive):
                    stopped = self._search(alive)
        except TimeIsUpError:
            stopped = "time_limit"
        except GaveUpError:
            raise
        except KeyboardInterrupt:
            if self.best is None:
                raise
            stopped = "interrupt"
        if stopped in ("time_limit", "interrupt"):
            self._offer_placed()
        bound = min(candidate.bound_s for candidate in alive)
        history: tuple[Progress, ...] = ()
        if self.best is not None:
            best_s = self.best.objective_s
            bound = min(bound, best_s)
            if best_s - bound <= CLOSED * best_s:
                stopped = "proof"
            self._history.note(self.effort, best_s, bound)
            history = self._history.told(best_s, bound)
        return Solution(self.best, candidates, bound, stopped, self.effort, history)

    def bounded(self) -> list[Candidate]:
        """All candidates with their bounds, as far as the time limit allows."""
        done = 0

        def one_done() -> None:
            nonlocal done
            if self.workers.time_is_up():
                raise TimeIsUpError
            done += 1
            self.watch.advance()

        total = count_candidates(self.instance, self.space)
        self.watch.begin("bounding splits", 2 * total)  # each is held against the rules, then bounded
        try:
            return all_candidates(self.instance, self.space, self.bounder, one_done)
        except TimeIsUpError:
            looked = f"{min(done, total)} of {total} splits were held against the rules, {max(0, done - total)} bounded"
            raise NoPlanFoundError(
                f"no plan was found within the time limit: {looked}",
                hint="nothing is proved, a plan may well exist\n"
                "give more time (--time-limit), or pin degrees (--split tp=1,pp=1): fewer splits are then looked at",
            ) from None

    # --- the loop ---------------------------------------------------------------------------------

    def _is_enough(self, stopped: StoppedBy) -> bool:
        """Proved, or close enough after a look at the slowest windows by themselves."""
        return stopped == "proof" or (stopped == "gap" and self.focus.is_narrow)

    def _narrowed(self, alive: list[Candidate]) -> bool:
        """Whether there are windows that the search should look at by themselves; if so bounds are for these, too."""
        assert self.best is not None
        assert self._latest is not None
        if not self.focus.narrow(self.best.prediction.step_S, self._latest.prediction.step_S):
            return False
        self.bounder, self._first_effort = Bounder(self.focus.instance), None
        self.layers = Layers(self.focus.instance, self.space.limits)
        self.watch.begin("bounding splits on the slowest windows", len(alive))
        for candidate in alive:
            if self.workers.time_is_up():
                raise TimeIsUpError
            bounded(candidate, self.bounder)
            self.watch.advance()
        return True

    def _search(self, alive: list[Candidate]) -> StoppedBy:
        works = self._works = [_Work(candidate) for candidate in alive]
        while True:
            assert self.best is not None
            best_s = self.best.objective_s
            bound = min(work.candidate.bound_s for work in works)
            self.watch.status(best_s, bound)
            self._history.note(self.effort, best_s, bound)
            if best_s - bound <= CLOSED * best_s:
                return "proof"
            wanted = CLOSED if self._first_effort is None else self.options.gap  # one candidate is placed in any case
            if best_s - bound <= wanted * best_s:
                return "gap"
            waiting = [work for work in works if work.level < _DONE and work.candidate.bound_s < best_s * (1 - wanted)]
            if not waiting or (self._first_effort is not None and self._left() <= 0):
                return "effort"
            self._process(min(waiting, key=lambda work: work.turn))

    def _process(self, work: _Work) -> None:
        """Take a candidate one level further: sample, place all layers, integer program."""
        assert self.best is not None
        if work.level == 0:
            work.level = 1
            self._reprice_known(work)
            estimate = self._sampled(work)
            if estimate > _HOPELESS * self.best.objective_s and work.candidate is not self.best.candidate:
                work.postponed = True
            return
        if work.level == 1:
            if self._first_effort is not None and self._effort_to_place(work) > self._left():
                work.level = _DONE
                return
            self._place(work, self.layers.keys(work.candidate), 0.0)
            if self._first_effort is None:
                self._first_effort = self.effort
        else:
            self._prove(work)
        work.level += 1
        self._settle(work)

    def _left(self) -> float:
        """Effort that is left: the first plan, however large the problem, does not count."""
        return self.options.effort + (self._first_effort or 0.0) - self.effort

    def _effort_to_place(self, work: _Work) -> float:
        """What placing the other layers will take, judged by those of the sample."""
        mean = math.fsum(result.effort for result in work.results.values()) / len(work.results)
        every, sampled = self.layers.keys(work.candidate), list(work.results)
        return mean * (len(self.layers.distinct(every)) - len(self.layers.distinct(sampled)))

    def _prove(self, work: _Work) -> None:
        """Integer programs on the layers that are not proved and not too large, as far as effort goes.

        A batch holds the layers that surely fit into what is left, so its size depends on nothing
        but effort; what it did not use is there for the next. Layers are searched anew before their
        program, at the known cost of the first time.
        """
        open_keys = [key for key in self.layers.keys(work.candidate) if not work.results[key].is_optimal]
        every = self.layers.distinct(open_keys)
        problems = self.layers.of(work.candidate, (same[0] for same in every))
        waiting = [same for same, problem in zip(every, problems, strict=True) if has_program(problem)]
        while waiting:
            left = self._left()
            cost = np.cumsum([work.results[same[0]].effort + _EXACT_EFFORT for same in waiting])
            size = max(1, int(np.searchsorted(cost, left, side="right")))
            exact = min(_EXACT_EFFORT, left - work.results[waiting[0][0]].effort)
            if exact <= 0:
                return
            batch, waiting = waiting[:size], waiting[size:]
            self._place(work, [key for same in batch for key in same], exact)

    def _linear(self, candidate: Candidate) -> None:
        """A first plan at once: the engines' own layout."""
        self._offer(candidate, self.layers.linear(candidate))

    # --- placing ----------------------------------------------------------------------------------

    def _place(self, work: _Work, keys: Sequence[Key], exact_effort: float) -> None:
        """Place layers that are not placed yet (or again, with the integer program)."""
        open_keys = [key for key in keys if exact_effort > 0 or key not in work.results]
        if exact_effort > 0:
            open_keys = [key for key in open_keys if not work.results[key].is_optimal]
        unique = self.layers.distinct(open_keys)
        problems = self.layers.of(work.candidate, (same[0] for same in unique))
        jobs = [LayerJob(problem, exact_effort, self.options.seed, self.options.gap) for problem in problems]
        self.watch.begin(f"placing experts: {work.candidate.split}", len(jobs))
        known, effort = dict(work.results), self.effort
        found: dict[int, LayerResult] = {}
        try:
            for index, result in self.workers.place(jobs):
                found[index] = result
                for key in unique[index]:
                    before = work.results.get(key)
                    work.results[key] = result if before is None else result.merged(before)
                self.watch.advance()
        finally:  # exact: neither the order in which workers finish nor the steps of the history show
            self.effort = math.fsum([effort, *(result.effort for result in found.values())])
        # Of another candidate nothing is known before all is placed; programs also raise its bound.
        if exact_effort > 0 or self._first_effort is None:
            self._note_batch(work, known, [(unique[index], found[index]) for index in range(len(jobs))], effort)

    def _note_batch(
        self,
        work: _Work,
        known: dict[Key, LayerResult],
        batch: Sequence[tuple[list[Key], LayerResult]],
        effort: float,
    ) -> None:
        """What was known after each layer of a batch, in the order of its jobs; layers not placed are linear."""
        assert self.best is not None
        candidate, best_s = work.candidate, self.best.objective_s
        others_s = min((other.candidate.bound_s for other in self._works if other is not work), default=math.inf)
        bounds = {kind: bound_M.copy() for kind, bound_M in candidate.layer_bound.items()}
        follows = self._first_effort is None or candidate is self.best.candidate
        now, spent, told = dict(known), [effort], stops(len(batch))
        for number, (keys, result) in enumerate(batch):
            spent.append(result.effort)
            for key in keys:
                now[key] = result if key not in now else result.merged(now[key])
                bounds[key[0]][key[1]] = max(bounds[key[0]][key[1]], now[key].bound)
            if number in told:
                found = self.bounder.step_bound(candidate, [bounds[stage.kind] for stage in candidate.cost.stages])
                mine_s = max(candidate.bound_s, found[0]) if found else candidate.bound_s
                if follows:
                    placement = self.layers.placement(candidate, candidate.cuts, self.layers.placed(candidate, now))
                    best_s = min(best_s, self._objective_s(predict(candidate.cost, candidate.cuts, placement)))
                self._history.note(math.fsum(spent), best_s, min(mine_s, others_s))

    def _sampled(self, work: _Work) -> float:
        """Step time that a few placed layers let expect."""
        keys = self.layers.keys(work.candidate)
        step = max(1, len(keys) // _SAMPLED_LAYERS)
        self._place(work, keys[step // 2 :: step][:_SAMPLED_LAYERS], 0.0)
        bounds = work.candidate.layer_bound
        placed = list(work.results)
        ratio = sum(work.results[k].seconds for k in placed) / sum(float(bounds[k[0]][k[1]]) for k in placed)
        cost = work.candidate.cost
        found = self.bounder.step_bound(work.candidate, [bounds[stage.kind] * ratio for stage in cost.stages])
        return found[0] if found else float("inf")

    def _settle(self, work: _Work) -> None:
        """All layers are placed: offer the plan, and put what was proved into the bound."""
        candidate, cost = work.candidate, work.candidate.cost
        self._offer(candidate, {key: result.expert_P for key, result in work.results.items()})
        ranks_of = {stage.kind: stage.ranks for stage in cost.stages}
        for (kind, row), result in work.results.items():
            candidate.layer_bound[kind][row] = max(candidate.layer_bound[kind][row], result.bound)
            self._known[ranks_of[kind], row] = result.expert_P
        traced = [candidate.layer_bound[stage.kind] for stage in cost.stages]
        found = self.bounder.step_bound(candidate, traced)
        if found is not None:
            candidate.bound_s = max(candidate.bound_s, found[0])

    def _offer_placed(self) -> None:
        """Where the search was cut short: what has been placed of a candidate, with the other layers linear."""
        for work in self._works:
            if work.results and any(key not in work.results for key in self.layers.keys(work.candidate)):
                self._offer(work.candidate, self.layers.placed(work.candidate, work.results))

    def _reprice_known(self, work: _Work) -> None:
        """A placement found for another split with the same ranks is a plan for this one, too."""
        ranks_of = {stage.kind: stage.ranks for stage in work.candidate.cost.stages}
        found = {(kind, row): self._known.get((ranks_of[kind], row)) for kind, row in self.layers.keys(work.candidate)}
        complete = {key: expert_P for key, expert_P in found.items() if expert_P is not None}
        if len(complete) == len(found):
            self._offer(work.candidate, complete)

    def _offer(self, candidate: Candidate, expert_P: dict[Key, Ints]) -> None:
        """Price a full placement by the truth; keep it if it is the best."""
        cost = candidate.cost
        cuts = self.layers.recut(candidate, expert_P, self.bounder)
        placement = self.layers.placement(candidate, cuts, expert_P)
        prediction = predict(cost, cuts, placement)
        found_s = self._objective_s(prediction)
        if candidate.step_s is None or found_s < candidate.step_s:
            candidate.step_s = found_s
        found = self._latest = Best(candidate, cuts, placement, prediction, found_s)
        if self.best is None or better(found, self.best):
            self.best = found
        self.watch.status(self.best.objective_s, 0.0)

    def _objective_s(self, prediction: Prediction) -> float:
        """What is minimised."""
        return objective_of(prediction.step_s, prediction.step_S, self.options.risk)
