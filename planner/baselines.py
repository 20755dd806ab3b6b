"""The placements that engines use today, as reference: linear, round robin, EPLB in both forms.

EPLB after the public description of deepseek-ai/EPLB (eplb.py, commit d52c72d5b2f2): pack groups of
experts to nodes, give spare slots one by one to the expert with the most load per copy, pack copies
to GPUs, heaviest first, each GPU with the same number of slots. It sees only the summed load, and it
may put two copies of one expert on one GPU, as the original does.

Legend: L layers, E experts, P slots, R ranks (GPUs), N items, B bins.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from planner.cost.booking import imbalance_LS
from planner.cost.step import Cuts, SplitCost, StageCost, predict, stage_of_layers
from planner.plan.placement import Placement, from_ranks, linear, widened
from planner.plan.plan import BaselineRecord
from planner.trace.windows import Windows

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

NAMES: Final = ("linear", "round_robin", "eplb", "eplb_hierarchical")


def pack_evenly(weight_N: Floats, bins: int) -> list[Ints]:
    """Longest-processing-time packing with equally many items per bin.

    Items by falling weight, each to the lightest bin that still has room; ties to the lowest index.
    One item per bin is left in order, as in the original.

    Returns:
        The items of each bin, in the order in which they were packed.
    """
    room = len(weight_N) // bins
    if room == 1:
        return [np.array([item]) for item in range(bins)]
    held: list[list[int]] = [[] for _ in range(bins)]
    load_B, count_B = np.zeros(bins), np.zeros(bins, dtype=np.int64)
    for item in np.argsort(-weight_N, kind="stable").tolist():
        lightest = int(np.argmin(np.where(count_B < room, load_B, np.inf)))
        held[lightest].append(item)
        load_B[lightest] += weight_N[item]
        count_B[lightest] += 1
    return [np.array(items) for items in held]


def replicate(weight_E: Floats, num_slots: int) -> Ints:
    """Spare slots one by one to the expert with the most load per copy; slot -> expert [P]."""
    experts = len(weight_E)
    expert_P = np.empty(num_slots, dtype=np.int64)
    expert_P[:experts] = np.arange(experts)
    copies_E = np.ones(experts)
    for slot in range(experts, num_slots):
        hottest = int(np.argmax(weight_E / copies_E))
        expert_P[slot] = hottest
        copies_E[hottest] += 1
    return expert_P


def eplb_layer(weight_E: Floats, num_slots: int, num_groups: int, num_nodes: int, num_ranks: int) -> Ints:
    """One layer of EPLB; slot -> expert [P], slots of rank r at r * P/R.

    The hierarchical policy is taken if the groups divide over the nodes; else the global one
    (one group, one node), exactly as the original switches.
    """
    if num_groups % num_nodes:
        num_groups = num_nodes = 1
    per_group = len(weight_E) // num_groups
    group_weight = weight_E.reshape(num_groups, per_group).sum(axis=1)
    held = []
    for groups in pack_evenly(group_weight, num_nodes):
        members = (groups[:, None] * per_group + np.arange(per_group)).reshape(-1)
        local_P = replicate(weight_E[members], num_slots // num_nodes)
        weight_P = (weight_E[members] / np.bincount(local_P))[local_P]
        held += [members[local_P[slots]] for slots in pack_evenly(weight_P, num_ranks // num_nodes)]
    return np.concatenate(held)


def round_robin(num_experts: int, slots_R: Ints) -> Ints:
    """Experts dealt to the ranks like cards, the copies of one expert in a row, so that none meets itself.

    Without redundant experts that is expert i on rank i mod R, as in vLLM's `round_robin`.
    """
    total = int(slots_R.sum())
    copies_E = np.full(num_experts, total // num_experts)
    copies_E[: total % num_experts] += 1
    dealt = np.repeat(np.arange(num_experts), copies_E)
    ranks = len(slots_R)
    return from_ranks([dealt[rank::ranks].tolist() for rank in range(ranks)], int(slots_R.max()))


def place(name: str, weight_LE: Floats, slots_R: Ints, *, num_groups: int, num_nodes: int) -> Ints | None:
    """A baseline for all layers [L, P], or None where its algorithm does not apply.

    Args:
        name: one of `NAMES`.
        weight_LE: summed load, as the engines' balancers see it.
        slots_R: filled slots of each rank.
        num_groups: routing groups of the model.
        num_nodes: nodes that the ranks are on.
    """
    layers, experts = weight_LE.shape
    if name == "linear":
        return np.tile(linear(experts, slots_R), (layers, 1))
    if name == "round_robin":
        return np.tile(round_robin(experts, slots_R), (layers, 1))
    ranks, slots = len(slots_R), int(slots_R.sum())
    if (slots_R != slots_R[0]).any() or ranks % num_nodes:
        return None
    groups, nodes = (num_groups, num_nodes) if name == "eplb_hierarchical" else (1, 1)
    if experts % groups:
        return None
    return np.stack([eplb_layer(weight_E, slots, groups, nodes, ranks) for weight_E in weight_LE])


def weights_of(windows: Windows) -> Floats:
    """Summed load [L, E] of the traced layers, as recorded."""
    return np.asarray(windows.counts_SLE.sum(axis=0), dtype=float)


def placements(cost: SplitCost, stage_of: Mapping[int, StageCost], weight_LE: Floats) -> dict[str, Placement]:
    """Every baseline that applies to this split; layers without a trace are linear.

    Args:
        cost: the split.
        stage_of: stage of each hidden layer.
        weight_LE: summed load of the traced layers.
    """
    instance = cost.instance
    row_of = {layer: row for row, layer in enumerate(instance.traced_layer_ids)}
    layer_ids = instance.model.moe_layer_ids
    alike = {_key(stage): stage for stage in reversed(list(stage_of.values()))}
    found = {}
    for name in NAMES:
        placed = {key: _on_slots(name, cost, stage, weight_LE) for key, stage in alike.items()}
        if any(expert_LP is None for expert_LP in placed.values()):
            continue
        rows = []
        for layer in layer_ids:
            stage = stage_of[layer]
            expert_LP = placed[_key(stage)]
            rows.append(cost.linear_P(stage) if expert_LP is None or layer not in row_of else expert_LP[row_of[layer]])
        found[name] = Placement(layer_ids, cost.slots_per_rank, np.stack(rows))
    return found


def _key(stage: StageCost) -> tuple[bytes, int]:
    """Equal for stages that a baseline does not tell apart: by the slots of ranks, and the number of nodes."""
    return stage.slots_R.tobytes(), int(stage.moe.exchange.node_R.max()) + 1


def _on_slots(name: str, cost: SplitCost, stage: StageCost, weight_LE: Floats) -> Ints | None:
    groups, (_, nodes) = cost.instance.model.moe.num_groups, _key(stage)
    expert_LP = place(name, weight_LE, stage.slots_R, num_groups=groups, num_nodes=nodes)
    if expert_LP is None:
        return None
    return np.stack([widened(expert_P, cost.split.ep, cost.slots_per_rank) for expert_P in expert_LP])


def duplicates(placement: Placement) -> int:
    """Rank-layer pairs that hold some expert twice."""
    by_rank = np.sort(placement.expert_LP.reshape(-1, placement.slots_per_rank), axis=1)
    twice = (by_rank[:, 1:] == by_rank[:, :-1]) & (by_rank[:, 1:] >= 0)
    return int(twice.any(axis=1).sum())


def score(cost: SplitCost, cuts: Cuts) -> dict[str, BaselineRecord]:
    """Every baseline on this split and these windows; without a trace only the linear layout."""
    instance = cost.instance
    if instance.windows is None:
        weight_LE = np.ones((len(instance.traced_layer_ids), instance.model.moe.num_experts))
        found = {"linear": placements(cost, stage_of_layers(cost, cuts), weight_LE)["linear"]}
    else:
        found = placements(cost, stage_of_layers(cost, cuts), weights_of(instance.windows))
    records = {}
    for name, placement in found.items():
        prediction = predict(cost, cuts, placement)
        known = instance.windows is not None
        imbalance = imbalance_LS(cost, cuts, placement)
        records[name] = BaselineRecord(
            step_s=prediction.step_s,
            balancedness=prediction.balancedness,
            imbalance=float(imbalance.mean()) if known else None,
            layer_imbalance=tuple(imbalance.mean(axis=1).tolist()) if known else (),
            duplicates=duplicates(placement),
        )
    return records
