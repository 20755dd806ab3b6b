"""How long the shipped examples take to solve, on one and on two cores, and to what gap."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.cases import EXAMPLES
from planner.cost.prepare import from_deployment
from planner.inputs.deployment import Overrides, load_deployment
from planner.plan.plan import Plan
from planner.solve.request import solve_deployment
from planner.solve.watch import NoWatch
from planner.solve.workers import Workers


def timed(deployment: Path, cores: int) -> tuple[Plan, float]:
    """The plan and the seconds from reading the inputs to the checked plan."""
    started = time.perf_counter()
    loaded = load_deployment(deployment, Overrides())
    prepared = from_deployment(loaded)
    with Workers(cores=cores) as workers:
        solved = solve_deployment(loaded, prepared, Path("plan.json"), workers, NoWatch())
    assert solved.plan is not None
    return solved.plan, time.perf_counter() - started


def run(_: Path | None, console: Console) -> None:
    """Print one line per example."""
    table = Table(title="shipped examples", box=None, title_justify="left")
    for column in ("example", "1 core", "2 cores", "ratio", "gap", "candidates"):
        table.add_column(column, justify="left" if column == "example" else "right")
    for deployment in sorted(EXAMPLES.glob("*/deployment.yaml")):
        timed(deployment, 1)  # imports and caches
        plan, one = timed(deployment, 1)
        two = timed(deployment, 2)[1]
        cells = (f"{one:.1f} s", f"{two:.1f} s", f"{one / two:.2f}", f"{plan.solver.gap:.2%}")
        table.add_row(deployment.parent.name, *cells, str(len(plan.candidates)))
    console.print(table)
