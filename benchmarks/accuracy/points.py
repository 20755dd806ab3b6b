"""Measured kernels as work and time: what a row of the kernel tables means to the cost model.

The tables are extracts of AIConfigurator 0.12 (Apache-2.0), described in the README beside them; they stay where they
are. FLOP, bytes and chains are counted as `planner.cost` counts them. Where a table has several times for the same work
of one kernel, the least counts: an engine picks the faster implementation. Times below those of light are left out:
such a benchmark found its data in the cache, or its router touched fewer experts than the table says.

Legend: N measurements.
"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.cost.attention import FIRST_ENTRIES, split_chain, tiled_keys
from planner.inputs.efficiency import Work
from planner.inputs.gpu import Gpu, load_gpu
from planner.inputs.precision import WEIGHTS, WeightName, compute_format

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
_ENGINES: Final = {"trtllm": "tensorrt-llm"}
"""Names of the tables and of the profiles, where they differ."""
SHORTEST_PROMPT: Final = 64
"""Queries below which measurements of prefill attention are kept out of fits, and judged apart.

A tile of queries is then less than half full, which the form leaves out (model.md, "Dense work").
"""
WIDE: Final = "sglang deepgemm behind deepep"
MANY_ROWS: Final = 32768
"""Rows of a rank from which on the time of its prefill kernel is its own, and not that of launching from Python."""
_WIDE_VERSION: Final = "0.5.10"
_DOUBTFUL: Final = 1 / 12
"""A kernel with a larger part of its measurements faster than light is not believed at all."""
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
    chain_N: Floats
    """Steps that follow one another."""
    extra_N: Floats
    """Bytes of work that only the micro-benchmark does: the tokens of the whole group are copied."""
    seconds_N: Floats
    shape_N: NDArray[np.int64]
    """Which model shape each row belongs to; hold-outs leave one out."""
    beyond_light: int = 0
    """Further measurements, faster than light and so left out."""

    def __len__(self) -> int:
        """N."""
        return len(self.seconds_N)

    @property
    def engine(self) -> str:
        """Profile of the engine that it was measured in."""
        backend = self.kernel.partition(" ")[0]
        return _ENGINES.get(backend, backend)

    @property
    def believed(self) -> bool:
        """Whether few enough were faster than light to trust the others."""
        return self.beyond_light <= _DOUBTFUL * (self.beyond_light + len(self))

    def some(self, keep_N: NDArray[np.bool_]) -> Points:
        """Part of the measurements."""
        arrays = {name: value[keep_N] for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        return Points(**{**vars(self), **arrays})


class Row(NamedTuple):
    """One row of a table, as `Points` has it."""

    flop: float
    num_bytes: float
    moved: float
    experts: float
    chain: float
    extra: float
    shape: tuple[int, ...]


Key = tuple[str, Work, str, WeightName, str]
Groups = dict[Key, dict[Row, float]]


def read_points(folder: Path, shortest: int = SHORTEST_PROMPT) -> list[Points]:
    """All kernels of the tables in a folder, each with its GPU, work and format.

    Args:
        folder: that of the tables.
        shortest: queries that a measurement of prefill attention must have at least.
    """
    groups: Groups = defaultdict(dict)
    _read_experts(folder, groups)
    _read_wide(folder, groups)
    for row in _rows(folder / "gemm_samples.csv"):
        weights = _WEIGHTS[row["dtype"]]
        _add(groups, (row["gpu"], "gemm", weights, weights, row["backend"]), _gemm(row, weights), row["latency_us"])
    for file, kind in (("attention_gqa_samples.csv", "gqa"), ("attention_mla_samples.csv", "mla")):
        for row in _rows(folder / file):
            prefill = row["phase"] == "context"
            if row.get("attn_dtype", "bfloat16") != "bfloat16" or (prefill and int(row["isl"]) < shortest):
                continue
            work: Work = "attention_prefill" if prefill else "attention_decode"
            name = kind + ("_fp8" if row["kv_cache_dtype"] == "fp8" else "")
            measured = _gqa(row) if kind == "gqa" else _mla(row)
            _add(groups, (row["gpu"], work, name, "bf16", row["backend"]), measured, row["latency_us"])
    return [_points(key, rows) for key, rows in sorted(groups.items())]


def _read_experts(folder: Path, groups: Groups) -> None:
    kernels = json.loads((folder / "moe_kernel_ids.json").read_text(encoding="utf-8"))
    for gpu in GPUS:
        for row in _rows(folder / f"moe_{gpu}.csv"):
            if row["us_balanced"]:
                weights = _WEIGHTS[row["moe_dtype"]]
                kernel = f"{row['backend']} {kernels[row['kernel_id']]}"
                if row["moe_dtype"].startswith("w4"):
                    kernel += " " + row["moe_dtype"].partition("_")[0]
                _add(groups, (gpu, "experts", weights, weights, kernel), _experts(row, weights), row["us_balanced"])


def _read_wide(folder: Path, groups: Groups) -> None:
    """SGLang's grouped GEMM behind DeepEP, for DeepSeek-V3 alone: numbers of ranks are left out in place of shapes.

    Decode is replayed from CUDA graphs; prefill is launched by Python, which hides the kernel below many rows.
    """
    for row in _rows(folder / "moe_wideep_eplb.csv"):
        if (row["backend"], row["version"], row["distribution"]) != ("sglang", _WIDE_VERSION, "uniform"):
            continue
        if row["gpu"] not in GPUS:
            continue
        measured = _experts(row | {"moe_tp_size": "1"}, "fp8_block")
        ranks = int(row["moe_ep_size"])
        if row["phase"] == "generation" or int(row["num_tokens"]) * int(row["topk"]) >= MANY_ROWS * ranks:
            own = measured._replace(extra=0.0, shape=(*measured.shape, ranks))
            _add(groups, (row["gpu"], "experts", "fp8_block", "fp8_block", WIDE), own, row["latency_us"])


def _add(groups: Groups, key: Key, row: Row, latency_us: str) -> None:
    groups[key][row] = min(float(latency_us), groups[key].get(row, np.inf))


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def _points(key: Key, rows: dict[Row, float]) -> Points:
    gpu_name, work, name, weights, kernel = key
    gpu, seconds_N = load_gpu(GPUS[gpu_name]), np.array(list(rows.values())) * 1e-6
    flop, num_bytes, moved, experts, chain, extra = np.array([row[:-1] for row in rows], dtype=float).T
    number = {shape: index for index, shape in enumerate(sorted({row.shape for row in rows}))}
    rate = gpu.compute[compute_format(weights, frozenset(gpu.compute))[0]].value
    slower_N = seconds_N >= np.maximum(flop / rate, num_bytes / gpu.hbm_bandwidth.value)
    points = Points(
        gpu=gpu,
        work=work,
        name=name,
        weights=weights,
        kernel=kernel,
        flop_N=flop,
        bytes_N=num_bytes,
        moved_N=moved,
        experts_N=experts,
        chain_N=chain,
        extra_N=extra,
        seconds_N=seconds_N,
        shape_N=np.array([number[row.shape] for row in rows]),
        beyond_light=int((~slower_N).sum()),
    )
    return points.some(slower_N)


def _ints(row: dict[str, str], *names: str) -> list[int]:
    return [int(row[name]) for name in names]


def _experts(row: dict[str, str], weights: WeightName) -> Row:
    """Balanced routing: every local expert has equally many rows, as far as there are enough."""
    names = ("hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size", "moe_ep_size", "num_tokens")
    hidden, inter, top_k, experts, tp, ep, tokens = _ints(row, *names)
    width, local, rows = inter / tp, experts / ep, tokens * top_k / ep
    num_bytes = min(local, rows) * 3 * hidden * width * float(WEIGHTS[weights].bits) / 8
    moved = rows * 2 * (2 * hidden + 3 * width)
    shape = (hidden, inter, top_k, experts)
    return Row(6 * hidden * width * rows, num_bytes, moved, local, 0.0, 2.0 * tokens * hidden, shape)


def _gemm(row: dict[str, str], weights: WeightName) -> Row:
    m, n, k = _ints(row, "m", "n", "k")
    return Row(2.0 * m * n * k, n * k * float(WEIGHTS[weights].bits) / 8, 2.0 * m * (k + n), 0.0, k, 0.0, (n, k))


def _gqa(row: dict[str, str]) -> Row:
    names = ("num_heads", "num_key_value_heads", "head_dim", "batch_size", "isl", "step")
    heads, kv_heads, dim, batch, queries, before = _ints(row, *names)
    entry = 2 * kv_heads * dim * (1 if row["kv_cache_dtype"] == "fp8" else 2)
    return _attention(row, batch, queries, before, heads, 2 * dim, 2 * dim, entry, (heads, kv_heads))


def _mla(row: dict[str, str]) -> Row:
    """Absorbed in decode: one key and value of the latent's width for all heads; full heads in prefill."""
    heads, batch, queries, before = _ints(row, "num_heads", "batch_size", "isl", "step")
    entry = (_LATENT + _ROPE) * (1 if row["kv_cache_dtype"] == "fp8" else 2)
    absorbed = 2 * _LATENT + _ROPE
    if row["phase"] == "generation":
        return _attention(row, batch, queries, before, heads, absorbed, absorbed, entry, (heads,))
    return _attention(row, batch, queries, before, heads, _NOPE + _ROPE + _VALUE, 2 * _VALUE, entry, (heads,))


def _attention(
    row: dict[str, str],
    batch: int,
    queries: int,
    before: int,
    heads: int,
    dims: int,
    moved_dims: int,
    entry: int,
    shape: tuple[int, ...],
) -> Row:
    """dims: multiply-adds per head and pair; moved_dims: of query and output of a head; entry: bytes in the cache."""
    moved = 2.0 * batch * queries * heads * moved_dims
    if row["phase"] == "generation":
        seen = before + 1
        flop, num_bytes = 2.0 * dims * batch * heads * seen, float(batch * seen * entry)
        return Row(flop, num_bytes, moved + batch * FIRST_ENTRIES * entry, 0.0, split_chain(seen), 0.0, shape)
    seen = before + queries
    keys = tiled_keys(before + (queries + 1) / 2)
    flop = 2.0 * dims * batch * heads * queries * keys
    return Row(flop, 0.0, moved + batch * seen * entry, 0.0, seen, 0.0, shape)
