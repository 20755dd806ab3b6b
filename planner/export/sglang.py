"""SGLang 0.5.23: `physical_to_logical_map`, one row for each hidden layer.

`compute_initial_expert_location_metadata` in `python/sglang/srt/eplb/expert_location.py` splats the
dictionary into a call: any key beside this one is a TypeError. Rows of dense layers must be there;
they hold what the trivial layout would, expert i mod E.
"""

from __future__ import annotations

import shlex

from planner.errors import InputError, Place, Problem
from planner.export.layout import Layout
from planner.export.maps import FileMap, Row, experts_of, json_rows, only_keys, parsed

_KEY = "physical_to_logical_map"
_WHY = "SGLang passes every key on as an argument: one more is a TypeError"


def write(layout: Layout) -> bytes:
    """The JSON."""
    slots, experts = layout.placement.expert_LP.shape[1], layout.num_experts
    trivial = [slot % experts for slot in range(slots)]
    placed = dict(zip(layout.placement.layer_ids, layout.rows(), strict=True))
    rows = [placed.get(layer, trivial) for layer in range(layout.model.num_layers)]
    return f'{{"{_KEY}": {json_rows(rows)}}}\n'.encode()


def read(raw: bytes, file: str) -> FileMap:
    """What SGLang would take from it."""
    data = only_keys(parsed(raw, file), (_KEY,), file, _WHY)[_KEY]
    if not isinstance(data, list) or not data:
        raise InputError(Problem("not a list of layers", Place(file, key=_KEY), "expected one row for each layer"))
    rows = {layer: Row(experts_of(row, file, f"{_KEY}[{layer}]")) for layer, row in enumerate(data)}
    return FileMap(file, "hidden", rows, dense_rows=True)


def how_to_load(layout: Layout, path: str) -> str:
    """The flags that load it."""
    copies = f" --ep-num-redundant-experts {layout.redundant_experts} --ep-dispatch-algorithm dynamic"
    chosen = copies if layout.redundant_experts else ""
    return f"--ep-size {layout.split.ep} --init-expert-location {shlex.quote(path)}{chosen}"
