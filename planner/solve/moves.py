"""From a placement in force to better ones with few moves: for each number of moves the fastest that was found.

A move puts an expert on a rank that did not hold it: its weights must travel there. Two walks over swaps and
replacements of copies look for good placements (docs/model.md, "Moving experts"):

- outwards from the placement in force, each step the one that gains most for each further move;
- homewards from the placement that a search free of all limits finds, each step the one that loses least for each
  move saved.

Steps that gain without a further move are always taken first. Both walks see the smooth objective of
`weights.smooth_of`; the truth prices every placement on the way, and of each layer the placements remain that
no other beats with as few moves. `spread` then shares a budget of moves out among layers, exactly.

Legend: S windows, E experts, R ranks, P slots (filled), Q slots of one rank, C slots of copies, L layers, k copies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.solve.held import Held
from planner.solve.place import searched
from planner.solve.problem import LayerProblem
from planner.solve.relabel import relabelled
from planner.solve.smooth import POWER, raised
from planner.solve.weights import smooth_of

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_FULLEST = 4
"""Ranks from which a step outwards starts: others do not hold a layer up."""
_TINY = 1e-9
_FREE = 1e6
"""How much sooner a step is taken that costs no move."""


@dataclass(frozen=True)
class MoveJob:
    """One layer whose placement may change."""

    problem: LayerProblem
    before_P: Ints
    """The placement in force."""
    most: int
    """Placements with more moves are not looked for."""


@dataclass(frozen=True)
class Moved:
    """A placement, and how far it is from the one in force."""

    moves: int
    seconds: float
    """Mean over windows."""
    expert_P: Ints


def few_moves(job: MoveJob) -> tuple[Moved, ...]:
    """Ever faster placements with ever more moves; the first is the one in force. Deterministic."""
    problem, now_s = job.problem, job.problem.seconds(job.before_P)
    away_ER = (~Held.of(problem, job.before_P).member_ER).astype(np.int64)
    table_kSE = smooth_of(problem)
    found = [Moved(0, now_s, job.before_P)]
    free_P = relabelled(problem, job.before_P, searched(problem, job.before_P, now_s)[0])
    outwards = _Walk(Held.of(problem, job.before_P), away_ER, table_kSE)
    homewards = _Walk(Held.of(problem, free_P), away_ER, table_kSE)
    found.append(Moved(homewards.moves, problem.seconds(free_P), free_P))
    for walk in (outwards.outwards(job.most), homewards.homewards()):
        found += [Moved(moves, problem.seconds(placed_P), placed_P) for moves, placed_P in walk]
    return _envelope([one for one in found if one.moves <= job.most])


def no_more_moves(problem: LayerProblem, start_P: Ints, away_ER: Ints) -> Ints:
    """The fastest placement found from a start that is no further away; moves as of `_Walk`."""
    walk = _Walk(Held.of(problem, start_P), away_ER, smooth_of(problem))
    found = [start_P, *(placed_P for _, placed_P in walk.outwards(walk.moves))]
    return min(found, key=problem.seconds)


def _envelope(found: Sequence[Moved]) -> tuple[Moved, ...]:
    kept: list[Moved] = []
    for one in sorted(found, key=lambda one: (one.moves, one.seconds)):
        if not kept or one.seconds < kept[-1].seconds:
            kept.append(one)
    return tuple(kept)


def spread(layers: Sequence[Sequence[Moved]], most: int) -> list[tuple[float, list[int]]]:
    """For each number of moves up to `most`, the least sum of the layers' seconds, and which placement of each.

    A knapsack with one choice of each layer: exact. The sum never rises with the number of moves.
    """
    best_s = np.zeros(most + 1)
    choices: list[Ints] = []
    for options in layers:
        total_s, choice = np.full(most + 1, np.inf), np.zeros(most + 1, dtype=np.int64)
        for number, option in enumerate(options):
            if option.moves > most:
                break
            with_it_s = np.full(most + 1, np.inf)
            with_it_s[option.moves :] = best_s[: most + 1 - option.moves] + option.seconds
            better = with_it_s < total_s
            total_s[better], choice[better] = with_it_s[better], number
        best_s = total_s
        choices.append(choice)
    return [(float(best_s[moves]), _followed(layers, choices, moves)) for moves in range(most + 1)]


def _followed(layers: Sequence[Sequence[Moved]], choices: Sequence[Ints], moves: int) -> list[int]:
    chosen = []
    for options, choice in zip(reversed(layers), reversed(choices), strict=True):
        chosen.append(int(choice[moves]))
        moves -= options[chosen[-1]].moves
    return chosen[::-1]


# --- walking ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Step:
    """A swap of two slots, or a copy that gives way to another expert's; lower scores first."""

    score: float
    rank: int
    slot: int
    partner: int
    """Slot of the other expert among all for a swap, the expert for a replacement."""
    is_swap: bool


