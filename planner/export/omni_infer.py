"""omni-infer (c8bc2bbb): a 0/1 array [ranks, MoE layers, experts]; slots within a rank have no order.

Legend: R ranks, L MoE layers, E experts.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from planner.errors import InputError, Place, Problem
from planner.export.layout import Layout
from planner.export.maps import FileMap, Row
from planner.trace.importers.npy_file import array_of


def write(layout: Layout) -> bytes:
    """The array as int32."""
    layers = len(layout.placement.layer_ids)
    held_RLE = np.zeros((layout.split.ep, layers, layout.num_experts), dtype=np.int32)
    for row in range(layers):
        for rank, experts in enumerate(layout.by_rank(row)):
            held_RLE[rank, row, experts] = 1
    stream = io.BytesIO()
    np.save(stream, held_RLE, allow_pickle=False)
    return stream.getvalue()


def read(raw: bytes, file: str) -> FileMap:
    """Experts of each rank, in ascending order."""
    held_RLE = array_of(raw, Path(file), "")
    if held_RLE.ndim != 3 or held_RLE.dtype.kind not in "iu" or not held_RLE.size:
        message = f"{held_RLE.dtype} {list(held_RLE.shape)}"
        raise InputError(Problem(message, Place(file), "expected integers [ranks, MoE layers, experts]"))
    if not np.isin(held_RLE, (0, 1)).all():
        raise InputError(Problem("holds other numbers than 0 and 1", Place(file), "1: the rank holds the expert"))
    ranks, layers, experts = held_RLE.shape
    rows = {}
    for layer in range(layers):
        expert_P = np.nonzero(held_RLE[:, layer])[1].astype(np.int64)
        rows[layer] = Row(expert_P, held_RLE[:, layer].sum(axis=1).astype(np.int64))
    return FileMap(file, "moe", rows, num_ranks=ranks, num_experts=experts)


def how_to_load(layout: Layout, path: str) -> str:
    """The key that loads it."""
    del layout
    return f"pattern_path: {path} in the placement config.yaml"
