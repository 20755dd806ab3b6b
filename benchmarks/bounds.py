"""How strong are the bounds? Against proved optima where instances are small enough, against plans where they are not.

Plain load: a layer's time is the rows of its fullest rank, mean over windows. Loads of small instances are drawn
log-normal (standard deviation 0.8); "optimum" is proved by the integer program. A ratio of 100 % is a tight bound.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.cases import DEEPSEEK, arrays_of, trace_in
from planner.plan.placement import slots_of_ranks
from planner.solve.bounds import layer_bound
from planner.solve.exact import solve_exactly
from planner.solve.place import linear_start, searched
from planner.solve.problem import plain_load_problem

_SMALL = ((8, 4, 0, 1), (8, 4, 0, 4), (8, 4, 4, 1), (8, 4, 4, 4), (9, 3, 0, 2), (9, 3, 3, 2))
"""Experts, ranks, copies, windows."""
_DRAWS = 6
_EFFORT = 20.0
_EVERY = 8


def _small(console: Console) -> None:
    table = Table(title=f"small layers, {_DRAWS} each", box=None, title_justify="left")
    for column in (
        "experts, ranks, copies, windows",
        "bound / optimum",
        "worst",
        "search / optimum",
        "worst",
        "proved",
    ):
        table.add_column(column, justify="right")
    for experts, ranks, copies, windows in _SMALL:
        bounds, found = [], []
        for seed in range(_DRAWS):
            load_SE = np.exp(0.8 * np.random.default_rng(seed).standard_normal((windows, experts)))
            problem = plain_load_problem(load_SE, slots_of_ranks(experts + copies, ranks))
            first_P = linear_start(problem)
            expert_P, seconds, _ = searched(problem, first_P, problem.seconds(first_P))
            exact = solve_exactly(problem, expert_P, _EFFORT, 0, 0.0)
            if exact.seconds - exact.bound <= 1e-6 * exact.seconds:
                bounds.append(layer_bound(problem) / exact.seconds)
                found.append(seconds / exact.seconds)
        cells = (f"{np.mean(bounds):.1%}", f"{min(bounds):.1%}", f"{np.mean(found):.2%}", f"{max(found):.2%}")
        table.add_row(f"{experts}, {ranks}, {copies}, {windows}", *cells, f"{len(bounds)} of {_DRAWS}")
    console.print(table, "")


def _large(data: Path, console: Console) -> None:
    counts_SLE = arrays_of(trace_in(data, DEEPSEEK.trace))["counts"].astype(float)
    title = f"DeepSeek-V3 on 32 ranks, every {_EVERY}th layer: (objective - bound) / objective"
    table = Table(title=title, box=None, title_justify="left")
    for column in ("slots", "windows", "mean gap", "worst gap"):
        table.add_column(column, justify="right")
    for slots in (256, 288):
        for windows in (1, len(counts_SLE)):
            gaps = []
            for layer in range(0, counts_SLE.shape[1], _EVERY):
                load_SE = counts_SLE[:, layer] if windows > 1 else counts_SLE[:, layer].sum(axis=0, keepdims=True)
                problem = plain_load_problem(load_SE, slots_of_ranks(slots, 32))
                first_P = linear_start(problem)
                seconds = searched(problem, first_P, problem.seconds(first_P))[1]
                gaps.append(1 - layer_bound(problem) / seconds)
            table.add_row(f"{slots}", f"{windows}", f"{np.mean(gaps):.2%}", f"{max(gaps):.2%}")
    console.print(table, "")


def run(data: Path | None, console: Console) -> None:
    """Print the tables; the second needs recorded loads."""
    _small(console)
    if data is None:
        console.print("bounds: large layers need recorded traces; give --data or EP_PLAN_DATA")
    else:
        _large(data, console)
