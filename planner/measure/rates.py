"""How fast one device is by itself: GEMM rate, memory bandwidth, launch time. No other rank is needed.

Warm-up first; the median of several samples and how far they spread are reported.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import torch

_WARM_UPS: Final = 2
_CPU_GEMM: Final = 768
_CUDA_GEMM: Final = 8192
_CPU_BYTES: Final = 128 << 20
_CUDA_BYTES: Final = 4 << 30


@dataclass(frozen=True)
class Rate:
    """Median of some samples, and the 10th and 90th percentile; per second, or seconds."""

    median: float
    low: float
    high: float
    samples: int

    @property
    def spread(self) -> float:
        """Width of the middle 80 % as a part of the median."""
        return (self.high - self.low) / self.median if self.median else 0.0

    def data(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def rate_of(values: list[float]) -> Rate:
    """Median and spread of samples."""
    low, median, high = np.quantile(values, [0.1, 0.5, 0.9]).tolist()
    return Rate(median, low, high, len(values))


def seconds_of(action: Callable[[], object], device: torch.device, repeats: int) -> list[float]:
    """Seconds of each of some runs of a kernel, after a warm-up."""
    found = []
    for number in range(_WARM_UPS + repeats):
        begin = _now(device)
        action()
        if number >= _WARM_UPS:
            found.append(_now(device) - begin)
        else:
            _now(device)
    return found


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def gemm_rate(device: torch.device, dtype: torch.dtype, repeats: int = 9, size: int | None = None) -> Rate:
    """FLOP per second of a square matrix product that is large enough to be bound by arithmetic."""
    side = size or (_CUDA_GEMM if device.type == "cuda" else _CPU_GEMM)
    left = torch.randn((side, side), device=device).to(dtype)
    right = torch.randn((side, side), device=device).to(dtype)
    flop = 2.0 * side**3
    return rate_of([flop / seconds for seconds in seconds_of(lambda: left @ right, device, repeats)])


def memory_rate(device: torch.device, repeats: int = 7) -> Rate:
    """Bytes read per second: the sum of an array that no cache holds."""
    count = (_CUDA_BYTES if device.type == "cuda" else _CPU_BYTES) // 4
    numbers = torch.ones(count, dtype=torch.float32, device=device)
    return rate_of([count * 4 / seconds for seconds in seconds_of(numbers.sum, device, repeats)])
