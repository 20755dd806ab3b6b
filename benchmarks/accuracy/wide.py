"""SGLang's grouped GEMM of wide expert parallelism (DeepGEMM), against the curves of the profiles: no fit has used it.

AIConfigurator's rows for DeepSeek-V3 in fp8 blocks, uniform routing, 2 to 256 ranks. Decode is replayed from CUDA
graphs; prefill is launched by Python, which shows below some ten thousand rows.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.accuracy.compute import text_of
from benchmarks.accuracy.fitting import summary
from benchmarks.accuracy.points import GPUS
from benchmarks.accuracy.skew import EXPERTS, TOP_K, expert_s

Floats = NDArray[np.float64]
VERSION: Final = "0.5.10"
MANY_ROWS: Final = 32768
"""Rows of a rank from which on the time of a prefill kernel is its own."""


@dataclass(frozen=True)
class Wide:
    """Measurements of one GPU in one phase."""

    gpu: str
    phase: str
    rows_N: Floats
    ranks_N: Floats
    seconds_N: Floats

    @property
    def predicted_N(self) -> Floats:
        """By the curve of the profile; every local expert is touched if there are rows enough."""
        local_N = EXPERTS / self.ranks_N
        touched_N = np.minimum(local_N, self.rows_N)
        return np.array(
            [
                float(expert_s(self.gpu, np.array([rows]), slots, touched)[0])
                for rows, slots, touched in zip(self.rows_N, local_N, touched_N, strict=True)
            ]
        )


def read_wide(folder: Path) -> Iterator[Wide]:
    """Decode with all rows, and prefill with many."""
    found: dict[tuple[str, str], list[tuple[float, float, float]]] = defaultdict(list)
    with (folder / "moe_wideep_eplb.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            gpu = GPUS.get(row["gpu"])
            if gpu is None or (row["backend"], row["version"], row["distribution"]) != ("sglang", VERSION, "uniform"):
                continue
            ranks = float(row["moe_ep_size"])
            rows = float(row["num_tokens"]) * TOP_K / ranks
            if row["phase"] == "generation" or rows >= MANY_ROWS:
                found[gpu, row["phase"]].append((rows, ranks, float(row["latency_us"]) * 1e-6))
    for (gpu, phase), points in sorted(found.items()):
        rows_N, ranks_N, seconds_N = np.array(points).T
        yield Wide(gpu, "decode" if phase == "generation" else "prefill", rows_N, ranks_N, seconds_N)


def rows(folder: Path) -> Iterator[tuple[str, ...]]:
    """GPU, phase, measurements, errors, measured over predicted."""
    for one in read_wide(folder):
        ratio_N = one.predicted_N / one.seconds_N
        faster = f"{float(np.exp(np.mean(-np.log(ratio_N)))):.2f}"
        yield one.gpu, one.phase, f"{len(ratio_N)}", text_of(summary(np.abs(ratio_N - 1))), faster
