"""TensorRT-LLM 1.3: `num_slots` and one list of slots for each MoE layer, by hidden-layer index.

`MoeLoadBalancerConfig` in `tensorrt_llm/llmapi/llm_args.py` is a strict model: no other key is taken.
"""

from __future__ import annotations

from typing import Any

from planner.errors import InputError, Place, Problem
from planner.export.layout import Layout
from planner.export.maps import FileMap, Row, decoded, experts_of, layer_of, only_keys
from planner.inputs.strict_yaml import parse_yaml

_ASSIGNED = "initial_global_assignments"
_KEYS = ("num_slots", _ASSIGNED, "layer_updates_per_iter")
_WHY = "TensorRT-LLM's config is strict: it knows num_slots, initial_global_assignments, layer_updates_per_iter"


def write(layout: Layout) -> bytes:
    """The YAML; no layer is updated while serving."""
    slots = layout.placement.expert_LP.shape[1]
    lines = [f"num_slots: {slots}", "layer_updates_per_iter: 0", f"{_ASSIGNED}:"]
    rows = zip(layout.placement.layer_ids, layout.rows(), strict=True)
    lines += [f"  {layer}: [{', '.join(map(str, row))}]" for layer, row in rows]
    return ("\n".join(lines) + "\n").encode()


def read(raw: bytes, file: str) -> FileMap:
    """What TensorRT-LLM would take from it."""
    data: Any = parse_yaml(decoded(raw, file), file).data
    if isinstance(data, dict):
        data.setdefault("layer_updates_per_iter", 0)
    values = only_keys(data, _KEYS, file, _WHY)
    assigned, slots = values[_ASSIGNED], values["num_slots"]
    if type(slots) is not int or slots < 1:
        raise InputError(Problem(f"{slots!r} is no number of slots", Place(file, key="num_slots")))
    if not isinstance(assigned, dict) or not assigned:
        hint = "expected a list of slots for each MoE layer, by hidden-layer index"
        raise InputError(Problem("no layers", Place(file, key=_ASSIGNED), hint))
    rows = {}
    for key, value in assigned.items():
        layer = layer_of(key, file, _ASSIGNED)
        row = experts_of(value, file, f"{_ASSIGNED}.{layer}")
        if len(row) != slots:
            message = f"{len(row)} slots, but num_slots is {slots}"
            raise InputError(Problem(message, Place(file, key=f"{_ASSIGNED}.{layer}"), "list every slot"))
        rows[layer] = Row(row)
    return FileMap(file, "hidden", rows)


def how_to_load(layout: Layout, path: str) -> str:
    """The keys that load it."""
    return f"enable_attention_dp: true, moe_config.load_balancer: {path} (EP size {layout.split.ep})"
