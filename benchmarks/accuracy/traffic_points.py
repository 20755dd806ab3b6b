"""Measured collectives and exchanges: what a row of the communication tables means to the cost model.

The tables are extracts of AIConfigurator 0.12 (Apache-2.0). Routing in them is uniform, so the copies that travel
follow from top-k and the number of ranks; bytes are counted as `planner.cost` counts them.

Legend: N measurements.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.accuracy.points import GPUS
from planner.inputs.precision import ACTIVATION_BITS, ActivationName

Floats = NDArray[np.float64]
Row = dict[str, str]
BANDWIDTH: Final = {"a100-sxm-80": 300e9, "h100-sxm": 450e9, "h200-sxm": 450e9, "gb200": 900e9}
"""Of NVLink, per GPU and direction."""
NIC: Final = 50e9
HEADER_BYTES: Final = 16
_NODE_RANKS: Final = {"gb200": 4}
_NEWEST_NCCL: Final = {"a100-sxm-80": "2.27.3", "h100-sxm": "2.29.2", "h200-sxm": "2.29.2", "gb200": "2.29.2"}
_PHASES: Final = {"all_reduce": 2, "all_gather": 1, "reduce_scatter": 1}
MOST_BYTES: Final = {"vllm": (8 << 20) - 1}
"""Larger tensors go to NCCL: vLLM's own limit (custom_all_reduce.py, below 8 MiB)."""
SMALL_BYTES: Final = 16 << 20
"""The same of other engines."""


