"""vLLM with pull request 49572, or 53022 for DeepSeek-V4 (in no release): slots of each MoE layer, as JSON."""

from __future__ import annotations

import json
import shlex

from planner.errors import InputError, Place, Problem
from planner.export.layout import Layout
from planner.export.maps import FileMap, Row, experts_of, json_rows, parsed


def write(layout: Layout) -> bytes:
    """A list of slots for each MoE layer."""
    return (json_rows(layout.rows()) + "\n").encode()


def read(raw: bytes, file: str) -> FileMap:
    """Slots of each MoE layer, or one list for all of them."""
    data = parsed(raw, file)
    if not isinstance(data, list) or not data:
        raise InputError(Problem("not a list", Place(file), "expected the experts of all slots, by MoE layer"))
    if not any(isinstance(row, list) for row in data):
        return FileMap(file, "all", {0: Row(experts_of(data, file, "map"))})
    return FileMap(file, "moe", {index: Row(experts_of(row, file, f"[{index}]")) for index, row in enumerate(data)})


def how_to_load(layout: Layout, path: str) -> str:
    """The flags that load it."""
    key = "expert_map_path" if layout.model.family == "deepseek_v4" else "initial_expert_map_path"
    config = json.dumps({"num_redundant_experts": layout.redundant_experts, key: path})
    return f"--enable-eplb --eplb-config {shlex.quote(config)}"
