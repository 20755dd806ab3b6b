"""Visits of recorded token sets in the integer program: (C5) where tokens travel once to a rank or domain.

For every distinct set h of experts that tokens chose together, and every unit x (rank or domain) that
traffic depends on, u[h, x] is at least the probability that such a token visits x. Without copies that
is 1 if one of its experts is there. With copies it is 1 - prod over e in h of (1 - n[e, x] / k[e]), n
copies of k being there, which is no linear function: a table lists its values. Sets with more rows in
their table than `_MOST_ROWS` get the largest share of one of their experts instead, which is less than
the truth: the program then proves less, and never too much.

Legend: S windows, E experts, R ranks, X ranks or domains, U ports, uplinks or pairs, k copies.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from ortools.sat.python import cp_model

from planner.cost.traffic import unit_of_rank
from planner.solve.problem import LayerProblem

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

ONE: Final = 1 << 24
"""A visit for certain, as an integer; parts of it are rounded down."""
_MOST_ROWS: Final = 2000
_MOST_VISITS: Final = 300
"""Pairs of set and unit; with more the program spends its effort and proves nothing."""


class Visits:
    """Variables u[h, x] of one program.

    Args:
        problem: the layer.
        model: to which they are added.
        x: its binaries [E, R, k], 1 if an expert has k copies and one of them is on the rank.
    """

    def __init__(self, problem: LayerProblem, model: cp_model.CpModel, x: NDArray[np.object_]) -> None:
        self.problem, self.model, self.x = problem, model, x
        self._numbers: dict[tuple[int, int, int], cp_model.IntVar] = {}
        self._copies: dict[int, cp_model.IntVar] = {}
        self._known: dict[tuple[tuple[int, ...], int, int], cp_model.IntVar] = {}

    @staticmethod
    def fit(problem: LayerProblem) -> bool:
        """Whether there are recorded sets, and few enough."""
        if problem.load.sets is None or problem.moe.exchange.ranks_share_volume or not problem.moe.has_exchange:
            return False
        units = len(problem.moe.exchange.unit_table()[1])
        return len(_distinct(problem)) * units <= _MOST_VISITS

    def rows(self) -> list[list[list[tuple[cp_model.IntVar, float]]]]:
        """For each window and unit of the exchange, what it takes: seconds per byte of each visit that is certain.

        Returns:
            by window, by unit: pairs of a variable and seconds per byte at `ONE`.
        """
        problem, exchange = self.problem, self.problem.moe.exchange
        keys, table_XU = exchange.unit_table()
        kept = table_XU[:, table_XU.any(axis=0)] * (problem.moe.tokens / problem.moe.etp)
        places = [(key, unit) for key in keys for unit in range(int(unit_of_rank(exchange, key).max()) + 1)]
        found = []
        for weight_of in self._weights():
            units = []
            for seconds_X in kept.T:
                terms = [
                    (self._visit(experts, *places[place]), weight * float(seconds_X[place]))
                    for experts, weight in weight_of.items()
                    for place in np.flatnonzero(seconds_X).tolist()
                ]
                units.append(terms)
            found.append(units)
        return found

    def _weights(self) -> list[dict[tuple[int, ...], float]]:
        """Part of each window's tokens that chose each set."""
        sets = self.problem.load.sets
        assert sets is not None
        rows_N = [_set(row) for row in sets.experts_NLK[:, 0]]
        tokens_S = np.bincount(sets.window_N, minlength=self.problem.num_windows)
        found: list[dict[tuple[int, ...], float]] = [{} for _ in tokens_S]
        for window, experts in zip(sets.window_N.tolist(), rows_N, strict=True):
            if experts:
                found[window][experts] = found[window].get(experts, 0.0) + 1.0 / int(tokens_S[window])
        return found

    def _visit(self, experts: tuple[int, ...], key: int, unit: int) -> cp_model.IntVar:
        """u[h, x], made when first asked for."""
        at = experts, key, unit
        if at not in self._known:
            name = f"u[{experts},{key},{unit}]"
            ranks = np.flatnonzero(unit_of_rank(self.problem.moe.exchange, key) == unit).tolist()
            if self.problem.most_copies == 1:
                here = self.model.new_bool_var(name)
                for variable in self.x[list(experts)][:, ranks].reshape(-1).tolist():
                    self.model.add_implication(variable, here)
                whole = self.model.new_int_var(0, ONE, name)
                self.model.add(whole == ONE * here)
                self._known[at] = whole
            else:
                self._known[at] = self._shared(experts, key, unit, ranks)
        return self._known[at]

    def _shared(self, experts: tuple[int, ...], key: int, unit: int, ranks: Sequence[int]) -> cp_model.IntVar:
        """The same where experts may have copies on several units."""
        visit = self.model.new_int_var(0, ONE, f"u[{experts},{key},{unit}]")
        most = self.problem.most_copies
        states = [(n, k) for k in range(1, most + 1) for n in range(min(k, len(ranks)) + 1)]
        if len(states) ** len(experts) > _MOST_ROWS:
            for expert in experts:
                parts = [(v, ONE // (k + 1)) for r in ranks for k, v in enumerate(self.x[expert, r].tolist())]
                self.model.add(visit >= sum(part * variable for variable, part in parts))
            return visit
        columns: list[cp_model.IntVar] = []
        for expert in experts:
            columns += [self._number(expert, key, unit, ranks), self._number_of_copies(expert)]
        rows = []
        for chosen in itertools.product(states, repeat=len(experts)):
            missed = math.prod(1.0 - n / k for n, k in chosen)
            rows.append([*itertools.chain.from_iterable(chosen), math.floor((1.0 - missed) * ONE * (1.0 - 1e-12))])
        self.model.add_allowed_assignments([*columns, visit], rows)
        return visit

    def _number(self, expert: int, key: int, unit: int, ranks: Sequence[int]) -> cp_model.IntVar:
        """Copies of an expert on a unit."""
        at = expert, key, unit
        if at not in self._numbers:
            number = self.model.new_int_var(0, min(len(ranks), self.problem.most_copies), f"n[{at}]")
            self.model.add(number == sum(self.x[expert, ranks].reshape(-1).tolist()))
            self._numbers[at] = number
        return self._numbers[at]

    def _number_of_copies(self, expert: int) -> cp_model.IntVar:
        if expert not in self._copies:
            copies = self.model.new_int_var(1, self.problem.most_copies, f"k[{expert}]")
            self.model.add(copies == sum(self.x[expert].reshape(-1).tolist()))
            self._copies[expert] = copies
        return self._copies[expert]


def _set(row: NDArray[Any]) -> tuple[int, ...]:
    return tuple(sorted(set(row[row >= 0].tolist())))


def _distinct(problem: LayerProblem) -> set[tuple[int, ...]]:
    assert problem.load.sets is not None
    return {_set(row) for row in np.unique(problem.load.sets.experts_NLK[:, 0], axis=0)}
