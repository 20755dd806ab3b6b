"""A trace of DeepSeek-V3's shape, imported and aggregated: how fast, and in how much memory.

The recording is what vLLM returns: `routed_experts`, [tokens, 61 layers, top-8] bytes with three dense
layers of zeros. Each step runs in a process of its own; its memory is that of all its processes
together, the most of samples taken every 20 ms.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

LAYERS, DENSE, EXPERTS, TOP_K = 61, 3, 256, 8
_BLOCK: Final = 1 << 14
_AGGREGATE: Final = """
import sys
from pathlib import Path
from planner.trace.aggregate import co_activation_counts
from planner.trace.native import read_trace
from planner.trace.windows import cut
trace = read_trace(Path(sys.argv[2])).trace
if sys.argv[1] == "windows":
    windows = cut([trace], "decode", 32_768)
    assert windows.counts_SLE.sum() == trace.num_tokens * len(trace.layer_ids_L) * trace.top_k
else:
    pairs = co_activation_counts(trace)
    assert pairs.sum() == trace.num_tokens * len(trace.layer_ids_L) * trace.top_k * (trace.top_k - 1)
"""


def synthesise(path: Path, tokens: int) -> None:
    """Write routes with unequal popularity; blocks of tokens repeat, shuffled, so that this is quick."""
    rng = np.random.default_rng(0)
    popularity = rng.gumbel(size=(1, LAYERS, EXPERTS)).astype(np.float32)
    noise = rng.gumbel(size=(_BLOCK // 8, LAYERS, EXPERTS)).astype(np.float32)
    some = np.argpartition(-(popularity + noise), TOP_K, axis=2)[:, :, :TOP_K].astype(np.uint8)
    some[:, :DENSE] = 0
    with path.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (tokens, LAYERS, TOP_K)}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, tokens, _BLOCK):
            block: NDArray[Any] = some[rng.integers(0, len(some), min(_BLOCK, tokens - start))]
            file.write(block.data)


def _resident_bytes(pid: int) -> int:
    """Memory of a process and all below it: proportional, so that what they share counts once."""
    total = 0
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += sum(map(_resident_bytes, map(int, (task / "children").read_text().split())))
    except OSError:  # it has ended meanwhile
        pass
    return total


def measured(arguments: list[str]) -> tuple[float, int]:
    """Seconds and peak bytes of a command."""
    started, peak = time.perf_counter(), 0
    with subprocess.Popen([sys.executable, *arguments], stderr=subprocess.PIPE, encoding="utf-8") as process:
        while process.poll() is None:
            peak = max(peak, _resident_bytes(process.pid))
            time.sleep(0.02)
        assert process.stderr is not None
        problem = process.stderr.read()
    assert process.returncode == 0, problem
    return time.perf_counter() - started, peak


def run_with(tokens: int, console: Console) -> None:
    """Print a line for each step, at a quarter of the size and at all of it."""
    table = Table(title="a trace of DeepSeek-V3's shape", box=None, title_justify="left")
    for column in ("tokens", "choices", "step", "seconds", "choices/s", "peak memory"):
        table.add_column(column, justify="left" if column == "step" else "right")
    for size in (tokens // 4, tokens):
        with tempfile.TemporaryDirectory() as folder:
            recording, trace = Path(folder) / "routes.npy", Path(folder) / "trace.npz"
            synthesise(recording, size)
            choices = size * (LAYERS - DENSE) * TOP_K
            steps = {
                "import": [
                    "-m",
                    "planner",
                    "trace",
                    "import",
                    str(recording),
                    "--model",
                    "deepseek-v3",
                    "-o",
                    str(trace),
                ],
                "64 windows": ["-c", _AGGREGATE, "windows", str(trace)],
                "co-activation": ["-c", _AGGREGATE, "pairs", str(trace)],
            }
            for name, arguments in steps.items():
                seconds, peak = measured(arguments)
                rate = f"{choices / seconds / 1e6:.0f} M"
                table.add_row(f"{size:,}", f"{choices / 1e6:,.0f} M", name, f"{seconds:.1f}", rate, f"{peak >> 20} MiB")
    console.print(table)
