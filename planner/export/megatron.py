"""Megatron-LM (d98e8a64): the groups of ranks that its `parallel_state` makes, and the GPU of each rank.

Megatron reads no such file: it is for launchers and for people who check that ranks are where the plan
wants them. The placement is linear, so a plan must be, too, or be realised by a permuted checkpoint.
"""

from __future__ import annotations

import json
from typing import Any

from planner.errors import InputError, Place, Problem
from planner.export.layout import Layout, gpus_of_ranks
from planner.export.maps import FileMap, Row, only_keys, parsed
from planner.export.rank_groups import KINDS, groups_of
from planner.plan.placement import linear, slots_of_ranks
from planner.plan.split import Split

_DEGREES = ("tp", "dp", "pp", "ep", "etp", "edp")
_KEYS = ("order", "world_size", "num_experts", "moe_layers", "degrees", "stages", "gpus", "groups")


def write(layout: Layout) -> bytes:
    """Degrees, hidden layers of each stage, the GPU of each rank, and all groups."""
    split = layout.split
    degrees = {name: getattr(split, name) for name in _DEGREES}
    topology = layout.topology
    gpus = [
        {"rank": rank, "gpu": gpu, "node": int(topology.node_G[gpu]), "local": int(topology.local_G[gpu])}
        for rank, gpu in enumerate(layout.ranks)
    ]
    data: dict[str, Any] = {
        "order": "tp-cp-ep-dp-pp",
        "world_size": layout.num_gpus,
        "num_experts": layout.num_experts,
        "moe_layers": list(layout.placement.layer_ids),
        "degrees": degrees,
        "stages": [[layers.start, layers.stop] for layers in layout.cuts],
    }
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in data.items()]
    lines.append(' "gpus": [\n' + ",\n".join(f"  {json.dumps(gpu)}" for gpu in gpus) + "]")
    groups = (f"  {json.dumps(kind)}: {json.dumps(value)}" for kind, value in groups_of(split).items())
    lines.append(' "groups": {\n' + ",\n".join(groups) + "}")
    return ("{\n" + ",\n".join(lines) + "}\n").encode()


def read(raw: bytes, file: str) -> FileMap:
    """The linear placement over groups that agree with the degrees."""
    data = only_keys(parsed(raw, file), _KEYS, file, f"expected {', '.join(_KEYS)}")
    degrees = only_keys(data["degrees"], _DEGREES, file, f"expected {', '.join(_DEGREES)}")
    for name, value in degrees.items():
        if type(value) is not int or not 1 <= value <= 1 << 16:
            raise InputError(Problem(f"{value!r} is no degree", Place(file, key=f"degrees.{name}")))
    split = Split(**degrees)
    size, experts = split.pp * split.stage_gpus, data["num_experts"]
    if split.stage_gpus != split.etp * split.ep * split.edp or size != data["world_size"]:
        message = f"tp x dp, etp x ep x edp and a world of {data['world_size']!r} do not go together"
        raise InputError(Problem(message, Place(file, key="degrees")))
    if type(experts) is not int or not 1 <= experts <= 1 << 16 or experts % split.ep:
        message = f"{experts!r} experts do not divide by ep {split.ep}"
        raise InputError(Problem(message, Place(file, key="num_experts")))
    groups = only_keys(data["groups"], KINDS, file, f"expected {', '.join(KINDS)}")
    for kind, expected in groups_of(split).items():
        if groups[kind] != expected:
            hint = "these are not the groups that Megatron-LM makes of its order tp-cp-ep-dp-pp"
            raise InputError(Problem("other groups of ranks", Place(file, key=f"groups.{kind}"), hint))
    layers, gpus = data["moe_layers"], _gpus(data["gpus"], size, file)
    if not isinstance(layers, list) or not layers or not all(type(layer) is int for layer in layers):
        raise InputError(Problem("not a list of layers", Place(file, key="moe_layers")))
    row = Row(linear(experts, slots_of_ranks(experts, split.ep)))
    by_stage = (tuple(gpus[first : first + split.stage_gpus]) for first in range(0, size, split.stage_gpus))
    stages = {number: gpus_of_ranks(stage, split) for number, stage in enumerate(by_stage)}
    rows = dict.fromkeys(layers, row)
    return FileMap(file, "hidden", rows, num_ranks=split.ep, num_experts=experts, gpus=stages)


def _gpus(value: Any, size: int, file: str) -> list[int]:
    entries = value if isinstance(value, list) else []
    gpus = [entry.get("gpu") for entry in entries if isinstance(entry, dict)]
    ranks = [entry.get("rank") for entry in entries if isinstance(entry, dict)]
    if ranks != list(range(size)) or sorted(map(str, gpus)) != sorted(map(str, range(size))):
        raise InputError(Problem("not one GPU for each rank, in order", Place(file, key="gpus")))
    return [int(gpu) for gpu in gpus if isinstance(gpu, int)]


def how_to_load(layout: Layout, path: str) -> str:
    """What it is good for."""
    kept = " on the permuted checkpoint" if layout.for_checkpoint else ""
    return f"start ranks in the order of {path}{kept}; --to launch-megatron writes the command"
