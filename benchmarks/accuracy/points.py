"""Measured kernels as work and time: what a row of the kernel tables means to the cost model.

The tables are extracts of AIConfigurator 0.12 (Apache-2.0), described in the README beside them; they stay where they
are. FLOP and bytes are counted as `planner.cost` counts them.

Legend: N measurements.
"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from planner.inputs.efficiency import Work
from planner.inputs.gpu import Gpu, load_gpu
from planner.inputs.precision import WEIGHTS, WeightName

Floats = NDArray[np.float64]
GPUS: Final = {"a100_sxm": "a100-sxm-80", "h100_sxm": "h100-sxm", "h200_sxm": "h200-sxm", "gb200": "gb200"}
"""Names of the tables and of the profiles."""
_WEIGHTS: Final[dict[str, WeightName]] = {
    "bfloat16": "bf16",
    "fp8": "fp8",
    "fp8_block": "fp8_block",
    "nvfp4": "nvfp4",
    "w4a16_mxfp4": "mxfp4",
    "w4a8_mxfp4_mxfp8": "mxfp4",
}
_TILE: Final = 128
_LATENT, _ROPE, _NOPE, _VALUE = 512, 64, 128, 128
"""DeepSeek's latent attention: rank of the cache, and dims of a head."""


@dataclass(frozen=True)
class Points:
    """Measurements of one kernel on one GPU, in FLOP, bytes and seconds."""

    gpu: Gpu
    work: Work
    name: str
    """Format of the weights, or kind of attention: the key of a curve."""
    weights: WeightName
    """The format whose arithmetic runs."""
    kernel: str
    flop_N: Floats
    bytes_N: Floats
    moved_N: Floats
    experts_N: Floats
    extra_N: Floats
    """Bytes of work that only the micro-benchmark does: the tokens of the whole group are copied."""
    seconds_N: Floats
    shape_N: NDArray[np.int64]
    """Which model shape each row belongs to; hold-outs leave one out."""

    def __len__(self) -> int:
        """N."""
        return len(self.seconds_N)

    def some(self, keep_N: NDArray[np.bool_]) -> Points:
        """Part of the measurements."""
        arrays = {name: value[keep_N] for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        return Points(**{**vars(self), **arrays})


def read_points(folder: Path) -> list[Points]:
    """All kernels of the tables in a folder, each with its GPU, work and format."""
    kernels = json.loads((folder / "moe_kernel_ids.json").read_text(encoding="utf-8"))
    groups: dict[tuple[str, Work, str, WeightName, str], list[tuple[Any, ...]]] = defaultdict(list)
    for gpu in GPUS:
        for row in _rows(folder / f"moe_{gpu}.csv"):
            if row["us_balanced"]:
                weights = _WEIGHTS[row["moe_dtype"]]
                kernel = f"{row['backend']} {kernels[row['kernel_id']]}"
                if row["moe_dtype"].startswith("w4"):
                    kernel += " " + row["moe_dtype"].partition("_")[0]
                groups[gpu, "experts", weights, weights, kernel].append(_experts(row, weights))
    for row in _rows(folder / "gemm_samples.csv"):
        weights = _WEIGHTS[row["dtype"]]
        groups[row["gpu"], "gemm", weights, weights, row["backend"]].append(_gemm(row, weights))
    for file, kind in (("attention_gqa_samples.csv", "gqa"), ("attention_mla_samples.csv", "mla")):
        for row in _rows(folder / file):
            if row.get("attn_dtype", "bfloat16") == "bfloat16":
                work: Work = "attention_prefill" if row["phase"] == "context" else "attention_decode"
                name = kind + ("_fp8" if row["kv_cache_dtype"] == "fp8" else "")
                measured = _gqa(row) if kind == "gqa" else _mla(row)
                groups[row["gpu"], work, name, "bf16", row["backend"]].append(measured)
    return [_points(key, rows) for key, rows in sorted(groups.items())]


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def _points(key: tuple[str, Work, str, WeightName, str], rows: list[tuple[Any, ...]]) -> Points:
    gpu, work, name, weights, kernel = key
    *columns, shapes = zip(*rows, strict=True)
    flop, num_bytes, moved, experts, extra, seconds = (np.array(column, dtype=float) for column in columns)
    number = {shape: index for index, shape in enumerate(sorted(set(shapes)))}
    shape_N = np.array([number[shape] for shape in shapes])
    profile = load_gpu(GPUS[gpu])
    return Points(profile, work, name, weights, kernel, flop, num_bytes, moved, experts, extra, seconds * 1e-6, shape_N)


def _ints(row: dict[str, str], *names: str) -> list[int]:
    return [int(row[name]) for name in names]


def _experts(row: dict[str, str], weights: WeightName) -> tuple[Any, ...]:
    """Balanced routing: every local expert has equally many rows, as far as there are enough."""
    names = ("hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size", "moe_ep_size", "num_tokens")
    hidden, inter, top_k, experts, tp, ep, tokens = _ints(row, *names)
    width, local, rows = inter / tp, experts / ep, tokens * top_k / ep
    num_bytes = min(local, rows) * 3 * hidden * width * float(WEIGHTS[weights].bits) / 8
    moved = rows * 2 * (2 * hidden + 3 * width)
    shape = (hidden, inter, top_k, experts)
    seconds = float(row["us_balanced"])
    return 6 * hidden * width * rows, num_bytes, moved, local, 2.0 * tokens * hidden, seconds, shape


def _gemm(row: dict[str, str], weights: WeightName) -> tuple[Any, ...]:
    m, n, k = _ints(row, "m", "n", "k")
    num_bytes = n * k * float(WEIGHTS[weights].bits) / 8
    return 2.0 * m * n * k, num_bytes, 2.0 * m * (k + n), 0, 0, float(row["latency_us"]), (n, k)


def _pairs(batch: int, queries: int, before: int, heads: int) -> float:
    """Query-key pairs of causal attention, queries in tiles."""
    tiles = -(-queries // _TILE) * _TILE
    return batch * heads * tiles * (before + (queries + 1) / 2)


def _gqa(row: dict[str, str]) -> tuple[Any, ...]:
    names = ("num_heads", "num_key_value_heads", "head_dim", "batch_size", "isl", "step")
    heads, kv_heads, dim, batch, queries, before = _ints(row, *names)
    entry = 2 * kv_heads * dim * (1 if row["kv_cache_dtype"] == "fp8" else 2)
    if row["phase"] == "generation":
        seen = before + 1
        flop, num_bytes = 4.0 * dim * heads * batch * seen, batch * seen * entry
    else:
        flop = 4.0 * dim * _pairs(batch, queries, before, heads)
        num_bytes = batch * ((queries + before) * entry + 4 * queries * heads * dim)
    return flop, num_bytes, 0, 0, 0, float(row["latency_us"]), (heads, kv_heads)


def _mla(row: dict[str, str]) -> tuple[Any, ...]:
    heads, batch, queries, before = _ints(row, "num_heads", "batch_size", "isl", "step")
    entry = (_LATENT + _ROPE) * (1 if row["kv_cache_dtype"] == "fp8" else 2)
    if row["phase"] == "generation":
        seen = before + 1
        flop, num_bytes = 2.0 * (2 * _LATENT + _ROPE) * heads * batch * seen, batch * seen * entry
    else:
        flop = 2.0 * (_NOPE + _ROPE + _VALUE) * _pairs(batch, queries, before, heads)
        num_bytes = batch * ((queries + before) * entry + 4 * queries * heads * _VALUE)
    return flop, num_bytes, 0, 0, 0, float(row["latency_us"]), (heads,)
