"""What the search objective is worth on windows not seen: stretch of windows, rising groups, and the sharp polish.

Places single layers by their plain load (rows only) on some windows and judges on the others:

- DeepSeek-V3, one scenario left out, with and without copies, for several `Stretch` of `planner.solve.weights`, with
  and without windows in which one routing group rises;
- gpt-oss-20b (no routing groups), a window being one domain: a few domains seen, judged on all others.

The defaults there, and what `planner.solve.place` lets a smooth placement cost, follow from these tables.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.cases import DEEPSEEK, DEEPSEEK_NO_COPIES, GPT_OSS, Case, arrays_of, trace_in
from planner.baselines import eplb_layer
from planner.solve.held import Held
from planner.solve.problem import LayerProblem, plain_load_problem
from planner.solve.sharp import SharpSearch
from planner.solve.smooth import SmoothSearch
from planner.solve.start import start
from planner.solve.weights import Stretch, smooth_table, stretch_of, weight_table

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

DEEPSEEK_GROUPS = 8
"""`n_group` of its config.json."""
_STRETCHES = (Stretch(), Stretch(1.5), Stretch(2.0), Stretch(1.0, 0.35), Stretch(1.5, 0.35), Stretch(1.5, 0.5))
_EVERY = 2
_FEW_DOMAINS = (3, 5, 7)
_DRAWS = 6


def placed(problem: LayerProblem, stretch: Stretch, groups: int = 1, *, polish: bool) -> Ints:
    """Local search with a given stretch of windows and rising groups, with or without the sharp polish."""
    weights = weight_table(problem)
    smooth = smooth_table(weights, problem.num_ranks, groups, stretch)
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


def _by_scenarios(case: Case, data: Path, console: Console) -> None:
    """DeepSeek-V3, one scenario left out, every other layer."""
    trace = arrays_of(trace_in(data, case.trace))
    counts_SLE = trace["counts"].astype(float)
    ranks, slots = case.ep, counts_SLE.shape[2] + case.redundant
    slots_R = np.full(ranks, slots // ranks)
    rising = (stretch_of(len(counts_SLE) - 1), DEEPSEEK_GROUPS)
    variants = list(itertools.product([*((stretch, 1) for stretch in _STRETCHES), rising], (False, True)))
    excess: dict[object, list[float]] = {name: [] for name in ["eplb", *variants]}
    for left_out in range(len(counts_SLE)):
        seen = [window for window in range(len(counts_SLE)) if window != left_out]
        found: dict[object, list[float]] = {name: [] for name in excess}
        for layer in range(0, counts_SLE.shape[1], _EVERY):
            problem = plain_load_problem(counts_SLE[seen, layer], slots_R)
            judge = counts_SLE[left_out, layer]
            eplb = eplb_layer(counts_SLE[seen, layer].sum(axis=0), slots, 1, 1, ranks)
            found["eplb"].append(imbalance(eplb, judge, ranks))
            for variant in variants:
                (stretch, groups), polish = variant
                placement = placed(problem, stretch, groups, polish=polish)
                found[variant].append(imbalance(placement, judge, ranks))
        for name, values in found.items():
            excess[name].append(float(np.mean(values)) - 1)
    title = f"{case.name}, {slots} slots on {ranks} ranks, one scenario left out"
    table = Table(title=title, box=None, title_justify="left")
    for column in ("factor / floor", "groups", "polish", *trace["scenario_names"].tolist(), "EPLB's excess gone"):
        table.add_column(str(column), justify="right")
    table.add_row("eplb", "", "", *(f"{1 + value:.3f}" for value in excess["eplb"]), "")
    for variant in variants:
        (stretch, groups), polish = variant
        values = excess[variant]
        gone = np.mean(1 - np.array(values) / np.array(excess["eplb"]))
        row = (f"{1 + value:.3f}" for value in values)
        names = f"{stretch.factor:g} / {stretch.floor:g}", "rise" if groups > 1 else "", "sharp" if polish else "smooth"
        table.add_row(*names, *row, f"{gone:.1%}")
    console.print(table)
    console.print(f"in use for {len(seen)} windows: {stretch_of(len(seen))}, groups rise\n")


def _by_domains(data: Path, console: Console) -> None:
    """gpt-oss-20b: smooth or sharp, and what the smooth placement costs on the windows seen."""
    trace = arrays_of(trace_in(data, GPT_OSS.trace))
    ids_TLK, domain_T = trace["expert_ids"].astype(np.int64), trace["domain_id"]
    experts = int(trace["num_experts"])
    layers = range(0, ids_TLK.shape[1], 2)
    counts_SLE = np.array(
        [
            [np.bincount(ids_TLK[domain_T == domain, layer].ravel(), minlength=experts) for layer in layers]
            for domain in np.unique(domain_T)
        ],
        dtype=float,
    )
    table = Table(title=f"{GPT_OSS.name}, a few domains seen, the others judged", box=None, title_justify="left")
    for column in ("ranks", "slots", "domains seen", "EPLB", "smooth", "sharp", "smooth costs, seen"):
        table.add_column(column, justify="right")
    for ranks, slots in ((8, 32), (8, 40), (16, 32), (16, 48)):
        for few in _FEW_DOMAINS:
            eplb, smooth, sharp, cost = np.mean(_domain_draws(counts_SLE, few, ranks, slots), axis=0)
            row = (f"{1 + value:.3f}" for value in (eplb, smooth, sharp))
            table.add_row(str(ranks), str(slots), str(few), *row, f"{cost:.1%}")
    console.print(table, "")


def _domain_draws(counts_SLE: Floats, few: int, ranks: int, slots: int) -> Floats:
    """Excess of EPLB, smooth and sharp placements on unseen domains, and the smooth one's cost; per draw and layer."""
    slots_R, rows = np.full(ranks, slots // ranks), []
    for draw in range(_DRAWS):
        order = np.random.default_rng(draw).permutation(len(counts_SLE))
        seen, unseen = order[:few], order[few:]
        for layer in range(counts_SLE.shape[1]):
            problem = plain_load_problem(counts_SLE[seen, layer], slots_R)
            smooth_P, sharp_P = (placed(problem, stretch_of(few), polish=polish) for polish in (False, True))
            eplb_P = eplb_layer(counts_SLE[seen, layer].sum(axis=0), slots, 1, 1, ranks)
            excess = [
                np.mean([imbalance(placement, counts_SLE[window, layer], ranks) for window in unseen]) - 1
                for placement in (eplb_P, smooth_P, sharp_P)
            ]
            rows.append([*excess, problem.seconds(smooth_P) / problem.seconds(sharp_P) - 1])
    return np.array(rows)


def run(data: Path | None, console: Console) -> None:
    """Print the tables."""
    if data is None:
        console.print("generalisation: needs recorded traces; give --data or EP_PLAN_DATA")
        return
    for case in (DEEPSEEK, DEEPSEEK_NO_COPIES):
        _by_scenarios(case, data, console)
    _by_domains(data, console)
