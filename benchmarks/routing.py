"""What recorded routing looks like: figures of `ep-plan trace info` beside published ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.cases import DEEPSEEK, GPT_OSS, trace_in
from planner.capacity.advise import judged_windows
from planner.capacity.placing import Ranks, eplb_place, linear_place, ranks_for, search_place
from planner.capacity.verdict import imbalance, rank_loads, verdict
from planner.review.describe import Description, describe
from planner.solve.workers import Workers
from planner.trace.affinity import distinct_units
from planner.trace.native import read_trace
from planner.trace.windows import Windows, cut, subset

Row = tuple[str, str, str]
_ORDERS = 3
"""Random orders of requests that are tried."""


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _held_out(windows: Windows, ranks: int, slots: int, seen: Sequence[int]) -> str:
    """Max/mean on the windows not seen: linear, and EPLB placed on those seen."""
    layers, experts = windows.counts_SLE.shape[1:]
    later = windows.counts_SLE[sorted({*range(windows.num_windows)} - {*seen})]
    placed = eplb_place(Ranks(ranks, slots))(subset(windows, seen))
    linear = imbalance(rank_loads(later, linear_place(experts, layers, ranks), ranks)).mean()
    return f"{linear:.2f}, {imbalance(rank_loads(later, placed, ranks)).mean():.2f}"


def _eplb_nodes(windows: Windows, nodes: int) -> float:
    """Distinct nodes of a token when EPLB places experts without copies on 8 GPUs, equally many on each node."""
    assert windows.sets is not None
    layers, experts = windows.counts_SLE.shape[1:]
    expert_LP = eplb_place(Ranks(8, experts))(windows)
    found = []
    for layer in range(layers):
        node_E = np.empty(experts, dtype=np.int64)
        node_E[expert_LP[layer]] = np.arange(experts) * nodes // experts
        found.append(distinct_units(windows.sets, node_E)[layer])
    return _mean(found)


def _gpt_oss(found: Description) -> Iterable[Row]:
    windows, drift, domains = found.windows, found.drift, found.domains
    assert drift is not None
    assert domains is not None
    pooled = [layer.pooled_max_over_mean for layer in found.layers]
    yield "experts max/mean, all windows", f"{_mean(pooled):.2f} ({min(pooled):.2f}-{max(pooled):.2f})", "3-9 typical"
    yield "Gini", f"{_mean(layer.pooled_gini for layer in found.layers):.2f}", "0.10-0.38 typical"
    for ranks, slots, published in ((8, 40, "1.49, 1.19"), (16, 48, "2.02, 1.33")):
        setting = f"max/mean, {ranks} GPUs, {slots} slots: linear, EPLB"
        count = windows.num_windows
        yield f"{setting}; odd windows unseen", _held_out(windows, ranks, slots, range(0, count, 2)), published
        yield f"{setting}; last half unseen", _held_out(windows, ranks, slots, range(count // 2)), published
    yield "correlation of the halves", f"{drift.halves_correlation:.2f}", "-"
    moved = f"{drift.halves_distance:.1%} ({drift.chance_distance:.1%})"
    yield "choices that move between the halves (even, odd windows)", moved, "-"
    lags = drift.lag_correlation
    yield (
        "correlation of windows 1, 8, 32 apart",
        ", ".join(f"{lags[lag]:.2f}" for lag in (1, 8, 32)),
        "0.98-0.99 at 10",
    )
    yield "correlation of domains, mean", f"{domains.mean_correlation:.2f}", "0.35-0.75"
    mass = _mean(layer.top_successors_mass for layer in found.successors)
    yield "next traced layer: mass of the top fifth", f"{mass:.0%}", "50-77 % (adjacent layers)"
    yield "co-activation: mass of the top tenth", f"{_mean(p.top_pairs_mass for p in found.pairs):.0%}", "60-80 %"
    for nodes, published in ((2, "1.92"), (4, "2.91")):
        seen = next(one.seen for one in found.nodes if one.nodes == nodes)
        ours = f"{seen:.2f}, {_eplb_nodes(windows, nodes):.2f}"
        yield f"distinct nodes of {nodes}: linear, EPLB", ours, f"-, {published}"


def _deepseek(found: Description) -> Iterable[Row]:
    windows = found.windows
    layers, experts = windows.counts_SLE.shape[1:]
    linear_S = imbalance(rank_loads(windows.counts_SLE, linear_place(experts, layers, 32), 32)).mean(axis=1)
    group = Ranks(32, 288)
    for window, name in enumerate(windows.names_S):
        others = [other for other in range(windows.num_windows) if other != window]
        placed = eplb_place(group)(subset(windows, others))
        eplb = imbalance(rank_loads(windows.counts_SLE[[window]], placed, 32)).mean()
        yield f"{name}: linear; EPLB of the others", f"{linear_S[window]:.2f}; {eplb:.2f}", "2.0-3.0; 1.09-1.32"
    yield "experts max/mean", f"{_mean(layer.pooled_max_over_mean for layer in found.layers):.2f}", "3-9 typical"
    yield "Gini", f"{_mean(layer.pooled_gini for layer in found.layers):.2f}", "0.10-0.38 typical"


def _show(title: str, rows: Iterable[Row], found: Description, console: Console) -> None:
    table = Table(title=title, box=None, title_justify="left")
    for column in ("figure", "here", "published"):
        table.add_column(column)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    told = found.verdict
    console.print(f"verdict: {told.answer}; {'; '.join(told.reasons)}")
    console.print(f"static plan holds: {told.static_holds}; {told.static_reason}\n")


def _orders(path: Path, console: Console) -> None:
    """Whether a static plan holds with requests in the order of the file, domain by domain, and at random."""
    with np.load(path) as recorded:
        arrays = dict(recorded)
    request_T = arrays["seq_id"]
    group = ranks_for(int(arrays["num_experts"]), 8, 8)
    table = Table("order of requests", "ep-plan: does a static plan hold?", "EPLB", box=None)
    with Workers() as workers, TemporaryDirectory() as folder:
        for seed in (None, *range(_ORDERS)):
            order_T = np.arange(len(request_T))
            if seed is not None:
                turn = np.random.default_rng(seed).permutation(int(request_T.max()) + 1)
                order_T = np.argsort(turn[request_T], kind="stable")
            again = Path(folder) / "ordered.npz"
            np.savez(again, **{n: one[order_T] if one.shape[:1] == order_T.shape else one for n, one in arrays.items()})
            trace = read_trace(again).trace
            windows = judged_windows(cut([trace], "decode", 4096), [trace], 4096)
            places = (search_place(group, workers), eplb_place(group))
            found = [verdict(windows, trace.top_k, group, place) for place in places]
            cells = [f"{one.static_holds}; {one.static_reason}" for one in found]
            table.add_row("of the file" if seed is None else f"random, {seed}", *cells)
    console.print(table)


def run(data: Path | None, console: Console) -> None:
    """Print one table per recorded trace."""
    if data is None:
        console.print("routing: needs recorded traces; give --data or EP_PLAN_DATA")
        return
    found = describe([trace_in(data, GPT_OSS.trace)], phase="decode", step_tokens=4096, redundant=8, node_counts=(2, 4))
    _show("gpt-oss-20b, even layers, decode windows of 4,096 tokens", _gpt_oss(found), found, console)
    _orders(trace_in(data, GPT_OSS.trace), console)
    found = describe([trace_in(data, DEEPSEEK.trace)], phase="decode", step_tokens=4096, ranks=32, redundant=32)
    _show("DeepSeek-V3, six scenarios, 32 GPUs, 288 slots", _deepseek(found), found, console)
