"""The placement of one layer as an integer program, solved with CP-SAT (docs/model.md, "Placement").

Variables: x[e, r, k] = 1 if expert e has k copies and one of them is on rank r; y[e, k] = 1 if e has
k copies. Where the nearest copy serves instead z[e, C] = 1 if the copies of e are on the ranks C
(`columns.py`). Per window s, busy[s] bounds the expert time of every rank from above through tangents of
the smooth maximum, sent[s] the slowest unit's traffic, total[s] both with their overlap.

(C1) sum_k y[e, k] = 1 and sum_r x[e, r, k] = k y[e, k]
(C2) sum_{e, k} x[e, r, k] = slots[r]
(C3) sum_k x[e, r, k] <= 1
(C4) busy[s] >= each tangent of each rank, of its own class, with rows n[e, s] / k and touches as data
(C5) sent[s] >= each unit's traffic: linear in rows without de-duplication, else in visits of recorded
     sets where they are few (`exact_visits.py`); else only its bound
(C6) x[e, r, k] <= g[group of e, node of r] and sum_n g[a, n] = 1
(C7) in place of (C1) to (C3): sum_C z[e, C] = 1, and sum of z[e, C] over e and the C with r = slots[r]

CP-SAT needs integers: seconds are counted in a quantum chosen so that the sum of any row's Boolean
coefficients stays below 2**29 (a presolve rule of 9.15 overflows above 2**31, or-tools#5293). Costs
are rounded down, so the solver's bound times the quantum is valid; incumbents are priced by the
truth, and tangents at the incumbent are added until truth and bound meet.

Legend: S windows, E experts, R ranks, C classes of ranks, U units, k copies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from ortools.sat.python import cp_model

from planner.plan.placement import from_ranks
from planner.solve.bounds import bound_parts_S
from planner.solve.columns import CopyColumns, columns_of
from planner.solve.exact_visits import ONE, Visits
from planner.solve.held import Held
from planner.solve.problem import CLOSED, LayerProblem, Tangent, mean_tangent, tangent

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_ROW_LIMIT = 1 << 29
_FINE = 16
"""Steps of a quantum in rows of visits; fewer where such a row, which `exact_visits.ONE` is part of, grew too large."""
_LARGEST_ROW = (1 << 62) - 1
"""Half of what CP-SAT can add up."""
_ROUNDS = 12
_PARTS = 1000
"""In which the overlap is told."""


@dataclass(frozen=True)
class ExactResult:
    """What the integer program found and proved, in seconds on average over windows."""

    expert_P: Ints
    seconds: float
    bound: float
    effort: float


def solve_exactly(problem: LayerProblem, incumbent_P: Ints, effort: float, seed: int, gap: float) -> ExactResult:
    """Improve an incumbent and prove a bound.

    Args:
        problem: the layer.
        incumbent_P: a feasible placement, used as hint and returned if nothing better is found.
        effort: limit in CP-SAT's deterministic time.
        seed: of the solver.
        gap: stop when truth and bound are this close (relative).

    Returns:
        The best placement seen and the best bound proved, at least the counting bound.
    """
    best_P, best = incumbent_P, problem.seconds(incumbent_P)
    floor = bound_parts_S(problem)
    bound = float(problem.moe.times(*floor).total_S.mean())
    tangents = [mean_tangent(problem), *_at(problem, incumbent_P)]
    spent = 0.0
    for _ in range(_ROUNDS):
        if best - bound <= max(gap, CLOSED) * best or spent >= effort:
            break
        program = _Program(problem, tangents, floor, best)
        found = program.solve(best_P, effort - spent, seed, gap)
        spent += found.effort
        bound = max(bound, found.bound)
        if found.expert_P is None:
            break
        seconds = problem.seconds(found.expert_P)
        if seconds < best:
            best_P, best = found.expert_P, seconds
        elif not found.closed:
            break
        tangents += _at(problem, found.expert_P)
    return ExactResult(best_P, best, min(bound, best), spent)


def _at(problem: LayerProblem, expert_P: Ints) -> list[Tangent]:
    """Tangents at the slowest rank of each window, and at the rank with the most rows."""
    rows_SR, touched_SR, filled_R = problem.moe.rank_load(problem.load, expert_P)
    seconds_SR = problem.moe.expert_s(rows_SR, touched_SR, filled_R.astype(float))  # [S, R]
    found = []
    for rank_S in (seconds_SR.argmax(axis=1), rows_SR.argmax(axis=1), touched_SR.argmax(axis=1)):
        pick = (np.arange(len(rank_S)), rank_S)
        found.append(tangent(problem.moe, rows_SR[pick], touched_SR[pick]))
    return found


@dataclass(frozen=True)
class _Found:
    expert_P: Ints | None
    bound: float
    effort: float
    closed: bool


class _Program:
    """One CP-SAT model; built for a fixed set of tangents."""

    def __init__(
        self, problem: LayerProblem, tangents: Sequence[Tangent], floor: tuple[Floats, Floats], upper: float
    ) -> None:
        self.problem = problem
        self.model = cp_model.CpModel()
        self.floor = floor
        self.upper = upper
        self.columns = columns_of(problem, self.model)
        self._add_times(tangents)

    # --- (C4), (C5), objective --------------------------------------------------------------------

    def _add_times(self, tangents: Sequence[Tangent]) -> None:
        p, moe = self.problem, self.problem.moe
        columns, class_R = self.columns, moe.class_R
        costs = [
            t.per_row_CS[class_R].T[:, :, None] * columns.rows_SRJ
            + t.per_touched_CS[class_R].T[:, :, None] * columns.touched_SRJ
            for t in _distinct(tangents)
        ]
        base_C, slot_C = np.array([(k.base_s, k.per_expert_s) for k in moe.kernels_C]).T
        slot_s_R = base_C[moe.class_R] + slot_C[moe.class_R] * p.slots_R
        speed_R = 1.0 / p.slow_R
        part_R = speed_R.sum() / speed_R  # of the mean over ranks, weighted so that unequal ranks count alike
        per_byte = moe.dispatch_bytes + moe.combine_bytes
        units_SUJ, gather = columns.units_SUJ * per_byte, moe.gather_s_per_row_byte * per_byte
        visited = self._visited()
        self.quantum = self._quantum(costs, units_SUJ, gather)
        expert_floor_S, byte_floor_S = self.floor
        sent_floor_S = byte_floor_S * per_byte + moe.fixed_traffic_s
        totals = []
        for s in range(p.num_windows):
            busy = self._variable(f"busy[{s}]", expert_floor_S[s])
            for cost_SRJ in costs:
                for rank in range(p.num_ranks):
                    self.model.add(busy >= self._row(cost_SRJ[s, rank]) + self._down(slot_s_R[rank]))
                # The mean over ranks: implied, but it lets the solver see that the ranks' rows add up. Over the
                # copies themselves, not their numbers: written with y the README example of EPLB is not closed.
                mean = self._row((cost_SRJ[s] / part_R[:, None]).sum(axis=0))
                self.model.add(busy >= mean + self._down(float((slot_s_R * speed_R).sum() / speed_R.sum())))
            moved, gathered = self._variable(f"moved[{s}]"), self._variable(f"gathered[{s}]")
            for terms in visited[s] if visited else ():
                self._add_visits(moved, [(u, seconds * per_byte / self.quantum) for u, seconds in terms])
            for unit_J in units_SUJ[s]:
                self.model.add(moved >= self._row(unit_J))
            for rank in range(p.num_ranks if gather else 0):
                self.model.add(gathered >= self._row(gather * columns.rows_SRJ[s, rank]))
            sent = self._variable(f"sent[{s}]", sent_floor_S[s])
            self.model.add(sent >= moved + gathered + self._down(moe.fixed_traffic_s))
            totals.append(self._overlapped(busy, sent, s))
        self.model.minimize(sum(totals))

    def _visited(self) -> list[list[list[tuple[cp_model.IntVar, float]]]]:
        """Visits of recorded sets, where they are few and follow from the numbers of copies."""
        if not isinstance(self.columns, CopyColumns) or not Visits.fit(self.problem):
            return []
        return Visits(self.problem, self.model, self.columns.x).rows()

    def _quantum(self, costs: Sequence[Floats], units_SUJ: Floats, gather: float) -> float:
        """Seconds per integer step, as fine as the row limit allows."""
        largest = [float(cost_SRJ.sum(axis=2).max()) for cost_SRJ in costs]
        largest += [float(unit_SJ.sum(axis=1).max()) for unit_SJ in units_SUJ.swapaxes(0, 1)]
        gathered = float(self.columns.rows_SRJ.sum(axis=2).max()) * gather
        return max(*largest, gathered, self.upper, self.problem.moe.beside_s) / _ROW_LIMIT

    def _row(self, seconds_J: Floats) -> cp_model.LinearExprT:
        """Sum of variables times seconds, rounded down to the quantum."""
        down_J = np.floor(seconds_J / self.quantum).astype(np.int64)
        some = np.flatnonzero(down_J).tolist()
        return cp_model.LinearExpr.weighted_sum([self.columns.variables[j] for j in some], down_J[some].tolist())

    def _add_visits(self, moved: cp_model.IntVar, terms: Sequence[tuple[cp_model.IntVar, float]]) -> None:
        """A unit's traffic by the visits that it takes part in, each of so many quanta; left out if too large a sum.

        In finer steps than a quantum, because many are rounded down.
        """
        whole = self._top + math.ceil(sum(quanta for _, quanta in terms))
        fine = min(_FINE, _LARGEST_ROW // (ONE * whole))
        if fine:
            parts = [math.floor(quanta * fine) for _, quanta in terms]
            row = cp_model.LinearExpr.weighted_sum([variable for variable, _ in terms], parts)
            self.model.add(fine * ONE * moved >= row)

    @property
    def _top(self) -> int:
        """Quanta that the incumbent needs over all windows, and those of what else traffic hides behind."""
        longest = self.upper * self.problem.num_windows + self.problem.moe.beside_s
        return math.ceil(longest / self.quantum) + 1

    def _variable(self, name: str, least_s: float = 0.0) -> cp_model.IntVar:
        """Seconds in quanta."""
        return self.model.new_int_var(min(self._down(least_s), self._top), self._top, name)

    def _overlapped(self, busy: cp_model.IntVar, sent: cp_model.IntVar, s: int) -> cp_model.LinearExprT:
        """Total >= busy + sent - overlap * min(what hides, sent), as two lines."""
        moe = self.problem.moe
        hidden, beside = moe.overlap, math.ceil(moe.beside_s / self.quantum)
        if hidden == 0.0 or not (moe.experts_hide or beside):
            return busy + sent
        total = self._variable(f"total[{s}]")
        seen = 1 - Fraction(math.ceil(hidden * _PARTS - 1e-6), _PARTS)  # rather more overlap than less time
        whole, part = seen.denominator, seen.numerator
        self.model.add(whole * total >= whole * busy + part * sent)
        if moe.experts_hide:
            self.model.add(whole * total >= part * busy + whole * sent - (whole - part) * beside)
        else:
            self.model.add(whole * total >= whole * busy + whole * sent - (whole - part) * beside)
        return total

    def _down(self, seconds: float) -> int:
        return max(0, math.floor(seconds / self.quantum))

    # --- solving ----------------------------------------------------------------------------------

    def solve(self, hint_P: Ints, effort: float, seed: int, gap: float) -> _Found:
        """Run CP-SAT once: one worker and deterministic time, so that the answer repeats."""
        self.columns.hint(Held.of(self.problem, hint_P).member_ER)
        solver = cp_model.CpSolver()
        solver.parameters.num_workers = 1
        solver.parameters.random_seed = seed
        solver.parameters.max_deterministic_time = effort
        solver.parameters.relative_gap_limit = max(gap, CLOSED) / 4
        solver.parameters.catch_sigint_signal = False  # it would end the search without a word, and every later one
        status = _interruptible(solver, self.model)
        if status == cp_model.MODEL_INVALID:
            raise AssertionError(f"the placement program is invalid: {self.model.validate()}")
        if status == cp_model.INFEASIBLE:
            raise AssertionError("CP-SAT calls a layer infeasible that has a placement")
        windows = self.problem.num_windows
        bound = max(0.0, solver.best_objective_bound) * self.quantum / windows
        spent = max(solver.response_proto.deterministic_time, 1e-3)
        if status == cp_model.UNKNOWN:
            return _Found(None, bound, spent, closed=False)
        expert_P = from_ranks(self.columns.held(solver), int(self.problem.slots_R.max()))
        return _Found(expert_P, bound, spent, closed=status == cp_model.OPTIMAL)


def _interruptible(solver: cp_model.CpSolver, model: cp_model.CpModel) -> cp_model.CpSolverStatus:
    """Solve in another thread: while this one waits, Python handles signals."""
    with ThreadPoolExecutor(1) as pool:
        status = pool.submit(solver.solve, model)
        try:
            return status.result()
        except BaseException:
            solver.stop_search()
            raise


def _distinct(tangents: Sequence[Tangent]) -> list[Tangent]:
    """Leave out tangents that are alike to ten digits in every window."""
    kept: dict[bytes, Tangent] = {}
    for t in tangents:
        largest = t.per_row_CS.max()
        key = np.round(np.concatenate([t.per_row_CS / largest, t.per_touched_CS / largest]), 10)
        kept.setdefault(key.tobytes(), t)
    return list(kept.values())
