"""Planned on the first half of a drifting recording: what the plan says about the second, and what came true.

The verdict is that of `ep-plan advise` on the first half alone: a placement from its first half, tried on its second.
It comes true if the placement from the whole first half saves at least as much of the peak work on the second half as
the criterion asks, against placements made anew after every eighth of it. As a control the sequences are shuffled.

Legend: S windows, L layers, E experts, P slots, R ranks.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.cases import arrays_of, trace_in
from planner.capacity.placing import Place, Ranks, linear_place, search_place
from planner.capacity.verdict import Criteria, imbalance, rank_loads, trial, verdict
from planner.solve.workers import Workers
from planner.trace.native import read_trace
from planner.trace.windows import Windows, cut, subset

_RECORDING: Final = "tiny_moe_64e_drift.npz"
_STEP_TOKENS: Final = 4096
_EIGHTHS: Final = 8
_GROUPS: Final = (Ranks(8, 64), Ranks(8, 72), Ranks(16, 64), Ranks(16, 80))


def run(data: Path | None, console: Console) -> None:
    """Print verdicts and what came true."""
    if data is None or not trace_in(data, _RECORDING).is_file():
        console.print("drift: needs the recorded drift (--data)\n")
        return
    table = Table(
        title="planned on the first half of tiny_moe_64e_drift, judged on the second", box=None, title_justify="left"
    )
    for column in (
        "order",
        "slots",
        "will it hold?",
        "did it?",
        "saved",
        "anew",
        "plan",
        "linear",
        "loss: plan",
        "linear",
    ):
        table.add_column(column, justify="left" if column == "order" else "right")
    for order, windows, top_k in _orders(trace_in(data, _RECORDING)):
        for group in _GROUPS:
            with Workers() as workers:
                table.add_row(
                    order,
                    f"{group.slots} on {group.ranks}",
                    *_cells(windows, top_k, group, search_place(group, workers)),
                )
    console.print(table)
    console.print(
        "saved, anew: peak work that the plan, and one made anew after every eighth, save on the second half;\n"
        "plan, linear: max/mean on the first half; loss: how much higher on the second\n"
    )


def _cells(windows: Windows, top_k: int, group: Ranks, place: Place) -> tuple[str, ...]:
    count = windows.num_windows
    first, second = range(count // 2), range(count // 2, count)
    said = verdict(subset(windows, first), top_k, group, place)
    static = trial(windows, first, second, group, place)
    anew = _anew(windows, second, group, place)
    held = "yes" if static.mean_saved >= Criteria().kept * anew else "no"
    planned_LP = place(subset(windows, first))
    layers, experts = windows.counts_SLE.shape[1:]
    figures = []
    for expert_LP in (planned_LP, linear_place(experts, layers, group.ranks)):
        before, after = (_max_over_mean(subset(windows, half), expert_LP, group.ranks) for half in (first, second))
        figures.append((before, after / before - 1))
    (plan, plan_loss), (linear, linear_loss) = figures
    return (
        said.static_holds,
        held,
        f"{static.mean_saved:.1%}",
        f"{anew:.1%}",
        f"{plan:.3f}",
        f"{linear:.3f}",
        f"{plan_loss:+.1%}",
        f"{linear_loss:+.1%}",
    )


def _anew(windows: Windows, judged: range, group: Ranks, place: Place) -> float:
    """What placing after every eighth saves on these windows, each time judged on the next."""
    size = max(1, windows.num_windows // _EIGHTHS)
    saved: list[float] = []
    for start in range(judged.start, judged.stop, size):
        coming = range(start, min(start + size, judged.stop))
        saved += trial(windows, range(start - size, start), coming, group, place).saved
    return float(np.mean(saved))


def _max_over_mean(windows: Windows, expert_LP: NDArray[np.int64], ranks: int) -> float:
    return float(imbalance(rank_loads(windows.counts_SLE, expert_LP, ranks)).mean())


def _orders(path: Path) -> Iterator[tuple[str, Windows, int]]:
    """Windows of the recording as it stands, and of its sequences in random order; with K."""
    recorded = read_trace(path).trace
    yield "as recorded", cut([recorded], "prefill", _STEP_TOKENS), recorded.top_k
    arrays = arrays_of(path)
    rank_of = np.random.default_rng(0).permutation(int(arrays["seq_id"].max()) + 1)
    order_N = np.argsort(rank_of[arrays["seq_id"]], kind="stable")
    with tempfile.TemporaryDirectory() as folder:
        shuffled = Path(folder) / "shuffled.npz"
        mixed = {
            name: array[order_N] if len(array.shape) and len(array) == len(order_N) else array
            for name, array in arrays.items()
        }
        np.savez(shuffled, allow_pickle=False, **mixed)
        yield "shuffled", cut([read_trace(shuffled).trace], "prefill", _STEP_TOKENS), recorded.top_k
