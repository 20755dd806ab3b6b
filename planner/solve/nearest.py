"""Improving a placement whose copies serve by nearness.

Elsewhere the search takes copies to share evenly. Where the nearest serves, that holds as long as the copies of an
expert lie on nodes of their own, and then a copy also spares its whole node the way to another one. So first ranks
trade names between nodes until as few rows as possible belong to experts with several copies on one node; what a
rank holds, and so the balance, stays as it is.

Then swaps of two experts are tried, and of a copy for one of another expert. Without de-duplication all of a rank
are priced at once (`flows.py`), first with power means in place of maxima, so that all ranks and ports pull. With it
single ones are tried in mixed order and priced by the truth, on few tokens and then on all.

Legend: E experts, R ranks, P slots (filled), Q slots of one rank.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from planner.cost.blocks import PairBlock
from planner.solve.flows import Flows, Step
from planner.solve.held import Held
from planner.solve.problem import LayerProblem
from planner.trace.windows import TokenSets

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_POWER: Final = 8
_WORK: Final = 1e8
"""Numbers worked on to price placements: about a second."""
_STEPS: Final = 4e8
"""The same for single steps, some seconds at most."""
_PATIENCE: Final = 6e7
"""Of these, those without any gain after which they end."""
_TOKENS: Final = 1024
"""Of recorded sets, by which placements are compared before all tokens decide."""
_LOGARITHM: Final = 4
"""Numbers that are worked on while one logarithm is taken."""
_TINY: Final = 1e-9


class NearestSearch:
    """A placement of one layer being improved.

    Args:
        problem: the layer; copies serve by nearness.
        expert_P: where to begin.
    """

    def __init__(self, problem: LayerProblem, expert_P: Ints) -> None:
        self.problem, self.rough = problem, _with_few_tokens(problem)
        self.best_P, self.best = expert_P, problem.seconds(expert_P)
        self.rough_best = self.rough.seconds(expert_P)
        self.evaluations = 0.0
        self.numbers = _numbers(self.rough)

    def improve(self) -> None:
        """Names of ranks, then swaps and replacements until none helps or the work is done."""
        self._take(self._renamed())
        exchange = self.problem.moe.exchange
        if exchange.ranks_share_volume or not self.problem.moe.has_exchange:
            for power in (_POWER, None):
                self._descend(power)
        else:
            while self._step():
                pass

    # --- all swaps of a rank at once ----------------------------------------------------------------

    def _descend(self, power: int | None) -> None:
        """Steps until none lowers the mean time, with power means in place of maxima (None: maxima)."""
        if self.problem.num_experts * self.problem.num_ranks**2 > _WORK:
            return  # adding up what all experts give to do would take all of it
        flows = Flows(Held.of(self.problem, self.best_P))
        if flows.is_large:
            return
        now, idle = flows.seconds(power), 0
        order = self._slowest_first(flows.held)
        while idle < len(order) and self.evaluations + flows.evaluations < _WORK:
            after = _moved(flows, order[idle], power, now)
            if after is None:
                idle += 1
                continue
            now, idle, order = after, 0, self._slowest_first(flows.held)
            if power is None:
                self._take(flows.held.placement())
        self._take(flows.held.placement())
        self.evaluations += flows.evaluations

    def _take(self, expert_P: Ints) -> bool:
        """Keep a placement if it is better, by some of the tokens and then by all."""
        rough = self.rough.seconds(expert_P)
        self.evaluations += self.numbers
        if rough >= self.rough_best * (1 - _TINY):
            return False
        seconds = rough if self.rough is self.problem else self.problem.seconds(expert_P)
        if seconds >= self.best * (1 - _TINY):
            return False
        self.best_P, self.best, self.rough_best = expert_P, seconds, rough
        return True

    # --- ranks --------------------------------------------------------------------------------------

    def _renamed(self) -> Ints:
        """The same ranks, so named that copies of an expert lie on different nodes."""
        p = self.problem
        if p.moe.num_classes > 1 or not p.moe.exchange.alike or p.group_E is not None:
            return self.best_P
        member_ER = Held.of(p, self.best_P).member_ER.astype(float)
        several_E = np.where(member_ER.sum(axis=1) > 1, p.rows_SE.mean(axis=0), 0.0)
        shared_RR = np.einsum("er,es->rs", member_ER * several_E[:, None], member_ER)
        np.fill_diagonal(shared_RR, 0.0)
        held_R = _apart(shared_RR, p.moe.sharing.node_R, p.slots_R)
        return self.best_P.reshape(p.num_ranks, -1)[held_R].reshape(-1)

    # --- swaps and copies ---------------------------------------------------------------------------

    def _step(self) -> bool:
        """Take the first swap or replacement found that helps."""
        held = Held.of(self.problem, self.best_P)
        until = min(_STEPS, self.evaluations + _PATIENCE)
        for step in self._steps(held):
            if self.evaluations >= until:
                return False
            back = _make(held, step)
            if self._take(held.placement()):
                return True
            _make(held, back)
        return False

    def _steps(self, held: Held) -> list[Step]:
        """First those of the slowest rank, then those of copies; each mixed, so that all kinds get their turn."""
        p = self.problem
        slowest = self._slowest_first(held)[0]
        several_P = held.copies_E[held.expert_P] > 1
        first: list[Step] = []
        later: list[Step] = []
        for rank in range(p.num_ranks):
            several_Q = several_P[held.first_R[rank] :][: len(held.of_rank[rank])]
            swaps_QP = ~held.forbidden(rank) & (
                several_Q[:, None] | (rank == slowest) | several_P | (held.rank_P == slowest)
            )
            mine = first if rank == slowest else later
            mine += [(rank, slot, place, None) for slot, place in np.argwhere(swaps_QP).tolist()]
            coming = np.flatnonzero(held.may_come(rank)).tolist()
            mine += [(rank, slot, 0, expert) for slot in np.flatnonzero(several_Q).tolist() for expert in coming]
        order = np.random.default_rng(0)
        return [some[index] for some in (first, later) for index in order.permutation(len(some)).tolist()]

    def _slowest_first(self, held: Held) -> list[int]:
        """Ranks by how long their experts and their busiest port take together."""
        p, expert_P = self.rough, held.placement()
        rows_SR, touched_SR, filled_R = p.moe.rank_load(p.load, expert_P)
        busy_SR = p.moe.expert_s(rows_SR, touched_SR, filled_R.astype(float))
        if p.moe.has_exchange:
            volumes = p.moe.copies(p.load, expert_P, rows_SR)
            copies_SRR = [sends.between(volumes) for sends in p.moe.exchange.sends]
            sent_SR = np.zeros_like(busy_SR)
            for block in p.moe.exchange.pair_blocks:
                seconds_SU = block.seconds_SU(copies_SRR, light=False)
                unit_R = block.passing[0].unit_R if isinstance(block, PairBlock) else np.arange(p.num_ranks)
                sent_SR = np.maximum(sent_SR, seconds_SU[:, unit_R])
            busy_SR = busy_SR + sent_SR * ((p.moe.dispatch_bytes + p.moe.combine_bytes) / p.moe.etp)
        return [int(rank) for rank in np.argsort(-busy_SR.mean(axis=0), kind="stable")]


def _moved(flows: Flows, rank: int, power: int | None, now: float) -> float | None:
    """Take the best step of a rank; the objective then, None if nothing helps."""
    found = flows.best_step(rank, power)
    if found is None or found[0] >= 0:
        return None
    back = _make(flows.held, found[1])
    after = flows.refreshed(power)
    if after < now * (1 - _TINY):
        return after
    _make(flows.held, back)  # only single precision liked it
    flows.refresh()
    return None


def _make(held: Held, step: Step) -> Step:
    """Make a step; the one that takes it back."""
    rank, slot, place, expert = step
    if expert is None:
        held.exchange(rank, slot, *held.at(place))
        return step
    gone = held.of_rank[rank][slot]
    held.replace(rank, slot, expert)
    return rank, slot, place, gone


def _with_few_tokens(problem: LayerProblem) -> LayerProblem:
    """The same layer with fewer of the recorded tokens, of every window alike; pricing all of them takes long."""
    load = problem.load
    if load.sets is None or problem.moe.exchange.ranks_share_volume or len(load.sets.window_N) <= _TOKENS:
        return problem
    every = -(-len(load.sets.window_N) // _TOKENS)
    starts = np.searchsorted(load.sets.window_N, np.arange(problem.num_windows))
    place_N = np.arange(len(load.sets.window_N)) - starts[load.sets.window_N]
    some_N = place_N % every == 0  # the first of every window is one of them
    sets = TokenSets(load.sets.window_N[some_N], load.sets.experts_NLK[some_N])
    return replace(problem, load=replace(load, sets=sets))


def _numbers(problem: LayerProblem) -> float:
    """About how many numbers are worked on to price a placement."""
    ranks, load = problem.num_ranks, problem.load
    if not problem.moe.has_exchange or problem.moe.exchange.ranks_share_volume:
        return float(problem.num_windows * problem.num_slots * ranks)
    if load.sets is None:
        return float(_LOGARITHM * problem.num_windows * problem.num_slots * ranks)
    return float(load.sets.experts_NLK.size * ranks * ranks)


def _apart(shared_RR: Floats, node_R: Ints, slots_R: Ints) -> Ints:
    """Which rank's experts each rank gets, so that little is shared inside nodes: swaps of two, the best first."""
    place_R, ranks = np.arange(len(node_R)), np.arange(len(node_R))  # where the experts of each rank go
    node_RN = np.asarray(node_R[:, None] == np.arange(node_R.max() + 1), dtype=float)
    inside_RN = np.einsum("rs,sn->rn", shared_RR, node_RN)  # no BLAS: the same on any number of cores
    while True:
        at_R = node_R[place_R]
        there_RR, own_R = inside_RN[:, at_R], inside_RN[ranks, at_R]
        change_RR = there_RR + there_RR.T - own_R[:, None] - own_R - 2 * shared_RR
        change_RR[(at_R[:, None] == at_R) | (slots_R[:, None] != slots_R)] = 0.0
        best = int(change_RR.argmin())
        if change_RR.flat[best] >= -_TINY * shared_RR.sum():
            return np.argsort(place_R)
        one, other = divmod(best, len(ranks))
        moved_R = shared_RR[:, other] - shared_RR[:, one]
        inside_RN[:, at_R[one]] += moved_R
        inside_RN[:, at_R[other]] -= moved_R
        place_R[[one, other]] = place_R[[other, one]]
