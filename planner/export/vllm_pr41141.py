"""vLLM with pull request 41141 (offline EPLB, in no release): one JSONL record, layers by MoE ordinal."""

from __future__ import annotations

import json
import shlex
from typing import Any

from planner.errors import InputError, Place, Problem
from planner.export.layout import Layout
from planner.export.maps import FileMap, Row, decoded, experts_of, layer_of
from planner.inputs import documents

_KIND = "eplb_initial_mapping"
_ASSIGNED = "initial_global_assignments"


def write(layout: Layout) -> bytes:
    """The record, in one line."""
    record = {
        "record_type": _KIND,
        "version": 1,
        "num_redundant_experts": layout.redundant_experts,
        "num_slots": layout.placement.expert_LP.shape[1],
        _ASSIGNED: {str(ordinal): row for ordinal, row in enumerate(layout.rows())},
    }
    return (json.dumps(record) + "\n").encode()


def read(raw: bytes, file: str) -> FileMap:
    """The mapping; records of other kinds are passed over, as the reader does."""
    found: list[Any] = []
    for line in decoded(raw, file).splitlines():
        record = documents.parse_json(line, file) if line.strip() else None
        if isinstance(record, dict) and record.get("record_type") == _KIND:
            found.append(record)
    if len(found) != 1:
        raise InputError(Problem(f"{len(found)} records of type {_KIND}", Place(file), "expected one"))
    record = found[0]
    if record.get("version") != 1:
        raise InputError(Problem(f"version {record.get('version')!r}", Place(file, key="version"), "expected 1"))
    assigned, slots, extra = record.get(_ASSIGNED), record.get("num_slots"), record.get("num_redundant_experts")
    if not isinstance(assigned, dict) or not assigned:
        raise InputError(Problem("no layers", Place(file, key=_ASSIGNED), "expected the slots of each MoE layer"))
    rows = {}
    for key, value in assigned.items():
        layer = layer_of(key, file, _ASSIGNED)
        rows[layer] = Row(experts_of(value, file, f"{_ASSIGNED}.{layer}"))
        if len(rows[layer].expert_P) != slots:
            message = f"{len(rows[layer].expert_P)} slots, but num_slots is {slots!r}"
            raise InputError(Problem(message, Place(file, key=f"{_ASSIGNED}.{layer}"), "list every slot"))
    if type(extra) is not int or not 0 <= extra < slots:
        raise InputError(Problem(f"{extra!r} redundant experts", Place(file, key="num_redundant_experts")))
    return FileMap(file, "moe", rows, num_experts=slots - extra)


def how_to_load(layout: Layout, path: str) -> str:
    """The flags that load it and keep it."""
    config = {"num_redundant_experts": layout.redundant_experts, "initial_mapping_path": path}
    return f"--enable-eplb --eplb-config {shlex.quote(json.dumps(config | {'disable_online_rebalancing': True}))}"
