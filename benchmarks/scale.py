"""How long large problems take: time to the first plan and to the last, the gap, and memory, each in its own process.

Loads are drawn: an expert's popularity in a layer is log-normal (standard deviation 0.7, which gives the hottest of 256
experts four to six times the mean, as recorded), and moves from window to window as a first-order process that keeps
0.8 of the last window's deviation from the layer's own. With recorded loads (`--data`) DeepSeek-V3 is planned on them,
and on others that lie between two of them.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.cases import DEEPSEEK, Case, arrays_of, trace_in
from planner.cost.prepare import from_deployment
from planner.inputs.deployment import Overrides, load_deployment
from planner.solve.request import solve_deployment
from planner.solve.watch import NoWatch
from planner.solve.workers import Workers

Ints = NDArray[np.int64]

_SPREAD, _KEPT = 0.7, 0.8
_WINDOW = 1 << 20
"""Expert choices that a window holds in each layer."""


@dataclass(frozen=True)
class Scale:
    """A model on so many GPUs, all of one expert-parallel group."""

    name: str
    model: str
    experts: int
    layers: tuple[int, ...]
    nodes: int
    redundant: int
    windows: int
    asked_s: float
    top_k: int = 8

    @property
    def ranks(self) -> int:
        """R."""
        return 8 * self.nodes


_DEEPSEEK_LAYERS = tuple(range(3, 61))
CASES = (
    Scale("DeepSeek-V3, 32 GPUs, 12 windows", "deepseek-v3", 256, _DEEPSEEK_LAYERS, 4, 32, 12, 20),
    Scale("DeepSeek-V3, 32 GPUs, 64 windows", "deepseek-v3", 256, _DEEPSEEK_LAYERS, 4, 32, 64, 60),
    Scale("Kimi-K2, 64 GPUs, 64 windows", "kimi-k2", 384, tuple(range(1, 61)), 8, 64, 64, 90),
    Scale("Qwen3-Next, 128 GPUs, 12 windows", "qwen3-next-80b-a3b", 512, tuple(range(48)), 16, 128, 12, 90, 10),
    Scale("DeepSeek-V3, 1,024 GPUs, 2 slots, 12 windows", "deepseek-v3", 256, _DEEPSEEK_LAYERS, 128, 1792, 12, 300),
)


def drawn(windows: int, layers: int, experts: int, seed: int = 0) -> Ints:
    """Expert choices [S, L, E]; see the module."""
    rng = np.random.default_rng(seed)
    own_LE = rng.standard_normal((layers, experts))
    state_LE = own_LE.copy()
    counts = np.empty((windows, layers, experts), dtype=np.int64)
    for window in range(windows):
        fresh_LE = rng.standard_normal((layers, experts)) * np.sqrt(1 - _KEPT**2)
        state_LE = own_LE + _KEPT * (state_LE - own_LE) + 0.5 * fresh_LE
        weight_LE = np.exp(_SPREAD * state_LE)
        share_LE = weight_LE / weight_LE.sum(axis=1, keepdims=True)
        counts[window] = [rng.multinomial(_WINDOW, share_E) for share_E in share_LE]
    return counts


def between(recorded_SLE: Ints, windows: int, seed: int = 0) -> Ints:
    """Recorded windows, and others that mix two of them in random parts."""
    rng = np.random.default_rng(seed)
    total_SL1 = recorded_SLE.sum(axis=2, keepdims=True)
    share_SLE = recorded_SLE / total_SL1
    counts = [_WINDOW * share_SLE]
    for _ in range(windows - len(recorded_SLE)):
        one, two = rng.choice(len(share_SLE), 2, replace=False)
        part = rng.random()
        counts.append(_WINDOW * (part * share_SLE[one] + (1 - part) * share_SLE[two])[None])
    return np.asarray(np.rint(np.concatenate(counts)), dtype=np.int64)


class _First(NoWatch):
    """When there was a first plan."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.first_s: float | None = None

    def status(self, best_s: float | None, bound_s: float) -> None:
        del bound_s
        if best_s is not None and self.first_s is None:
            self.first_s = time.perf_counter() - self.started


@dataclass(frozen=True)
class Taken:
    """What solving took."""

    first_s: float
    """Until the first plan."""
    finished_s: float
    cpu_s: float
    """Of the first process: of all there is with one core."""
    gap: float
    most_bytes: float
    """The most that the first process held; workers hold a layer each."""


def solve_apart(folder: Path, cores: int | None = None) -> Taken:
    """Solve the deployment in a folder in a process of its own, on so many cores (None: all)."""
    command = [sys.executable, "-m", "benchmarks.scale", str(folder), *([] if cores is None else [str(cores)])]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    return Taken(*map(float, done.stdout.split()))


def _solve(folder: Path, cores: int | None) -> str:
    """Solve the deployment in a folder: the figures of `Taken`."""
    watch = _First()
    loaded = load_deployment(folder / "deployment.yaml", Overrides())
    prepared = from_deployment(loaded)
    with Workers(cores=cores) as workers:
        plan = solve_deployment(loaded, prepared, folder / "plan.json", workers, watch).plan
    assert plan is not None
    seconds = time.perf_counter() - watch.started
    most = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return f"{watch.first_s} {seconds} {time.process_time()} {plan.solver.gap} {1024 * most}"


def _counts(case: Scale, data: Path | None) -> Ints:
    if case.model == "deepseek-v3" and case.nodes == 4 and data is not None:
        return between(arrays_of(trace_in(data, DEEPSEEK.trace))["counts"].astype(np.int64), case.windows)
    return drawn(case.windows, len(case.layers), case.experts)


def run(data: Path | None, console: Console) -> None:
    """Print a line for each case."""
    table = Table(title="large problems, all expert-parallel, prefill", box=None, title_justify="left")
    for column in ("case", "slots", "first plan", "finished", "asked", "gap", "memory"):
        table.add_column(column, justify="left" if column == "case" else "right")
    for case in CASES:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            trace = {"counts": _counts(case, data), "layer_ids": np.array(case.layers)}
            trace |= {"num_experts": np.array(case.experts), "topk": np.array(case.top_k)}
            np.savez(folder / "trace.npz", allow_pickle=False, **trace)
            pins = ", pp: 1, edp: 1"
            nodes = f"{case.nodes} x hgx-h100"
            problem = Case(case.name, case.model, "trace.npz", nodes, case.redundant, case.ranks, pins)
            problem.write(folder, Path("trace.npz"))
            taken = solve_apart(folder)
        seconds = (f"{value:.1f} s" for value in (taken.first_s, taken.finished_s, case.asked_s))
        size = f"{taken.most_bytes / 2**30:.2f} GiB"
        table.add_row(case.name, f"{case.experts + case.redundant:,}", *seconds, f"{taken.gap:.2%}", size)
    console.print(table, "")


if __name__ == "__main__":
    print(_solve(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None))
