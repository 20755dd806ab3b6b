"""Which logical expert each slot held: the maps that engines load or print, to undo physical ids.

Read are SGLang's JSON (`physical_to_logical_map`), TensorRT-LLM's YAML (`initial_global_assignments`),
vllm-ascend's JSON (`layer_list`), the JSONL of vLLM pull request 41141 (`initial_global_assignments`)
and plain JSON lists, one for each layer.

Legend: L rows of layers, P slots.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from planner.errors import InputError, Place, Problem
from planner.files import read_text

_LIMIT_BYTES: Final = 256 << 20
_LIMIT_ID: Final = 1 << 16
_HINT: Final = "expected physical_to_logical_map, initial_global_assignments, layer_list, or a list for each layer"


@dataclass(frozen=True)
class PhysicalMap:
    """Slot to logical expert of each layer."""

    path: Path
    layers: dict[int, NDArray[np.int64]]
    """By the number that the map gives a layer: its row, or its hidden-layer index."""

    def of(self, layer: int) -> NDArray[np.int64]:
        """The experts in the slots of one layer; raises `InputError` if the map lacks it."""
        if layer not in self.layers:
            known = f"it has {min(self.layers)}..{max(self.layers)}"
            raise InputError(Problem(f"no layer {layer} in the map", Place(str(self.path)), known))
        return self.layers[layer]


def read_physical_map(path: Path) -> PhysicalMap:
    """Read a map of any known form; raises `InputError` if it is none."""
    text = read_text(path, limit_bytes=_LIMIT_BYTES)
    data = _json(text, path) if text.lstrip()[:1] in ("{", "[") else _yaml(path)
    layers = _layers(data, path)
    if not layers:
        raise InputError(Problem("no layers in the map", Place(str(path)), _HINT))
    return PhysicalMap(path, {key: _row(row, path, key) for key, row in layers.items()})


def _json(text: str, path: Path) -> Any:
    try:
        return json.JSONDecoder().raw_decode(text.lstrip())[0]  # JSONL: the first record
    except json.JSONDecodeError as error:
        raise InputError(Problem(error.msg, Place(str(path), error.lineno, error.colno), _HINT)) from None
    except (ValueError, RecursionError) as error:
        raise InputError(Problem(str(error), Place(str(path)), _HINT)) from None


def _yaml(path: Path) -> Any:
    from planner.inputs.strict_yaml import read_yaml  # noqa: PLC0415 # only for this form

    return read_yaml(path).data


def _layers(data: Any, path: Path) -> dict[int, Any]:
    if isinstance(data, dict):
        if isinstance(data.get("initial_global_assignments"), dict):
            return {_number(key, path): row for key, row in data["initial_global_assignments"].items()}
        if isinstance(data.get("layer_list"), list):
            return dict(enumerate(_ascend(entry, path) for entry in data["layer_list"]))
        data = data.get("physical_to_logical_map")
    if not isinstance(data, list):
        raise InputError(Problem("no map of experts", Place(str(path)), _HINT))
    return dict(enumerate(data))


def _ascend(entry: Any, path: Path) -> list[Any]:
    devices = entry.get("device_list") if isinstance(entry, dict) else None
    slots: list[Any] = []
    for device in devices if isinstance(devices, list) else []:
        experts = device.get("device_expert") if isinstance(device, dict) else None
        if not isinstance(experts, list):
            raise InputError(Problem("device_expert is missing", Place(str(path), key="layer_list"), _HINT))
        slots += experts
    return slots


def _number(key: Any, path: Path) -> int:
    if str(key).isdecimal() and len(str(key)) < 6:
        return int(key)
    raise InputError(Problem(f"{key!r} is not a layer", Place(str(path), key="initial_global_assignments"), _HINT))


def _row(row: Any, path: Path, layer: int) -> NDArray[np.int64]:
    good = isinstance(row, list) and row and all(type(value) is int and 0 <= value < _LIMIT_ID for value in row)
    if not good:
        where = Place(str(path), key=f"layer {layer}")
        raise InputError(
            Problem("not a list of experts", where, f"expected ids, 0..{_LIMIT_ID - 1}, one for each slot")
        )
    return np.array(row, dtype=np.int64)


def to_logical_counts(count_P: NDArray[Any], expert_P: NDArray[np.int64], num_experts: int) -> NDArray[np.int64]:
    """Counts of slots summed into counts of the experts that they held; -1 is an empty slot."""
    filled = expert_P >= 0
    total_E = np.zeros(num_experts, dtype=np.int64)
    np.add.at(total_E, expert_P[filled], count_P[filled].astype(np.int64))
    return total_E
