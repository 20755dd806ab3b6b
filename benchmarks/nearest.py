"""Copies that serve by nearness: what a plan that reckons with it gains over one that takes copies to share evenly.

Every placement is priced as SGLang runs it with an all-to-all: own GPU, else own node, else any copy. Plans are made
from every other window (DeepSeek-V3: scenario; gpt-oss-20b: sequence) and judged on these and on the others. One layer
at a time, every sixth of DeepSeek-V3, by the same code as `ep-plan solve`. Seconds are means over layers and windows.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.cases import DEEPSEEK, GPT_OSS, Case, arrays_of, fours_of_h100, trace_in, write_sequences, write_windows
from planner.baselines import eplb_layer
from planner.cost.prepare import from_deployment
from planner.cost.step import split_cost
from planner.inputs.deployment import Overrides, load_deployment
from planner.plan.placement import linear
from planner.plan.split import Split
from planner.solve.place import LayerJob
from planner.solve.problem import LayerProblem
from planner.solve.workers import Workers

Ints = NDArray[np.int64]

_NEAREST = "communication: {kernel: %s, dedup: %s, copies: nearest}\n"
_EVERY = 6
"""Layers of DeepSeek-V3 from one that is placed to the next."""


@dataclass(frozen=True)
class _Sides:
    """The same layers on the windows that plans are made from, and on the others."""

    planning: Sequence[LayerProblem]
    judging: Sequence[LayerProblem]
    loads_LE: NDArray[np.float64]
    nodes: int


def _layers(case: Case, trace: Path, folder: Path) -> tuple[list[LayerProblem], NDArray[np.float64], int]:
    instance = from_deployment(load_deployment(case.write(folder, trace), Overrides())).instance
    stage = split_cost(instance, Split(1, case.ep, 1, case.ep), case.redundant).stages[0]
    assert instance.windows is not None
    every = _EVERY if case.model == DEEPSEEK.model else 1
    problems = [LayerProblem(stage.moe, load, stage.slots_R) for load in instance.loads[::every]]
    return problems, instance.windows.counts_SLE.sum(axis=0)[::every].astype(float), instance.topology.num_nodes


def _sides(case: Case, data: Path, folder: Path) -> _Sides:
    trace = arrays_of(trace_in(data, case.trace))
    seen, unseen = folder / "seen.npz", folder / "unseen.npz"
    if "counts" in trace:
        scenarios = range(len(trace["counts"]))
        write_windows(trace, scenarios[::2], seen)
        write_windows(trace, scenarios[1::2], unseen)
    else:
        order_T = np.unique(trace["seq_id"].astype(np.int64), return_inverse=True)[1]
        write_sequences(trace, order_T % 2 == 0, seen)
        write_sequences(trace, order_T % 2 == 1, unseen)
    planning, loads_LE, nodes = _layers(case, seen, folder)
    return _Sides(planning, _layers(case, unseen, folder)[0], loads_LE, nodes)


def _placed(problems: Sequence[LayerProblem], workers: Workers) -> list[Ints]:
    found = dict(workers.place([LayerJob(problem, 0.0, 0, 0.01) for problem in problems]))
    return [found[index].expert_P for index in range(len(problems))]


def _placements(sides: _Sides) -> Mapping[str, list[Ints]]:
    planning = sides.planning
    experts, slots, ranks = planning[0].num_experts, planning[0].num_slots, planning[0].num_ranks
    with Workers() as workers:
        return {
            "linear": [linear(experts, problem.slots_R) for problem in planning],
            "EPLB": [eplb_layer(load_E, slots, 1, 1, ranks) for load_E in sides.loads_LE],
            "EPLB by nodes": [eplb_layer(load_E, slots, sides.nodes, sides.nodes, ranks) for load_E in sides.loads_LE],
            "plan, as if even": _placed([problem.shared_evenly() for problem in planning], workers),
            "plan": _placed(planning, workers),
        }


def _show(case: Case, kernel: str, dedup: str, data: Path, console: Console) -> None:
    with tempfile.TemporaryDirectory() as name:
        sides = _sides(replace(case, more=_NEAREST % (kernel, dedup)), data, Path(name))
        placements = _placements(sides)
    where = f"{case.ep} GPUs on {sides.nodes} nodes, {case.redundant} copies"
    console.print(f"{case.name}, {where}, {kernel}, dedup {dedup}")
    table = Table(box=None)
    for column in ("placed by", "ms", "ms, held out", "max/mean, held out"):
        table.add_column(column, justify="left" if column == "placed by" else "right")
    for name, placed in placements.items():
        pairs = list(zip(sides.planning, sides.judging, placed, strict=True))
        seen = np.mean([planning.seconds(expert_P) for planning, _, expert_P in pairs])
        unseen = np.mean([judging.seconds(expert_P) for _, judging, expert_P in pairs])
        rows = [judging.moe.rank_load(judging.load, expert_P)[0] for _, judging, expert_P in pairs]
        balance = np.mean([(rows_SR.max(axis=1) / rows_SR.mean(axis=1)).mean() for rows_SR in rows])
        table.add_row(name, f"{1e3 * seen:.3f}", f"{1e3 * unseen:.3f}", f"{balance:.3f}")
    console.print(table)
    console.print()


def run(data: Path | None, console: Console) -> None:
    """Print a table for each model, machine and kernel."""
    if data is None:
        console.print("nearest: needs recorded traces; give --data or EP_PLAN_DATA")
        return
    for nodes, redundant in ((2, 8), (4, 16)):
        machine = fours_of_h100(nodes, "50 GB/s")
        case = replace(GPT_OSS, topology=machine, redundant=redundant, ep=4 * nodes)
        for dedup in ("expert", "node"):
            _show(case, "all-to-all", dedup, data, console)
    for kernel, dedup in (("all-to-all", "expert"), ("deepep-normal", "node")):
        _show(DEEPSEEK, kernel, dedup, data, console)
