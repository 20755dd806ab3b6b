"""Placing one layer: bound, search, integer program. Runs in worker processes; deterministic."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from planner.plan.placement import from_ranks, linear, ordered
from planner.solve.bounds import layer_bound
from planner.solve.cycles import improve, relieve
from planner.solve.groups import assign_groups
from planner.solve.held import Held
from planner.solve.interrupts import held_back
from planner.solve.joint import FAR_SIGHTED, SHARPER, JointSearch, is_joint
from planner.solve.nearest import NearestSearch
from planner.solve.problem import CLOSED, LayerProblem
from planner.solve.sharp import SharpSearch
from planner.solve.smooth import SmoothSearch
from planner.solve.start import start
from planner.solve.weights import FEW_WINDOWS, smooth_of, smooth_table, weight_table

if TYPE_CHECKING:
    from planner.solve.exact import ExactResult

Ints = NDArray[np.int64]

ROBUST = 5e-3
"""A placement found by the smooth objective is kept if it costs at most this much more on the recorded
windows than the sharpest one: it does better on windows not seen (benchmarks/generalisation.py)."""
_ROBUST_OF_GROUPS = 3e-2
"""The same with a handful of windows, if the smooth objective alone sees routing groups rise. Else the
sharpest placement of a handful is taken: smooth ones are hardly better on windows not seen."""
_EVALUATIONS_PER_EFFORT = 2e7
_EXACT_BOOLEANS = 1500
_EXACT_TERMS = 60_000


@dataclass(frozen=True)
class LayerJob:
    """One layer to place."""

    problem: LayerProblem
    effort: float
    """Limit for the integer program, in CP-SAT's deterministic time; 0 leaves it out."""
    seed: int
    gap: float


@dataclass(frozen=True)
class LayerResult:
    """A placement of one layer; seconds are means over windows."""

    expert_P: Ints
    seconds: float
    bound: float
    effort: float

    def merged(self, other: LayerResult) -> LayerResult:
        """The better placement with the better bound of both."""
        better = self if self.seconds < other.seconds else other
        return replace(better, bound=min(max(self.bound, other.bound), better.seconds))

    @property
    def is_optimal(self) -> bool:
        """Proved to the last relevant digit."""
        return self.seconds - self.bound <= CLOSED * self.seconds


def place_layer(job: LayerJob) -> LayerResult:
    """Place one layer as well as the effort allows, and prove what can be proved.

    Where it may run several kernels it is placed for the one with the least bound; then, with the effort that an
    integer program left, for others that may be faster by more than the gap.
    """
    ways = sorted(((way, layer_bound(way)) for way in job.problem.ways), key=itemgetter(1))
    best, bound, effort = None, math.inf, 0.0
    for way, least in ways:
        left = job.effort - effort
        if best is not None and (left <= 0 or least >= best.seconds * (1 - job.gap)):
            bound = min(bound, least)
            break
        found = _placed(replace(job, problem=way, effort=left), least)
        bound, effort = min(bound, found.bound), effort + found.effort
        if best is None or found.seconds < best.seconds:
            best = found
    assert best is not None
    seconds = best.seconds if len(ways) == 1 else job.problem.seconds(best.expert_P)
    return LayerResult(best.expert_P, seconds, min(bound, seconds), effort)


def _placed(job: LayerJob, bound: float) -> LayerResult:
    """The same by one kernel."""
    problem = job.problem
    linear_P = linear_start(problem)
    best_P, best = linear_P, problem.seconds(linear_P)
    if best - bound <= CLOSED * best:
        return LayerResult(best_P, best, min(bound, best), 0.0)
    best_P, best, effort = searched(problem, best_P, best)
    if job.effort > 0 and best - bound > max(job.gap, CLOSED) * best and has_program(problem):
        exact = _program()(problem, best_P, job.effort, job.seed, job.gap)
        effort += exact.effort
        bound = max(bound, exact.bound)
        is_proven = exact.seconds - exact.bound <= CLOSED * exact.seconds
        if exact.seconds < best * (1 - (0.0 if is_proven else _tolerance(problem))):
            best_P, best = exact.expert_P, exact.seconds
    slots = int(problem.slots_R.max())
    return LayerResult(ordered(best_P, slots), best, min(bound, best), effort)


