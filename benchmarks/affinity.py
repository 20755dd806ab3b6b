"""Which experts sit together: copies between nodes against balance, as the fabric between nodes gets slower.

gpt-oss-20b, its even layers, placed from half of the sequences and judged on the others; tokens travel once to a node
and are forwarded there (`dedup: node`). One layer at a time, by the same code as `ep-plan solve`. Copies are nodes
visited by a token, max/mean is that of the ranks' rows; both are means over windows and layers, all held out. Seconds
are those of a layer at 50 GB/s.

Sequences are parted in two ways: every other one ("mixed"), and sorted by domain, the first half against the last
("domains apart"), where the unseen half holds other domains.
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

from benchmarks.cases import GPT_OSS, arrays_of, fours_of_h100, trace_in, write_sequences
from planner.baselines import eplb_layer
from planner.cost.instance import Instance
from planner.cost.prepare import from_deployment
from planner.cost.step import split_cost
from planner.cost.traffic import visits
from planner.inputs.deployment import Overrides, load_deployment
from planner.plan.placement import linear
from planner.plan.split import Split
from planner.solve.place import LayerJob
from planner.solve.problem import LayerProblem
from planner.solve.workers import Workers

Ints = NDArray[np.int64]

_FABRICS = ("1600 GB/s", "400 GB/s", "200 GB/s", "100 GB/s", "50 GB/s", "25 GB/s", "10 GB/s", "2 GB/s")
_JUDGED_AT = "50 GB/s"
_MACHINES = ((2, 8), (4, 16))
"""Nodes of 4 H100, and redundant experts."""


@dataclass(frozen=True)
class Figures:
    """Of a way of placing, over all layers."""

    copies: float
    imbalance: float
    seconds: float


def _problems(
    folder: Path, trace: Path, nodes: int, redundant: int, fabric: str
) -> tuple[Instance, list[LayerProblem]]:
    ranks = 4 * nodes
    once = "communication: {dedup: node}\n"
    case = replace(GPT_OSS, topology=fours_of_h100(nodes, fabric), redundant=redundant, ep=ranks, more=once)
    instance = from_deployment(load_deployment(case.write(folder, trace), Overrides())).instance
    stage = split_cost(instance, Split(1, ranks, 1, ranks), redundant).stages[0]
    return instance, [LayerProblem(stage.moe, load, stage.slots_R) for load in instance.loads]


def _figures(problems: Sequence[LayerProblem], placed: Sequence[Ints]) -> Figures:
    found = []
    for problem, expert_P in zip(problems, placed, strict=True):
        node_R = problem.moe.exchange.node_R
        part_EN = problem.moe.part_on_ranks(problem.load, expert_P) @ (np.arange(node_R.max() + 1) == node_R[:, None])
        rows_SR = problem.moe.rank_load(problem.load, expert_P)[0]
        copies = visits(problem.load, part_EN).sum(axis=1).mean()
        found.append((copies, (rows_SR.max(axis=1) / rows_SR.mean(axis=1)).mean(), problem.seconds(expert_P)))
    return Figures(*np.mean(found, axis=0).tolist())


def _placed(problems: Sequence[LayerProblem], workers: Workers) -> list[Ints]:
    jobs = [LayerJob(problem, 0.0, 0, 0.01) for problem in problems]
    found = dict(workers.place(jobs))
    return [found[index].expert_P for index in range(len(jobs))]


def compared(seen: Path, unseen: Path, nodes: int, redundant: int) -> tuple[Mapping[str, Figures], int]:
    """Held-out figures by name, and the layers in which the plan is the fastest on the windows it was made from."""
    with tempfile.TemporaryDirectory() as name, Workers() as workers:
        folder = Path(name)
        judging = _problems(folder, unseen, nodes, redundant, _JUDGED_AT)[1]
        instance, planning = _problems(folder, seen, nodes, redundant, _JUDGED_AT)
        assert instance.windows is not None
        loads_LE = instance.windows.counts_SLE.sum(axis=0).astype(float)
        ranks, experts = planning[0].num_ranks, planning[0].num_experts
        rivals = {
            "linear": [linear(experts, problem.slots_R) for problem in planning],
            "EPLB": [eplb_layer(load_E, experts + redundant, 1, 1, ranks) for load_E in loads_LE],
        }
        plans = {}
        for fabric in _FABRICS:
            plans[fabric] = _placed(_problems(folder, seen, nodes, redundant, fabric)[1], workers)
        fastest = sum(
            all(problem.seconds(mine) < problem.seconds(rival[layer]) for rival in rivals.values())
            for layer, (problem, mine) in enumerate(zip(planning, plans[_JUDGED_AT], strict=True))
        )
        names = {**rivals, **{f"plan for {fabric}": placed for fabric, placed in plans.items()}}
        return {name: _figures(judging, placed) for name, placed in names.items()}, fastest


def _show(title: str, figures: Mapping[str, Figures], fastest: int, layers: int, console: Console) -> None:
    table = Table(title=title, box=None, title_justify="left")
    for column in ("placed by", "copies", "max/mean", "ms", "copies less", "EPLB's excess gone"):
        table.add_column(column, justify="left" if column == "placed by" else "right")
    eplb = figures["EPLB"]
    for name, found in figures.items():
        less, gone = 1 - found.copies / eplb.copies, 1 - (found.imbalance - 1) / (eplb.imbalance - 1)
        cells = (
            f"{found.copies:.3f}",
            f"{found.imbalance:.3f}",
            f"{1e3 * found.seconds:.3f}",
            f"{less:.1%}",
            f"{gone:.1%}",
        )
        table.add_row(name, *cells)
    console.print(table)
    console.print(f"faster than linear and EPLB on the windows it was made from: {fastest} of {layers} layers\n")


def run(data: Path | None, console: Console) -> None:
    """Print a table for each machine and way of parting the sequences."""
    if data is None:
        console.print("affinity: needs recorded traces; give --data or EP_PLAN_DATA")
        return
    trace = arrays_of(trace_in(data, GPT_OSS.trace))
    order_T = np.unique(trace["seq_id"].astype(np.int64), return_inverse=True)[1]
    domain_of = np.zeros(order_T.max() + 1, dtype=np.int64)
    domain_of[order_T] = trace["domain_id"]
    place_of = np.argsort(np.argsort(domain_of, kind="stable"), kind="stable")
    ways = {"mixed": order_T % 2 == 0, "domains apart": place_of[order_T] < len(domain_of) / 2}
    for nodes, redundant in _MACHINES:
        for way, keep_T in ways.items():
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                seen = write_sequences(trace, keep_T, folder / "seen.npz")
                unseen = write_sequences(trace, ~keep_T, folder / "unseen.npz")
                figures, fastest = compared(seen, unseen, nodes, redundant)
            title = f"gpt-oss-20b, {nodes} x 4 H100, {32 + redundant} slots, {way}"
            _show(title, figures, fastest, len(trace["layer_ids"]), console)