@dataclass(frozen=True)
class Travel:
    """Measurements of one library on one GPU."""

    gpu: str
    library: str
    ranks_N: Floats
    phases_N: Floats
    """Of a collective: 2 for an all-reduce; of an exchange: 1 for a dispatch, 2 for a combine."""
    inside_N: Floats
    """Bytes that a GPU sends inside the scale-up domain."""
    beyond_N: Floats
    """Bytes that it sends beyond it."""
    tokens_N: Floats
    """Tokens that it brings."""
    nodes_N: Floats
    seconds_N: Floats
    group_N: NDArray[np.int64]
    """What hold-outs leave out: a model shape, a number of ranks or nodes, a backend."""

    def __len__(self) -> int:
        """N."""
        return len(self.seconds_N)

    def some(self, keep_N: NDArray[np.bool_]) -> Travel:
        """Part of the measurements."""
        arrays = {name: value[keep_N] for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        return Travel(**{**vars(self), **arrays})


Point = tuple[float, float, float, float, float, float, float, object]


def _travel(gpu: str, library: str, points: list[Point]) -> Travel:
    ranks, phases, inside, beyond, tokens, nodes, seconds = np.array([point[:7] for point in points]).T
    groups = [point[7] for point in points]
    number = {group: index for index, group in enumerate(dict.fromkeys(groups))}
    group_N = np.array([number[group] for group in groups], dtype=np.int64)
    return Travel(gpu, library, ranks, phases, inside, beyond, tokens, nodes, seconds, group_N)


def _rows(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def _grouped(rows: Iterator[Row], point: Callable[[str, Row], tuple[str, list[Point]] | None]) -> list[Travel]:
    groups: dict[tuple[str, str], list[Point]] = defaultdict(list)
    for row in rows:
        gpu = GPUS.get(row.get("gpu", "gb200"))
        found = None if gpu is None else point(gpu, row)
        if gpu is not None and found is not None:
            groups[gpu, found[0]] += found[1]
    return [_travel(gpu, library, points) for (gpu, library), points in groups.items()]


# --- collectives ----------------------------------------------------------------------------------


def collectives(folder: Path) -> list[Travel]:
    """All-reduce, all-gather and reduce-scatter: of NCCL, and of the engines' own kernels in CUDA graphs."""
    return _grouped(_rows(folder / "collectives.csv"), _collective)


def _collective(gpu: str, row: Row) -> tuple[str, list[Point]] | None:
    phases = _PHASES.get(row["op_name"])
    if phases is None or row["dtype"] == "int8":
        return None
    ranks, num_bytes = int(row["num_gpus"]), float(row["bytes"])
    sent = phases * (ranks - 1) / ranks * num_bytes
    seconds = float(row["latency_us"]) * 1e-6
    if row["lib"] == "nccl":
        if row["dir_version"] != _NEWEST_NCCL[gpu]:
            return None
        return "nccl", [(ranks, phases, sent, 0.0, 0.0, 1, seconds, (row["op_name"], ranks))]
    engine = {"trtllm": "tensorrt-llm"}.get(name := row["lib"].split(":")[1], name)
    if row["lib"].endswith("eager") or num_bytes > MOST_BYTES.get(engine, SMALL_BYTES):
        return None
    return f"{engine}-all-reduce", [(ranks, phases, sent, 0.0, 0.0, 1, seconds, ranks)]


def nccl_all_to_all(folder: Path) -> list[Travel]:
    """NCCL's own all-to-all, equal parts."""

    def point(gpu: str, row: Row) -> tuple[str, list[Point]] | None:
        newest = row["lib"] == "nccl" and row["dir_version"] == _NEWEST_NCCL[gpu]
        if row["op_name"] != "alltoall" or row["dtype"] == "int8" or not newest:
            return None
        ranks = int(row["num_gpus"])
        sent = (ranks - 1) / ranks * float(row["bytes"])
        return "nccl", [(ranks, 1, sent, 0.0, 0.0, 1, float(row["latency_us"]) * 1e-6, ranks)]

    return _grouped(_rows(folder / "collectives.csv"), point)


# --- exchanges ------------------------------------------------------------------------------------


def deepep(folder: Path) -> list[Travel]:
    """DeepEP V1: fp8 dispatch and bf16 combine, low latency and normal (20 multiprocessors)."""
    return _grouped(_rows(folder / "deepep_sglang.csv"), _deepep)


def _deepep(gpu: str, row: Row) -> tuple[str, list[Point]] | None:
    nodes, normal = int(row["node_num"]), row["mode"] == "normal"
    if normal and row["sms"] != "20":
        return None
    if gpu == "h200-sxm" and row["ver"] != "0.5.12":
        return None  # the same rows as of H100, byte for byte
    if nodes == 1 and row["ver"] != "0.5.12":
        return None
    hidden, top_k, experts = (int(row[name]) for name in ("hidden_size", "num_topk", "num_experts"))
    tokens, size = int(row["num_token"]), _NODE_RANKS.get(gpu, 8)
    ranks = nodes * size
    if normal:
        inside = visited(top_k, experts, ranks) * (size - 1)
        beyond = (nodes - 1) * visited(top_k, experts, nodes)
    else:
        inside, beyond = top_k * (size - 1) / ranks, top_k * (ranks - size) / ranks
    group = (nodes,) if nodes > 1 else (hidden, top_k, experts)
    points: list[Point] = []
    formats: tuple[tuple[int, str, ActivationName], ...] = ((1, "dispatch_us", "fp8"), (2, "combine_us", "bf16"))
    for way, column, form in formats:
        num_bytes = tokens * (hidden * float(ACTIVATION_BITS[form]) / 8 + HEADER_BYTES)
        seconds = float(row[column]) * 1e-6
        points.append((ranks, way, inside * num_bytes, beyond * num_bytes, tokens, nodes, seconds, group))
    name = "deepep-normal" if normal else "deepep-low-latency"
    return name + (", several nodes" if nodes > 1 else ""), points


def nvlink(folder: Path) -> list[Travel]:
    """TensorRT-LLM's exchanges over the NVLink domain of GB200: one copy for each rank visited."""

    def point(_gpu: str, row: Row) -> tuple[str, list[Point]] | None:
        way = {"alltoall_dispatch": 1, "alltoall_combine": 2}.get(row["op_name"])
        if way is None:
            return None
        forms: dict[str, ActivationName] = {"bfloat16": "bf16", "fp8": "fp8", "nvfp4": "nvfp4"}
        form = forms[row["moe_dtype"]] if way == 1 else "bf16"
        ranks, tokens = int(row["moe_ep_size"]), int(row["num_tokens"])
        top_k, experts = int(row["topk"]), int(row["num_experts"])
        copies = visited(top_k, experts, ranks) * (ranks - 1)
        num_bytes = tokens * copies * int(row["hidden_size"]) * float(ACTIVATION_BITS[form]) / 8
        name = {"NVLinkTwoSided": "nvlink-two-sided", "NVLinkOneSided": "nvlink-one-sided"}[row["kernel_source"]]
        seconds = float(row["latency_us"]) * 1e-6
        return name, [(ranks, way, num_bytes, 0.0, tokens, 1, seconds, ranks)]

    return _grouped(_rows(folder / "gb200_nvl72_alltoall.csv"), point)


def visited(top_k: int, experts: int, units: int) -> float:
    """Probability that a token's uniform choice of different experts visits one of so many units."""
    mine = experts / units
    return 1 - prod(max(0.0, experts - mine - i) / (experts - i) for i in range(top_k))