class _Walk:
    """A placement on its way, and what steps change: the smooth objective and the number of moves."""

    def __init__(self, held: Held, away_ER: Ints, table_kSE: Floats) -> None:
        """Begin a walk.

        Args:
            held: where it starts.
            away_ER: moves that it takes for a rank to hold an expert: 0 where it does at home.
            table_kSE: the smooth objective's weights.
        """
        self.held, self.away_ER, self.table_kSE = held, away_ER, table_kSE
        self.slow_R = held.problem.slow_R
        self._refresh()

    @property
    def moves(self) -> int:
        """How many moves the placement is away from home."""
        return int((self.held.member_ER * self.away_ER).sum())

    def outwards(self, most: int) -> Iterator[tuple[int, Ints]]:
        """Placements step by step, the most gain for each further move first, until none gains."""
        while self._take(self._steps(most - self.moves)):
            yield self.moves, self.held.placement()

    def homewards(self) -> Iterator[tuple[int, Ints]]:
        """Placements step by step, the least loss for each move saved first, until no step saves one."""
        while self._take(self._steps(0)) or self._take(self._steps(None)):
            yield self.moves, self.held.placement()

    def _refresh(self) -> None:
        self.unit_SE = self.held.unit_weights(self.table_kSE)
        self.more_SE = self.held.unit_weights(self.table_kSE, 1)
        self.fewer_SE = self.held.unit_weights(self.table_kSE, -1)
        loads = [self.held.load(self.unit_SE, rank) for rank in range(len(self.slow_R))]
        self.load_SR = np.stack(loads, axis=1) * self.slow_R
        self.power_R = _power(self.load_SR).sum(axis=0)

    def _take(self, steps: list[_Step]) -> bool:
        """Take the best of some steps; False if there is none."""
        if not steps:
            return False
        best = min(steps, key=lambda step: (step.score, not step.is_swap, step.rank, step.slot, step.partner))
        if best.is_swap:
            self.held.exchange(best.rank, best.slot, *self.held.at(best.partner))
        else:
            self.held.replace(best.rank, best.slot, best.partner)
        self._refresh()
        return True

    def _steps(self, allowed: int | None) -> list[_Step]:
        """The best swap of each rank looked at, and the best replacement.

        Args:
            allowed: moves that a step may add: it must gain; None: a step must save moves and may lose.
        """
        found: list[_Step] = []
        for rank in self._ranks(allowed):
            change_QP, cost_QP = self._swaps(rank)
            found += self._best(change_QP, cost_QP, allowed, rank)
        change_CE, cost_CE, copies = self._replacements()
        if copies:
            score_CE = _scores(change_CE, cost_CE, allowed, self.power_R.sum())
            copy, expert = np.unravel_index(int(score_CE.argmin()), score_CE.shape)
            if np.isfinite(score_CE[copy, expert]):
                rank, slot = copies[int(copy)]
                found.append(_Step(float(score_CE[copy, expert]), rank, slot, int(expert), is_swap=False))
        return found

    def _ranks(self, allowed: int | None) -> list[int]:
        if allowed is None or allowed == 0:
            away_R = (self.held.member_ER * self.away_ER).sum(axis=0)
            return [int(rank) for rank in np.flatnonzero(away_R)]
        order = np.argsort(-self.power_R, kind="stable")
        return [int(rank) for rank in order[:_FULLEST]]

    def _best(self, change_QP: Floats, cost_QP: Ints, allowed: int | None, rank: int) -> Iterator[_Step]:
        score_QP = _scores(change_QP, cost_QP, allowed, self.power_R.sum())
        best = int(score_QP.argmin())
        if np.isfinite(score_QP.flat[best]):
            slot, partner = divmod(best, score_QP.shape[1])
            yield _Step(float(score_QP.flat[best]), rank, slot, partner, is_swap=True)

    def _swaps(self, rank: int) -> tuple[Floats, Ints]:
        """Change of the smooth objective and of the moves [Q, P] if a slot of a rank is swapped with another."""
        expert_P, rank_P = self.held.expert_P, self.held.rank_P
        mine_Q = np.asarray(self.held.of_rank[rank])
        delta_SQP = self.unit_SE[:, None, expert_P] - self.unit_SE[:, mine_Q][:, :, None]
        after_QP = _power(self.load_SR[:, rank][:, None, None] + delta_SQP * self.slow_R[rank]).sum(axis=0)
        after_QP += _power(self.load_SR[:, rank_P][:, None, :] - delta_SQP * self.slow_R[rank_P]).sum(axis=0)
        change_QP = after_QP - (self.power_R[rank] + self.power_R[rank_P])[None, :]
        change_QP[self.held.forbidden(rank)] = np.inf
        away_ER = self.away_ER
        come_QP = away_ER[expert_P, rank][None, :] + away_ER[mine_Q][:, rank_P]
        gone_QP = away_ER[mine_Q, rank][:, None] + away_ER[expert_P, rank_P][None, :]
        return change_QP, come_QP - gone_QP

    def _replacements(self) -> tuple[Floats, Ints, list[tuple[int, int]]]:
        """The same [C, E] if a copy of an expert that has several gives way to another expert's.

        Where the two experts share a rank the change is a sum of what each does alone there.
        """
        held = self.held
        copies = [
            (rank, slot)
            for rank, members in enumerate(held.of_rank)
            for slot, expert in enumerate(members)
            if held.copies_E[expert] > 1
        ]
        if not copies:
            return np.zeros((0, 0)), np.zeros((0, 0), dtype=np.int64), []
        rank_C = np.array([rank for rank, _ in copies])
        expert_C = np.array([held.of_rank[rank][slot] for rank, slot in copies])
        joining_E = self._elsewhere(self.more_SE - self.unit_SE).sum(axis=1)
        leaving_ER = self._elsewhere(self.fewer_SE - self.unit_SE)
        leaving_C = leaving_ER[expert_C].sum(axis=1) - leaving_ER[expert_C, rank_C]
        own_SCE = (self.more_SE[:, None, :] - self.unit_SE[:, expert_C][:, :, None]) * self.slow_R[rank_C][:, None]
        own_CE = _power(self.load_SR[:, rank_C][:, :, None] + own_SCE).sum(axis=0) - self.power_R[rank_C][:, None]
        change_CE = own_CE + joining_E[None, :] + leaving_C[:, None]
        impossible_CE = held.member_ER[:, rank_C].T | (held.copies_E >= len(self.table_kSE))[None, :]
        if held.problem.group_E is not None:
            impossible_CE |= ~np.stack([held.lives_with(rank) for rank in rank_C.tolist()])
        change_CE[impossible_CE] = np.inf
        return change_CE, self.away_ER[:, rank_C].T - self.away_ER[expert_C, rank_C][:, None], copies

    def _elsewhere(self, change_SE: Floats) -> Floats:
        """Change of the smooth objective [E, R] where a rank's copy of an expert weighs more or less."""
        after_SER = self.load_SR[:, None, :] + change_SE[:, :, None] * self.slow_R
        change_ER = (_power(after_SER) - _power(self.load_SR)[:, None, :]).sum(axis=0)
        return np.asarray(np.where(self.held.member_ER, change_ER, 0.0))


def _scores(change: Floats, cost: Ints, allowed: int | None, total: float) -> Floats:
    """Lower is better; infinite for what is not allowed."""
    if allowed is None:
        return np.where((cost < 0) & np.isfinite(change), change / np.minimum(cost, -1) * -1.0, np.inf)
    gains = (change < -_TINY * total) & (cost <= allowed)
    return np.where(gains, np.where(cost <= 0, change * _FREE, change / np.maximum(cost, 1)), np.inf)


def _power(load: Floats) -> Floats:
    return raised(load, POWER)
