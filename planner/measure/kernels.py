"""What the kernels of the micro-run reach on one device, over sizes from one token to thousands.

Weights, and the caches of decode, take turns from a pool that no cache holds: in a model, too, each layer
reads its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import cycle
from typing import Any, Final

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own abbreviation
from torch import Tensor

from planner.inputs.precision import WeightName
from planner.measure.compute import compute_dtype, held_experts, serve
from planner.measure.rates import rate_of, seconds_of
from planner.measure.shape import Shape
from planner.measure.wire_format import Rows

_REPEATS: Final = 5
_POOL_BYTES: Final = {"cpu": 96 << 20, "cuda": 1 << 30}
_GEMM: Final = {"cpu": ((512, 512), (1024, 1024)), "cuda": ((4096, 4096), (7168, 2048))}
_TOKENS: Final = {"cpu": (1, 8, 64, 256), "cuda": (1, 16, 128, 1024, 4096)}
_EXPERTS: Final = {"cpu": ((4, 256, 256), (16, 256, 256), (8, 512, 256)), "cuda": ((8, 4096, 2048), (32, 4096, 2048))}
_SEEN: Final = {"cpu": (64, 512), "cuda": (1024, 4096)}
_HEADS: Final = 8
_HEAD_DIM: Final = 64

Sample = dict[str, float]


def kernel_samples(device: torch.device, weights: WeightName) -> dict[str, list[Sample]]:
    """Work and time of every kernel family with weights in one format, as plain data."""
    return {
        "gemm": _gemm(device, weights),
        "experts": _experts(device, weights),
        "attention_decode": _attention(device, weights, decode=True),
        "attention_prefill": _attention(device, weights, decode=False),
    }


def _timed(action: Callable[[], object], device: torch.device) -> float:
    return rate_of(seconds_of(action, device, _REPEATS)).median


def _sample(seconds: float, flop: float, weight_bytes: float, moved_bytes: float = 0.0, experts: int = 0) -> Sample:
    return {
        "seconds": seconds,
        "flop": flop,
        "weight_bytes": weight_bytes,
        "moved_bytes": moved_bytes,
        "experts": experts,
    }


def _gemm(device: torch.device, weights: WeightName) -> list[Sample]:
    dtype = compute_dtype(weights)
    found = []
    for rows, columns in _GEMM[device.type]:
        size = rows * columns * dtype.itemsize
        pool = cycle(
            [torch.randn((rows, columns), device=device).to(dtype) for _ in range(_POOL_BYTES[device.type] // size)]
        )
        for tokens in _TOKENS[device.type]:
            x = torch.randn((tokens, rows), device=device).to(dtype)
            seconds = _timed(lambda x=x, pool=pool: x @ next(pool), device)  # type: ignore[misc]
            found.append(_sample(seconds, 2.0 * tokens * rows * columns, size))
    return found


def _experts(device: torch.device, weights: WeightName) -> list[Sample]:
    found = []
    for count, hidden, width in _EXPERTS[device.type]:
        shape = _shape(hidden, width, count, weights)
        size = 3 * hidden * width * compute_dtype(weights).itemsize * count
        layers = max(2, _POOL_BYTES[device.type] // size)
        pool = cycle([held_experts(layer, list(range(count)), 0, shape, device) for layer in range(layers)])
        for tokens in _TOKENS[device.type]:
            rows = _rows(tokens * count, count, hidden, compute_dtype(weights), device)
            local = rows.slot_NK.long()
            seconds = _timed(
                lambda rows=rows, pool=pool, local=local, shape=shape: serve(rows, next(pool), local, shape),  # type: ignore[misc]
                device,
            )
            moved = 2.0 * (2 * hidden + 3 * width) * len(rows)
            found.append(_sample(seconds, 6.0 * hidden * width * len(rows), size, moved, count))
    return found


def _rows(number: int, experts: int, hidden: int, dtype: torch.dtype, device: torch.device) -> Rows:
    slots = (torch.arange(number, device=device, dtype=torch.int32) % experts)[:, None]
    x = torch.randn((number, hidden), device=device).to(dtype)
    return Rows(x, slots, torch.ones((number, 1), device=device))


def _shape(hidden: int, width: int, experts: int, weights: WeightName) -> Shape:
    return Shape(
        hidden=hidden,
        expert_hidden=hidden,
        expert_width=width,
        gated=True,
        num_experts=experts,
        etp=1,
        tp=1,
        experts=weights,
        kv_cache="bf16",
        dispatch="bf16",
        combine="bf16",
        attention={},
    )


def _attention(device: torch.device, weights: WeightName, *, decode: bool) -> list[Sample]:
    dtype = compute_dtype(weights)
    pool = torch.randn(_POOL_BYTES[device.type] // dtype.itemsize, device=device).to(dtype)
    found = []
    for seen in _SEEN[device.type]:
        for tokens in _TOKENS[device.type]:
            shape = (2, tokens if decode else 1, _HEADS, seen, _HEAD_DIM)
            size = math.prod(shape)
            if size > len(pool):
                continue
            # decode reads caches that nothing has touched since the step before, prefill what it has just written
            count = len(pool) // size if decode else 1
            caches = cycle([pool[size * turn : size * (turn + 1)].view(shape) for turn in range(count)])
            queries = torch.randn((shape[1], _HEADS, 1 if decode else tokens, _HEAD_DIM), device=device).to(dtype)
            seconds = _timed(lambda queries=queries, caches=caches: _attend(queries, *next(caches)), device)  # type: ignore[misc]
            flop = 4.0 * tokens * _HEADS * seen * _HEAD_DIM
            # as the cost model counts: decode reads the cache, prefill moves entries, queries and results
            moved = size if decode else 4.0 * tokens * _HEADS * _HEAD_DIM
            found.append(_sample(seconds, flop, moved * dtype.itemsize))
    return found


def _attend(queries: Tensor, keys: Tensor, values: Tensor) -> Any:
    return F.scaled_dot_product_attention(queries, keys, values)
