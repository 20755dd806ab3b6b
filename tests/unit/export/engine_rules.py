"""What each engine's reader asks of a map, written down once more, without the exporters' code.

Each function takes the file's bytes and what the server would know, and returns slot -> expert of each
MoE layer by hidden-layer index; an assertion fails where the engine would refuse, or lose a slot.
"""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import yaml

Slots = dict[int, list[int]]


def sglang(raw: bytes, hidden: int, moe: list[int], experts: int, redundant: int, ep: int) -> Slots:
    """`init_by_mapping(model_config, **data)`: one key, [hidden layers][P]."""
    data = json.loads(raw)
    assert list(data) == ["physical_to_logical_map"]
    rows = np.array(data["physical_to_logical_map"])  # raises if ragged
    assert rows.shape == (hidden, experts + redundant)
    assert rows.shape[1] % ep == 0
    for row in rows:
        assert set(row.tolist()) == set(range(experts))
    return {layer: rows[layer].tolist() for layer in moe}


def tensorrt_llm(raw: bytes, moe: list[int], experts: int, ep: int) -> Slots:
    """A strict config: these keys; every layer, num_slots long, all experts there."""
    data = yaml.safe_load(raw)
    assert set(data) == {"num_slots", "initial_global_assignments", "layer_updates_per_iter"}
    assert data["layer_updates_per_iter"] == 0
    slots, assigned = data["num_slots"], data["initial_global_assignments"]
    assert slots % ep == 0
    assert slots >= experts
    assert ep > 1
    assert all(type(key) is int for key in assigned)
    assert sorted(assigned) == moe
    for row in assigned.values():
        assert len(row) == slots
        assert set(row) == set(range(experts))
    return dict(assigned)


def vllm_ascend(raw: bytes, moe: list[int], experts: int, ep: int) -> Slots:
    """Layers and devices by position; an int32 tensor [devices, slots]; expert -> slot by scatter on each device."""
    data = json.loads(raw)
    assert data["moe_layer_count"] == len(moe)
    found = {}
    for ordinal, layer in enumerate(moe):
        devices = [device["device_expert"] for device in data["layer_list"][ordinal]["device_list"]]
        table = np.array(devices, dtype=np.int32)  # raises if devices hold unequal numbers
        assert len(table) == ep
        for row in table:
            local = np.full(experts, -1)
            local[row] = np.arange(len(row))
            assert (local >= 0).sum() == len(row), "two copies on one device lose a slot"
        assert set(table.reshape(-1).tolist()) == set(range(experts))
        found[layer] = table.reshape(-1).tolist()
    return found


def vllm_pr41141(raw: bytes, moe: list[int], experts: int, redundant: int, ep: int) -> Slots:
    """One record, version 1, string keys of MoE ordinals; redundant experts as the server has them."""
    (record,) = [json.loads(line) for line in raw.splitlines()]
    assert record["record_type"] == "eplb_initial_mapping"
    assert record["version"] == 1
    assert record["num_redundant_experts"] == redundant
    assert record["num_slots"] == experts + redundant
    assert (experts + redundant) % ep == 0
    assigned = record["initial_global_assignments"]
    assert list(assigned) == [str(ordinal) for ordinal in range(len(moe))]
    return {layer: _complete(assigned[str(i)], experts, redundant) for i, layer in enumerate(moe)}


def vllm_slots(raw: bytes, moe: list[int], experts: int, redundant: int, ep: int) -> Slots:
    """[MoE layers][P], ranges and full coverage."""
    rows = json.loads(raw)
    assert len(rows) == len(moe)
    assert (experts + redundant) % ep == 0
    return {layer: _complete(row, experts, redundant) for layer, row in zip(moe, rows, strict=True)}


def vllm_pr34811(raw: bytes, moe: list[int], experts: int, ep: int) -> Slots:
    """A rank for each expert; ranks hold what linear placement would give them in number."""
    data = json.loads(raw)
    ranks = data["expert_to_ep_rank"]
    assert len(ranks) == experts
    assert all(0 <= rank < ep for rank in ranks)
    slots = [expert for rank in range(ep) for expert in range(experts) if ranks[expert] == rank]
    return dict.fromkeys(moe, slots)


def omni_infer(raw: bytes, moe: list[int], experts: int, ep: int) -> Slots:
    """0/1 [ranks, layers, experts]; every expert somewhere, ranks equal in each layer."""
    pattern = np.load(io.BytesIO(raw), allow_pickle=False)
    assert pattern.dtype == np.int32
    assert pattern.shape == (ep, len(moe), experts)
    assert (pattern.sum(axis=0) >= 1).all()
    assert (pattern.sum(axis=2) == pattern.sum(axis=2)[:1]).all()
    return {layer: np.nonzero(pattern[:, i])[1].tolist() for i, layer in enumerate(moe)}


def eplb(raw: bytes, moe: list[int], experts: int, redundant: int, ep: int) -> Slots:
    """The three arrays of `rebalance_experts`."""
    with np.load(io.BytesIO(raw), allow_pickle=False) as arrays:
        phy2log, log2phy, logcnt = (arrays[name] for name in ("phy2log", "log2phy", "logcnt"))
    assert all(array.dtype == np.int64 for array in (phy2log, log2phy, logcnt))
    assert phy2log.shape == (len(moe), experts + redundant)
    assert phy2log.shape[1] % ep == 0
    assert log2phy.shape == (len(moe), experts, logcnt.max())
    for layer in range(len(moe)):
        for expert in range(experts):
            slots = np.flatnonzero(phy2log[layer] == expert).tolist()
            assert logcnt[layer, expert] == len(slots) >= 1
            assert log2phy[layer, expert].tolist() == slots + [-1] * (log2phy.shape[2] - len(slots))
    return {layer: phy2log[i].tolist() for i, layer in enumerate(moe)}


def megatron(raw: bytes, experts: int) -> dict[str, list[list[int]]]:
    """Groups as `parallel_state` makes them: a rank's coordinates, leftmost of tp-cp-ep-dp-pp fastest."""
    data: Any = json.loads(raw)
    tp, dp, pp, ep, etp, edp = (data["degrees"][name] for name in ("tp", "dp", "pp", "ep", "etp", "edp"))
    world = data["world_size"]
    assert world % (tp * pp) == 0
    assert world % (etp * ep * pp) == 0
    assert tp * dp * pp == etp * ep * edp * pp == world
    assert experts % ep == 0
    dense = [(r % tp, r // tp % dp, r // (tp * dp)) for r in range(world)]
    expert = [(r % etp, r // etp % ep, r // (etp * ep) % edp, r // (etp * ep * edp)) for r in range(world)]
    for kind, coordinates, axis in (
        ("tp", dense, 0),
        ("dp", dense, 1),
        ("pp", dense, 2),
        ("etp", expert, 0),
        ("ep", expert, 1),
        ("edp", expert, 2),
    ):
        by_rest: dict[Any, list[int]] = {}
        for rank, place in enumerate(coordinates):
            by_rest.setdefault(place[:axis] + place[axis + 1 :], []).append(rank)
        assert sorted(data["groups"][kind]) == sorted(by_rest.values())
    groups: dict[str, list[list[int]]] = data["groups"]
    return groups


def _complete(row: list[int], experts: int, redundant: int) -> list[int]:
    assert len(row) == experts + redundant
    assert set(row) == set(range(experts))
    return row
