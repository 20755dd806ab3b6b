"""Plan on some windows, judge on others: max/mean of the ranks' rows against the baselines."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.cases import (
    DEEPSEEK,
    DEEPSEEK_NO_COPIES,
    GPT_OSS,
    Case,
    arrays_of,
    trace_in,
    write_sequences,
    write_windows,
)
from planner.cost.prepare import from_deployment
from planner.inputs.deployment import Overrides, load_deployment
from planner.review.compare import compare
from planner.solve.request import solve_deployment
from planner.solve.watch import NoWatch
from planner.solve.workers import Workers

_SHOWN = ("plan", "eplb", "eplb_hierarchical", "linear")


@dataclass(frozen=True)
class Judged:
    """Max/mean on windows that the plan has not seen, averaged over layers and windows."""

    name: str
    imbalance: dict[str, float]
    gap: float
    solve_s: float

    @property
    def gone(self) -> float:
        """Part of EPLB's excess over 1 that the plan removes."""
        return 1 - (self.imbalance["plan"] - 1) / (self.imbalance["eplb"] - 1)


def judged(case: Case, name: str, seen: Path, unseen: Path, folder: Path) -> Judged:
    """Solve for one trace, compare on another."""
    started = time.perf_counter()
    loaded = load_deployment(case.write(folder, seen), Overrides())
    prepared = from_deployment(loaded)
    output = folder / "plan.json"
    with Workers() as workers:
        solved = solve_deployment(loaded, prepared, output, workers, NoWatch())
    seconds = time.perf_counter() - started
    assert solved.plan is not None
    scores = compare(solved.plan, output, [unseen]).scores
    imbalance = {score.name: 1 + score.imbalance_ratio for score in scores}
    return Judged(name, imbalance, solved.plan.solver.gap, seconds)


def leave_one_out(case: Case, data: Path) -> Iterator[Judged]:
    """Recorded scenarios of one model: plan on all but one, judge on that one."""
    trace = arrays_of(trace_in(data, case.trace))
    count = len(trace["counts"])
    for left_out in range(count):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            seen = write_windows(trace, [w for w in range(count) if w != left_out], folder / "seen.npz")
            unseen = write_windows(trace, [left_out], folder / "unseen.npz")
            yield judged(case, str(trace["scenario_names"][left_out]), seen, unseen, folder)


def by_sequences(data: Path) -> Iterator[Judged]:
    """gpt-oss-20b: plan on some sequences, judge on the others, in three ways of parting them."""
    trace = arrays_of(trace_in(data, GPT_OSS.trace))
    sequence_T = trace["seq_id"].astype(np.int64)
    order_T = np.unique(sequence_T, return_inverse=True)[1]
    ways = {
        "every other sequence": order_T % 2 == 0,
        "first half": order_T < order_T.max() / 2,
        "last half": order_T >= order_T.max() / 2,
    }
    for name, keep_T in ways.items():
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            seen = write_sequences(trace, keep_T, folder / "seen.npz")
            unseen = write_sequences(trace, ~keep_T, folder / "unseen.npz")
            yield judged(GPT_OSS, f"planned on {name}", seen, unseen, folder)


def _show(title: str, rows: Sequence[Judged], console: Console) -> None:
    table = Table(title=title, box=None, title_justify="left")
    for column in ("judged on", *_SHOWN, "EPLB's excess gone", "gap", "solved in"):
        table.add_column(column, justify="left" if column == "judged on" else "right")
    for row in rows:
        cells = [f"{row.imbalance[name]:.3f}" if name in row.imbalance else "-" for name in _SHOWN]
        table.add_row(row.name, *cells, f"{row.gone:.1%}", f"{row.gap:.2%}", f"{row.solve_s:.1f} s")
    console.print(table)
    console.print(f"mean of EPLB's excess gone: {np.mean([row.gone for row in rows]):.1%}\n")


def _show_against_copies(without: Sequence[Judged], with_copies: Sequence[Judged], console: Console) -> None:
    """A plan without copies beside EPLB with them: what a good placement saves in memory."""
    table = Table(title="No copies, beside EPLB with 32 copies", box=None, title_justify="left")
    for column in ("judged on", "plan, 256 slots", "EPLB, 288 slots"):
        table.add_column(column, justify="left" if column == "judged on" else "right")
    for plan, other in zip(without, with_copies, strict=True):
        table.add_row(plan.name, f"{plan.imbalance['plan']:.3f}", f"{other.imbalance['eplb']:.3f}")
    console.print(table, "")


def run(data: Path | None, console: Console) -> None:
    """Print the tables."""
    if data is None:
        console.print("held-out: needs recorded traces; give --data or EP_PLAN_DATA")
        return
    conditions = "prefill, 4,096 tokens per GPU"
    deepseek = "DeepSeek-V3, 4 x 8 H100, ep=32, {} slots, {}; one scenario left out"
    with_copies = list(leave_one_out(DEEPSEEK, data))
    _show(deepseek.format(288, conditions), with_copies, console)
    without = list(leave_one_out(DEEPSEEK_NO_COPIES, data))
    _show(deepseek.format(256, conditions), without, console)
    _show_against_copies(without, with_copies, console)
    _show(f"gpt-oss-20b, 2 x 4 H100, ep=8, 40 slots, {conditions}", list(by_sequences(data)), console)
