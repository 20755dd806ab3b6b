"""How the time of a search grows with experts, GPUs, windows and layers: each varied alone, and drawn.

A model in the shape of DeepSeek-V3 with narrow experts, so that it fits wherever it is put; all GPUs are one
expert-parallel group with one redundant expert on each rank; loads are drawn as in `scale`. Seconds are of one
core's work, whatever else runs on the machine; all but reading and bounding is shared out over the cores there are.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.cases import EXAMPLES, Case
from benchmarks.scale import drawn, solve_apart

_PICTURE: Final = Path(__file__).resolve().parent.parent / "docs" / "images" / "search-time.png"
_DENSE: Final = 3
_TICKS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500)


@dataclass(frozen=True)
class Size:
    """A problem."""

    experts: int = 256
    gpus: int = 32
    windows: int = 12
    layers: int = 58


_SWEEPS: Final = {
    "experts": (64, 128, 256, 512),
    "gpus": (8, 16, 32, 64, 128),
    "windows": (1, 4, 12, 32, 64),
    "layers": (7, 14, 29, 58),
}


def run(data: Path | None, console: Console) -> None:
    """Print a line for each size, and draw them where matplotlib is installed."""
    del data
    table = Table(title="time of a search, prefill", box=None, title_justify="left")
    for column in ("varied", "experts", "GPUs", "windows", "layers", "one core", "gap"):
        table.add_column(column, justify="left" if column == "varied" else "right")
    known: dict[Size, float] = {}
    for name, values in _SWEEPS.items():
        for value in values:
            size = replace(Size(), **{name: value})
            if size in known:
                continue
            with tempfile.TemporaryDirectory() as folder:
                taken = solve_apart(_written(size, Path(folder)), cores=1)
            known[size] = taken.cpu_s
            numbers = (size.experts, size.gpus, size.windows, size.layers)
            table.add_row(name, *map(str, numbers), f"{taken.cpu_s:.1f} s", f"{taken.gap:.2%}")
    console.print(table, "")
    try:
        _draw({name: [known[replace(Size(), **{name: value})] for value in values] for name, values in _SWEEPS.items()})
    except ModuleNotFoundError:
        console.print("no picture: matplotlib comes with the extra bench\n")


def _written(size: Size, folder: Path) -> Path:
    config = json.loads((EXAMPLES / "deepseek-v3-32gpu" / "config.json").read_text(encoding="utf-8"))
    config |= {
        "n_routed_experts": size.experts,
        "num_hidden_layers": _DENSE + size.layers,
        "moe_intermediate_size": 512,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    layers = np.arange(_DENSE, _DENSE + size.layers)
    counts = drawn(size.windows, size.layers, size.experts)
    np.savez(
        folder / "trace.npz", allow_pickle=False, counts=counts, layer_ids=layers, num_experts=size.experts, topk=8
    )
    nodes = f"{size.gpus // 8} x hgx-h100"
    problem = Case("", "config.json", "trace.npz", nodes, size.gpus, size.gpus, ", pp: 1, edp: 1")
    problem.write(folder, Path("trace.npz"))
    return folder


def _draw(seconds: dict[str, list[float]]) -> None:
    from matplotlib.figure import Figure  # noqa: PLC0415  # only drawing needs it

    figure = Figure(figsize=(9.6, 2.6), layout="constrained")
    panels = figure.subplots(1, len(_SWEEPS), sharey=True)
    for panel, (name, values) in zip(panels, _SWEEPS.items(), strict=True):
        panel.loglog(values, seconds[name], "o-", color="#3b6ea8", markersize=4)
        panel.set_xticks(values, [str(value) for value in values], minor=False)
        panel.minorticks_off()
        panel.set_xlabel("GPUs" if name == "gpus" else name)
        panel.grid(visible=True, linewidth=0.3)
    low, high = min(map(min, seconds.values())), max(map(max, seconds.values()))
    ticks = [tick for tick in _TICKS if low / 2 <= tick <= high * 2]
    panels[0].set_yticks(ticks, [str(tick) for tick in ticks])
    panels[0].set_ylabel("seconds of one core")
    _PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(_PICTURE, dpi=96, metadata={"Software": None})
