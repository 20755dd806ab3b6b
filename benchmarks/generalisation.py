"""What the search objective is worth on windows not seen: stretch of windows, and the sharp polish.

Places single layers by their plain load (rows only) on some windows and judges on the others, for
several `Stretch` of `planner.solve.weights`; the defaults there follow from these tables.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.cases import DEEPSEEK, arrays_of, trace_in
from planner.baselines import eplb_layer
from planner.solve.held import Held
from planner.solve.problem import LayerProblem, plain_load_problem
from planner.solve.sharp import SharpSearch
from planner.solve.smooth import SmoothSearch
from planner.solve.start import start
from planner.solve.weights import Stretch, smooth_table, stretch_of, weight_table

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_STRETCHES = (Stretch(), Stretch(1.5), Stretch(2.0), Stretch(1.0, 0.35), Stretch(1.5, 0.35), Stretch(1.5, 0.5))
_EVERY = 4


def placed(problem: LayerProblem, stretch: Stretch, *, polish: bool) -> Ints:
    """Local search with a given stretch of windows, with or without the sharp polish."""
    weights = weight_table(problem)
    smooth = smooth_table(weights, problem.num_ranks, stretch)
    held = Held(problem, start(problem, smooth, None))
    SmoothSearch(held, smooth).improve()
    if polish:
        SharpSearch(held, weights).improve()
    return held.placement()


def imbalance(expert_P: Ints, load_E: Floats, ranks: int) -> float:
    """Max/mean over ranks of one window."""
    copies_E = np.bincount(expert_P, minlength=len(load_E))
    load_R = (load_E / copies_E)[expert_P].reshape(ranks, -1).sum(axis=1)
    return float(load_R.max() / load_R.mean())


def run(data: Path | None, console: Console) -> None:
    """DeepSeek-V3, one scenario left out, every fourth layer."""
    if data is None:
        console.print("generalisation: needs recorded traces; give --data or EP_PLAN_DATA")
        return
    trace = arrays_of(trace_in(data, DEEPSEEK.trace))
    counts_SLE = trace["counts"].astype(float)
    ranks, slots = DEEPSEEK.ep, counts_SLE.shape[2] + DEEPSEEK.redundant
    slots_R = np.full(ranks, slots // ranks)
    variants = [(stretch, polish) for stretch in _STRETCHES for polish in (False, True)]
    excess: dict[object, list[float]] = {name: [] for name in ["eplb", *variants]}
    for left_out in range(len(counts_SLE)):
        seen = [window for window in range(len(counts_SLE)) if window != left_out]
        found: dict[object, list[float]] = {name: [] for name in excess}
        for layer in range(0, counts_SLE.shape[1], _EVERY):
            problem = plain_load_problem(counts_SLE[seen, layer], slots_R)
            judge = counts_SLE[left_out, layer]
            eplb = eplb_layer(counts_SLE[seen, layer].sum(axis=0), slots, 1, 1, ranks)
            found["eplb"].append(imbalance(eplb, judge, ranks))
            for stretch, polish in variants:
                found[stretch, polish].append(imbalance(placed(problem, stretch, polish=polish), judge, ranks))
        for name, values in found.items():
            excess[name].append(float(np.mean(values)) - 1)
    table = Table(title="DeepSeek-V3, 288 slots on 32 ranks, one scenario left out", box=None, title_justify="left")
    for column in ("stretch: factor / floor", "polish", *trace["scenario_names"].tolist(), "EPLB's excess gone"):
        table.add_column(str(column), justify="right")
    table.add_row("eplb", "", *(f"{1 + value:.3f}" for value in excess["eplb"]), "")
    for stretch, polish in variants:
        values = excess[stretch, polish]
        gone = np.mean(1 - np.array(values) / np.array(excess["eplb"]))
        row = (f"{1 + value:.3f}" for value in values)
        table.add_row(f"{stretch.factor:g} / {stretch.floor:g}", "sharp" if polish else "smooth", *row, f"{gone:.1%}")
    console.print(table)
    console.print(f"in use for {len(seen)} windows: {stretch_of(len(seen))}\n")