def _program() -> Callable[[LayerProblem, Ints, float, int, float], ExactResult]:
    """The integer program, whose libraries are loaded where they are needed.

    A Ctrl-C waits until they are: it would leave them half initialised, and fail as an error of their own.
    """
    with held_back():
        from planner.solve.exact import solve_exactly  # noqa: PLC0415  # loads ortools
    return solve_exactly


def has_program(problem: LayerProblem) -> bool:
    """Whether the layer is small enough for the integer program."""
    booleans = problem.num_experts * problem.num_ranks * problem.most_copies
    if problem.serves_nearest:  # one for every set of ranks (columns.py)
        booleans = problem.num_experts * ((1 << min(problem.num_ranks, 30)) - 1)
    return booleans <= _EXACT_BOOLEANS and booleans * problem.num_windows <= _EXACT_TERMS


def linear_start(problem: LayerProblem) -> Ints:
    """The engines' own layout, or where groups must stay together the nearest thing to it."""
    if problem.group_E is None or problem.block_R is not None:
        return linear(problem.num_experts, problem.slots_R)
    return from_ranks(start(problem, smooth_of(problem), assign_groups(problem)), int(problem.slots_R.max()))


def searched(problem: LayerProblem, known_P: Ints, known: float) -> tuple[Ints, float, float]:
    """Local search; the placement, its seconds, and the effort spent."""
    if not problem.serves_nearest:
        return _searched(problem, known_P, known)
    even = problem.shared_evenly()
    found_P, _, effort = _searched(even, known_P, even.seconds(known_P))
    search = NearestSearch(problem, min((found_P, known_P), key=problem.seconds))
    search.improve()
    return search.best_P, search.best, effort + search.evaluations / _EVALUATIONS_PER_EFFORT


def _searched(problem: LayerProblem, known_P: Ints, known: float) -> tuple[Ints, float, float]:
    """The same where copies share evenly."""
    weights = weight_table(problem)
    smooth = smooth_table(weights, problem.num_ranks, problem.num_groups)
    held = Held(problem, start(problem, smooth, assign_groups(problem)))
    search = SmoothSearch(held, smooth)
    search.improve()
    smooth_P = held.placement()
    polish = SharpSearch(held, weights)
    if problem.num_windows < FEW_WINDOWS:
        relieve(polish)
    else:  # the smooth one is mostly kept
        polish.improve()
    best_P, best = _kept(problem, (known_P, known), smooth_P, held.placement())
    evaluations = float((search.evaluations + polish.evaluations) * problem.num_windows)
    if is_joint(problem):
        joint = JointSearch(Held.of(problem, best_P))
        joint.improve(FAR_SIGHTED)
        improve(joint, SHARPER)
        smooth_P = joint.held.placement()
        improve(joint, None)
        best_P, best = _kept(problem, (best_P, best), smooth_P, joint.held.placement())
        evaluations += joint.evaluations
    return best_P, best, evaluations / _EVALUATIONS_PER_EFFORT


def _tolerance(problem: LayerProblem) -> float:
    """What the smooth objective's placement may cost; nothing where one window is the whole question."""
    if problem.num_windows >= FEW_WINDOWS:
        return ROBUST
    return _ROBUST_OF_GROUPS if problem.num_windows > 1 and problem.num_groups > 1 else 0.0


def _kept(problem: LayerProblem, known: tuple[Ints, float], smooth_P: Ints, sharp_P: Ints) -> tuple[Ints, float]:
    """Of a placement with its seconds and two others the best; the smooth one if it is nearly as good."""
    tolerance = _tolerance(problem)
    smooth_s, sharp_s = problem.seconds(smooth_P), problem.seconds(sharp_P)
    if smooth_s <= min(sharp_s * (1 + tolerance), known[1] * (1 + min(tolerance, ROBUST))):
        return smooth_P, smooth_s
    return min((known, (sharp_P, sharp_s)), key=itemgetter(1))
