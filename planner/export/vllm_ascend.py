"""vllm-ascend 0.25 (182b75ea84ff): experts of every device in every MoE layer, counted from 0.

`expert_file_to_tensor` in `vllm_ascend/eplb/core/eplb_utils.py` reads by position, whatever the ids in
the file say; all devices must list the same number of experts, or no tensor can be made of them.
"""

from __future__ import annotations

import json
import shlex
from typing import Any

import numpy as np

from planner.errors import InputError, Place, Problem
from planner.export.layout import Layout
from planner.export.maps import FileMap, Row, experts_of, parsed


def write(layout: Layout) -> bytes:
    """The JSON, one device a line."""
    layers = []
    for ordinal in range(len(layout.placement.layer_ids)):
        devices = [
            f'   {{"device_id": {rank}, "device_expert": [{", ".join(map(str, experts))}]}}'
            for rank, experts in enumerate(layout.by_rank(ordinal))
        ]
        opening = f'  {{"layer_id": {ordinal}, "device_count": {len(devices)}, "device_list": [\n'
        layers.append(opening + ",\n".join(devices) + "]}")
    return (f'{{"moe_layer_count": {len(layers)},\n "layer_list": [\n' + ",\n".join(layers) + "]}\n").encode()


def read(raw: bytes, file: str) -> FileMap:
    """What vllm-ascend would take from it: rows and devices by position."""
    data = parsed(raw, file)
    layers = data.get("layer_list") if isinstance(data, dict) else None
    count = data.get("moe_layer_count") if isinstance(data, dict) else None
    if not isinstance(layers, list) or not layers:
        raise InputError(Problem("layer_list is missing", Place(file, key="layer_list"), "expected a list of layers"))
    if count != len(layers):
        message = f"{count!r}, but layer_list has {len(layers)} layers"
        raise InputError(Problem(message, Place(file, key="moe_layer_count"), f"expected {len(layers)}"))
    rows = {index: _row(entry, file, f"layer_list[{index}]") for index, entry in enumerate(layers)}
    ranks = {len(row.slots_R) for row in rows.values() if row.slots_R is not None}
    if len(ranks) > 1:
        raise InputError(
            Problem(f"layers list {sorted(ranks)} devices", Place(file, key="layer_list"), "list them all")
        )
    return FileMap(file, "moe", rows, num_ranks=ranks.pop())


def _row(entry: Any, file: str, key: str) -> Row:
    devices = entry.get("device_list") if isinstance(entry, dict) else None
    if not isinstance(devices, list) or not devices:
        raise InputError(Problem("device_list is missing", Place(file, key=key), "expected a list of devices"))
    parts = []
    for index, device in enumerate(devices):
        where = f"{key}.device_list[{index}].device_expert"
        parts.append(experts_of(device.get("device_expert") if isinstance(device, dict) else None, file, where))
    return Row(np.concatenate(parts), np.array([len(part) for part in parts], dtype=np.int64))


def how_to_load(layout: Layout, path: str) -> str:
    """The flag that loads it; its path must end in .json."""
    del layout
    config = json.dumps({"eplb_config": {"expert_map_path": path}})
    return f"--additional-config {shlex.quote(config)}"
