"""Copies by link level: counted one by one in plain Python, and as the cost model expects them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from planner.cost.grid import stages_of
from planner.cost.step import split_cost
from planner.cost.wires import expected_copies_V, sent_copies_GV
from planner.inputs.documents import validated
from planner.inputs.topology import Topology, resolve
from planner.inputs.topology_file import TopologyFile
from planner.inputs.workload import Dedup
from planner.plan.split import Split
from tests.building import constants, instance, model, random_placement, routed, topology


def railed() -> Topology:
    """Two nodes of two GPUs on rails."""
    links = [
        {"level": "node", "bandwidth": "10 GB/s", "latency": "3 us"},
        {"level": "rail", "bandwidth": "2 GB/s", "latency": "5 us", "nodes": 2, "rails": True},
        {"level": "cluster", "bandwidth": "1 GB/s", "latency": "9 us"},
    ]
    card = {"memory": "80 GiB", "hbm_bandwidth": "100 GB/s", "compute": {"bf16": "10 TFLOP/s"}}
    data = {"gpu": card, "nodes": 2, "gpus_per_node": 2, "links": links}
    return resolve(validated(TopologyFile, data))


def by_hand(slot_TK: np.ndarray, slots: int, split: Split, on: Topology, dedup: Dedup) -> Counter[tuple[int, int]]:
    """(GPU, level) -> copies, one token at a time."""

    def level(one: int, other: int) -> int:
        return int((on.unit_VG[:, one] == on.unit_VG[:, other]).argmax())

    sent: Counter[tuple[int, int]] = Counter()

    def send(one: int, other: int) -> None:
        if one != other:
            sent[one, level(one, other)] += 1

    grid = split.etp * split.ep
    for token, choices in enumerate(slot_TK.tolist()):
        home = token % split.stage_gpus
        number = token // split.stage_gpus
        first = home // grid * grid + home % split.etp
        gpu_of = [first + rank * split.etp for rank in range(split.ep)]
        ranks = [slot // slots for slot in choices if slot >= 0]
        if dedup == "expert":
            for rank in ranks:
                send(home, gpu_of[rank])
            continue
        if dedup == "gpu":
            for rank in set(ranks):
                send(home, gpu_of[rank])
            continue
        node = {gpu: int(on.node_G[gpu]) for gpu in gpu_of}
        for there in {node[gpu_of[rank]] for rank in ranks}:
            inside = [gpu for gpu in gpu_of if node[gpu] == there]
            entry = home
            if node[home] != there:
                rail = [gpu for gpu in inside if on.links[level(home, gpu)].rails]
                ways = rail or inside
                entry = ways[(gpu_of.index(home) + number) % len(ways)]
                send(home, entry)
            for rank in set(ranks):
                if node[gpu_of[rank]] == there:
                    send(entry, gpu_of[rank])
    return sent


@pytest.mark.parametrize("dedup", ["expert", "gpu", "node"])
@pytest.mark.parametrize("machine", ["plain", "rails"])
@pytest.mark.parametrize("degrees", [(4, 1, 1), (2, 2, 1), (2, 1, 2)])
def test_counted_one_by_one(dedup: Dedup, machine: str, degrees: tuple[int, int, int]) -> None:
    on = railed() if machine == "rails" else topology(2, 2)
    ep, etp, edp = degrees
    split = Split(tp=1, dp=4, pp=1, ep=ep, etp=etp, edp=edp)
    rng = np.random.default_rng(0)
    slots = 3
    slot_TK = rng.random((61, ep * slots)).argsort(axis=1)[:, :2]
    slot_TK[rng.random(slot_TK.shape) < 0.1] = -1
    (grid,) = stages_of(split, on)
    sent_GV = sent_copies_GV(slot_TK, slots, grid, dedup)
    wanted = by_hand(slot_TK, slots, split, on, dedup)
    found = {(gpu, level): int(sent_GV[gpu, level]) for gpu, level in np.ndindex(sent_GV.shape)}
    assert {key: count for key, count in found.items() if count} == dict(wanted)
    assert sum(wanted.values()) > 0


@pytest.mark.parametrize("dedup", ["expert", "gpu", "node"])
@pytest.mark.parametrize("machine", ["plain", "rails"])
def test_the_cost_model_expects_what_long_routing_sends(dedup: Dedup, machine: str) -> None:
    on = railed() if machine == "rails" else topology(2, 2)
    rng = np.random.default_rng(1)
    experts, tokens = 8, 4000
    chosen = (rng.gumbel(size=(tokens, 1, experts)) + rng.gumbel(size=experts)).argsort(axis=2)[:, :, -2:]
    windows = routed(chosen, np.zeros(tokens, dtype=np.int32), [0], experts)
    of = model(experts=experts, layers=1)
    made = instance(of, on, windows=windows, using=constants(dedup))
    expert_P = random_placement(rng, experts, np.array([3, 3, 3, 3]))
    cost = split_cost(made, Split(tp=1, dp=4, pp=1, ep=4), 4)
    model_V = expected_copies_V(cost.stages[0], made.loads[0], expert_P, windows.tokens_S)
    from planner.measure.replay import serving_slots

    slot_TK = serving_slots(chosen[:, 0], expert_P, experts)
    sent_V = sent_copies_GV(slot_TK, 3, cost.stages[0].grid, dedup).sum(axis=0)
    assert sent_V.sum() > tokens / 2
    for sent, expected in zip(sent_V.tolist(), model_V.tolist(), strict=True):
        assert sent == pytest.approx(expected, rel=0.05, abs=1)
