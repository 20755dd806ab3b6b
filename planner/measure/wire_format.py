"""Rows as they travel: activations in the plan's format with their scales, beside them what to do with them.

fp8 carries one fp32 scale per 128 elements (DeepEP), mxfp8 one power of two per 32, nvfp4 one fp8 scale
per 16 elements of four bits (OCP Microscaling Formats v1.0; NVIDIA's nvfp4). A row is bytes, so that one
all-to-all moves activations, scales, slots and weights together.

Legend: N rows, H hidden size, K choices that travel with a row, B bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import torch
from torch import Tensor

from planner.inputs.precision import ActivationName

_BLOCK: Final[dict[ActivationName, int]] = {"fp8": 128, "mxfp8": 32, "nvfp4": 16}
_FP8: Final = torch.float8_e4m3fn
_FP8_MAX: Final = 448.0
_FP4: Final = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_PLAIN: Final = {"fp32": torch.float32, "bf16": torch.bfloat16}

ROUNDING: Final[dict[ActivationName, float]] = {"fp32": 1e-4, "bf16": 3e-2, "fp8": 6e-2, "mxfp8": 6e-2, "nvfp4": 3e-1}
"""How far a result may be from the reference that is rounded once: norm of the difference over the norm."""


def encode(x_NH: Tensor, name: ActivationName) -> Tensor:
    """Activations as bytes [N, B], scales behind them."""
    if name in _PLAIN:
        return _bytes(x_NH.to(_PLAIN[name]))
    blocks = _blocks(x_NH.float(), _BLOCK[name])  # [N, blocks, size]
    largest = blocks.abs().amax(dim=2, keepdim=True)
    if name == "fp8":
        scale = (largest / _FP8_MAX).clamp_min(1e-12)
        values, scales = _bytes(_flat((blocks / scale).to(_FP8))), _bytes(scale.flatten(1))
    elif name == "mxfp8":
        exponent = torch.ceil(torch.log2((largest / _FP8_MAX).clamp_min(2.0**-126)))
        values, scales = (
            _bytes(_flat((blocks / torch.exp2(exponent)).to(_FP8))),
            (exponent + 127).flatten(1).to(torch.uint8),
        )
    else:
        scale = (largest / _FP4[-1]).clamp(2.0**-9, _FP8_MAX).to(_FP8)
        values, scales = _packed(_flat(blocks / scale.float())), _bytes(scale.flatten(1))
    return torch.cat([values, scales], dim=1)


def decode(raw_NB: Tensor, name: ActivationName, hidden: int, dtype: torch.dtype) -> Tensor:
    """Activations from bytes [N, H]."""
    if name in _PLAIN:
        return _as(raw_NB, _PLAIN[name]).to(dtype)
    size = _BLOCK[name]
    count = -(-hidden // size)
    num_values = count * size // (2 if name == "nvfp4" else 1)
    values, scales = raw_NB[:, :num_values], raw_NB[:, num_values:]
    if name == "nvfp4":
        blocks, scale = _unpacked(values), _as(scales, _FP8).float()
    elif name == "mxfp8":
        blocks, scale = _as(values, _FP8).float(), torch.exp2(scales.float() - 127)
    else:
        blocks, scale = _as(values, _FP8).float(), _as(scales, torch.float32)
    whole = blocks.reshape(len(raw_NB), count, size) * scale[:, :, None]
    return _flat(whole)[:, :hidden].to(dtype)


def rounded(x_NH: Tensor, name: ActivationName) -> Tensor:
    """What arrives of activations that travel in a format."""
    return decode(encode(x_NH, name), name, x_NH.shape[1], x_NH.dtype)


@dataclass(frozen=True)
class Rows:
    """Tokens at a rank on their way to experts."""

    x_NH: Tensor
    slot_NK: Tensor
    """Global slots that shall serve the row [int32]; -1: none."""
    weight_NK: Tensor
    """Router weights [fp32]."""

    def packed(self, name: ActivationName) -> Tensor:
        """As bytes."""
        return torch.cat([encode(self.x_NH, name), _bytes(self.slot_NK), _bytes(self.weight_NK)], dim=1)

    @staticmethod
    def unpacked(raw_NB: Tensor, name: ActivationName, hidden: int, choices: int, dtype: torch.dtype) -> Rows:
        """From bytes."""
        body = raw_NB.shape[1] - 8 * choices
        x_NH = decode(raw_NB[:, :body], name, hidden, dtype)
        slot_NK = _as(raw_NB[:, body : body + 4 * choices], torch.int32)
        return Rows(x_NH, slot_NK, _as(raw_NB[:, body + 4 * choices :], torch.float32))

    def __len__(self) -> int:
        return len(self.x_NH)


def _bytes(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.uint8).reshape(len(x), x.shape[1] * x.element_size())


def _as(raw_NB: Tensor, dtype: torch.dtype) -> Tensor:
    # a copy: a slice of a row need not begin, nor rows be apart, as the type must
    return raw_NB.new_empty(raw_NB.shape).copy_(raw_NB).view(dtype)


def _blocks(x_NH: Tensor, size: int) -> Tensor:
    missing = -x_NH.shape[1] % size
    return torch.nn.functional.pad(x_NH, (0, missing)).reshape(len(x_NH), -(-x_NH.shape[1] // size), size)


def _flat(blocks: Tensor) -> Tensor:
    return blocks.reshape(len(blocks), blocks.shape[1] * blocks.shape[2])


def _packed(x_NH: Tensor) -> Tensor:
    """Nearest e2m1 values, two in a byte."""
    steps = torch.tensor([(a + b) / 2 for a, b in pairwise(_FP4)], device=x_NH.device)
    code = torch.bucketize(x_NH.abs(), steps).to(torch.uint8) | ((x_NH < 0).to(torch.uint8) << 3)
    return code[:, 0::2] | (code[:, 1::2] << 4)


def _unpacked(raw_NB: Tensor) -> Tensor:
    code = _flat(torch.stack([raw_NB & 15, raw_NB >> 4], dim=2))
    value = torch.tensor(_FP4, device=raw_NB.device)[(code & 7).long()]
    return torch.where(code >= 8, -value, value)
