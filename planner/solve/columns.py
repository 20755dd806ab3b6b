"""The Booleans of the placement program: where the copies of an expert are, and what that gives ranks to do.

Where copies share evenly, what one serves depends on their number alone: x[e, r, k] says that expert e has k copies
and one of them is on rank r (`CopyColumns`). Where the nearest copy serves, it depends on where all of them are:
z[e, C] says that the copies of expert e are on the set C of ranks (`SetColumns`); that takes few ranks.

Legend: S windows, E experts, R ranks, U units, k copies, J Booleans (columns).
"""

from __future__ import annotations

import itertools
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from ortools.sat.python import cp_model

from planner.cost.blocks import RANKS, SlowPairs
from planner.cost.moe import touched_of_shares
from planner.solve.problem import LayerProblem

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


class Columns(Protocol):
    """Booleans with what each, if it is 1, makes every rank and unit do."""

    variables: list[cp_model.IntVar]
    rows_SRJ: Floats
    touched_SRJ: Floats
    units_SUJ: Floats
    """Seconds per byte on each unit; no units where traffic is not linear in the Booleans."""

    def hint(self, member_ER: Bools) -> None:
        """Begin where these ranks hold these experts."""

    def held(self, solver: cp_model.CpSolver) -> list[list[int]]:
        """Experts of each rank in a solution."""


def columns_of(problem: LayerProblem, model: cp_model.CpModel) -> Columns:
    """Variables and the constraints (C1) to (C3) and (C6), added to a model."""
    return SetColumns(problem, model) if problem.serves_nearest else CopyColumns(problem, model)


class CopyColumns:
    """x[e, r, k], and y[e, k]: whether expert e has k copies."""

    def __init__(self, problem: LayerProblem, model: cp_model.CpModel) -> None:
        self.problem, self.model = problem, model
        shape = (problem.num_experts, problem.num_ranks, problem.most_copies)
        self.variables = [
            model.new_bool_var(f"x[{e},{r},{k + 1}]") for e, r, k in itertools.product(*map(range, shape))
        ]
        self.x = np.array(self.variables, dtype=object).reshape(shape)
        self._assign()
        if may_fix_hottest(problem):
            model.add_exactly_one(self.x[hottest(problem), 0].tolist())
        self._keep_groups()
        self.rows_SRJ, self.touched_SRJ, self.units_SUJ = self._costs()

    def _assign(self) -> None:
        p, model = self.problem, self.model
        if p.most_copies > 1:
            for expert in range(p.num_experts):
                chosen = [model.new_bool_var(f"y[{expert},{k + 1}]") for k in range(p.most_copies)]
                model.add_exactly_one(chosen)
                for k, y in enumerate(chosen):
                    model.add(sum(self.x[expert, :, k].tolist()) == (k + 1) * y)
                for rank in range(p.num_ranks):
                    model.add_at_most_one(self.x[expert, rank].tolist())
        else:
            for expert in range(p.num_experts):
                model.add_exactly_one(self.x[expert, :, 0].tolist())
        for rank in range(p.num_ranks):
            model.add(sum(self.x[:, rank].reshape(-1).tolist()) == int(p.slots_R[rank]))

    def _keep_groups(self) -> None:
        p, model = self.problem, self.model
        for home, expert in group_homes(p, model):
            for rank in range(p.num_ranks):
                for variable in self.x[expert, rank].tolist():
                    model.add_implication(variable, home[int(p.node_R[rank])])

    def _costs(self) -> tuple[Floats, Floats, Floats]:
        p = self.problem
        copies = np.arange(1, p.most_copies + 1)
        rows_SEk = p.rows_SE[:, :, None] / copies
        touched_SEk = np.stack([p.touched_SE(float(k)) for k in copies], axis=2)
        on_rank = np.eye(p.num_ranks)[:, None, :, None]  # rank, expert, rank of the Boolean, copies
        shape = (p.num_windows, p.num_ranks, -1)
        rows_SRJ = (rows_SEk[:, None, :, None, :] * on_rank).reshape(shape)
        touched_SRJ = (touched_SEk[:, None, :, None, :] * on_rank).reshape(shape)
        units_SUJ = rows_SEk[:, None, :, None, :] * self._units()[None, :, None, :, None]
        return rows_SRJ, touched_SRJ, units_SUJ.reshape(p.num_windows, -1, len(self.variables))

    def _units(self) -> Floats:
        """For each unit of the exchange, seconds per byte that a row on each rank costs it [U, R]."""
        p, moe = self.problem, self.problem.moe
        if not (moe.has_exchange and moe.exchange.ranks_share_volume):
            return np.zeros((0, p.num_ranks))
        columns_RU = moe.exchange.unit_seconds_SU({RANKS: np.eye(p.num_ranks) / moe.etp})
        units_UR = np.unique(columns_RU.T, axis=0)
        return np.asarray(units_UR[units_UR.any(axis=1)])

    def hint(self, member_ER: Bools) -> None:
        """See `Columns`."""
        copies_E = member_ER.sum(axis=1)
        for rank, expert, k in itertools.product(*map(range, (self.x.shape[1], self.x.shape[0], self.x.shape[2]))):
            here = bool(member_ER[expert, rank] and copies_E[expert] == k + 1)
            self.model.add_hint(self.x[expert, rank, k], here)

    def held(self, solver: cp_model.CpSolver) -> list[list[int]]:
        """See `Columns`."""
        experts, ranks, _ = self.x.shape
        on_ER = [[any(solver.boolean_value(v) for v in self.x[e, r]) for r in range(ranks)] for e in range(experts)]
        return [np.flatnonzero([on_ER[e][r] for e in range(experts)]).tolist() for r in range(ranks)]


class SetColumns:
    """z[e, C]: whether the copies of expert e are on the ranks C, and nowhere else."""

    def __init__(self, problem: LayerProblem, model: cp_model.CpModel) -> None:
        self.problem, self.model = problem, model
        ranks = range(problem.num_ranks)
        sizes = range(1, problem.most_copies + 1)
        self.sets = [one for size in sizes for one in itertools.combinations(ranks, size) if self._is_legal(one)]
        self.z = [
            [model.new_bool_var(f"z[{expert},{one}]") for one in self.sets] for expert in range(problem.num_experts)
        ]
        self.variables = [variable for of_expert in self.z for variable in of_expert]
        self._assign()
        self._keep_groups()
        self.rows_SRJ, self.touched_SRJ, self.units_SUJ = self._costs()

    def _is_legal(self, ranks: tuple[int, ...]) -> bool:
        p = self.problem
        return p.group_E is None or len(set(p.node_R[list(ranks)].tolist())) == 1

    def _assign(self) -> None:
        p, model = self.problem, self.model
        for of_expert in self.z:
            model.add_exactly_one(of_expert)
        for rank in range(p.num_ranks):
            on = [
                variable
                for of_expert in self.z
                for one, variable in zip(self.sets, of_expert, strict=True)
                if rank in one
            ]
            model.add(sum(on) == int(p.slots_R[rank]))
        if may_fix_hottest(p):
            of_hottest = self.z[hottest(p)]
            model.add_exactly_one(variable for one, variable in zip(self.sets, of_hottest, strict=True) if 0 in one)

    def _keep_groups(self) -> None:
        p = self.problem
        for home, expert in group_homes(p, self.model):
            for one, variable in zip(self.sets, self.z[expert], strict=True):
                self.model.add_implication(variable, home[int(p.node_R[one[0]])])

    def _costs(self) -> tuple[Floats, Floats, Floats]:
        p, moe = self.problem, self.problem.moe
        member_JR = np.array([[rank in one for rank in range(p.num_ranks)] for one in self.sets])
        part_JRH = moe.sharing.part_BRH(member_JR)
        part_RJ = part_JRH.mean(axis=2).T
        rows_SREJ = p.rows_SE[:, None, :, None] * part_RJ[None, :, None, :]
        share_SREJ = p.load.share_SE[:, None, :, None] * part_RJ[None, :, None, :]
        shape = (p.num_windows, p.num_ranks, -1)
        touched_SREJ = touched_of_shares(p.load, moe.tokens, share_SREJ)
        units_UJ = self._units(part_JRH)
        units_SUEJ = p.rows_SE[:, None, :, None] * units_UJ[None, :, None, :]
        return (
            rows_SREJ.reshape(shape),
            touched_SREJ.reshape(shape),
            units_SUEJ.reshape(p.num_windows, -1, len(self.variables)),
        )

    def _units(self, part_JRH: Floats) -> Floats:
        """Seconds per byte on each unit that one row of an expert on each set of ranks costs [U, sets]."""
        moe, sets = self.problem.moe, len(part_JRH)
        if not (moe.has_exchange and moe.exchange.ranks_share_volume):
            return np.zeros((0, sets))
        arriving = part_JRH / (moe.num_ranks * moe.etp)
        copies_SRR = [sends.between({RANKS: arriving}) for sends in moe.exchange.sends]
        found = []
        for block in moe.exchange.pair_blocks:
            if isinstance(block, SlowPairs):  # each pair by itself: the slowest of several is not linear
                found.append((copies_SRR[block.sends] * block.seconds_RR).reshape(sets, -1))
            else:
                found.append(block.seconds_SU(copies_SRR, light=False))
        units_UJ = np.unique(np.concatenate(found, axis=1).T, axis=0)
        return np.asarray(units_UJ[units_UJ.any(axis=1)])

    def hint(self, member_ER: Bools) -> None:
        """See `Columns`."""
        for of_expert, member_R in zip(self.z, member_ER, strict=True):
            on = tuple(np.flatnonzero(member_R).tolist())
            for one, variable in zip(self.sets, of_expert, strict=True):
                self.model.add_hint(variable, one == on)

    def held(self, solver: cp_model.CpSolver) -> list[list[int]]:
        """See `Columns`."""
        chosen = [
            next(one for one, variable in zip(self.sets, of_expert, strict=True) if solver.boolean_value(variable))
            for of_expert in self.z
        ]
        return [[e for e, one in enumerate(chosen) if rank in one] for rank in range(self.problem.num_ranks)]


def group_homes(problem: LayerProblem, model: cp_model.CpModel) -> list[tuple[list[cp_model.IntVar], int]]:
    """(C6): for each expert whose group must stay together, the Booleans g[group, node], one of which is 1."""
    if problem.group_E is None:
        return []
    nodes, found = int(problem.node_R.max()) + 1, []
    for group in range(int(problem.group_E.max()) + 1):
        home = [model.new_bool_var(f"g[{group},{node}]") for node in range(nodes)]
        model.add_exactly_one(home)
        found += [(home, expert) for expert in np.flatnonzero(problem.group_E == group).tolist()]
    return found


def may_fix_hottest(problem: LayerProblem) -> bool:
    """Whether any rank can be mapped to any other, so that the hottest expert may as well sit on rank 0."""
    alike = bool((problem.slots_R == problem.slots_R[0]).all()) and problem.moe.num_classes == 1
    return alike and problem.moe.exchange.interchangeable and problem.block_R is None  # blocks may lie across nodes


def hottest(problem: LayerProblem) -> int:
    """The expert with the most rows."""
    return int(problem.rows_SE.sum(axis=0).argmax())
