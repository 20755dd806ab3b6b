"""Ports, uplinks, rails and slow pairs: traffic by hand arithmetic."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from planner.cost.ports import Ports, ring
from planner.cost.step import split_cost
from planner.inputs.deployment import load_kernel
from planner.inputs.documents import validated
from planner.inputs.topology import Topology, resolve
from planner.inputs.topology_file import TopologyFile
from planner.inputs.workload import Dedup
from planner.plan.split import Split
from tests import building

CARD = {"memory": "80 GiB", "hbm_bandwidth": "1 TB/s", "compute": {"bf16": "100 TFLOP/s"}}


def level(name: str, bandwidth: str, **more: Any) -> dict[str, Any]:
    """A level of links that is reached in full."""
    return {"level": name, "bandwidth": bandwidth, "latency": "1 us", "efficiency": "100%", **more}


def machine(nodes: int, per_node: int, *links: dict[str, Any], **more: Any) -> Topology:
    """A machine with these links."""
    data = {"gpu": CARD, "nodes": nodes, "gpus_per_node": per_node, "links": list(links), **more}
    return resolve(validated(TopologyFile, data))


def one_row_each(on: Topology, dedup: Dedup = "expert", **degrees: int) -> float:
    """Nanoseconds per byte of a copy where each of E = G experts sits on a rank of its own and gets G rows.

    Every rank then receives one row from each home, its own included.
    """
    gpus = on.num_gpus
    split = Split(tp=1, dp=gpus, pp=1, **{"ep": gpus, **degrees})
    model = building.model(experts=split.ep, top_k=1, layers=1)
    windows = building.counted(np.full((1, 1, split.ep), 10), [0], 1)
    whole = building.instance(model, on, tokens=split.ep * split.edp, windows=windows, using=building.constants(dedup))
    moe, load = split_cost(whole, split, 0).stages[0].moe, whole.loads[0]
    expert_P = np.arange(split.ep)
    rows_SR = moe.rank_load(load, expert_P)[0]
    assert rows_SR == pytest.approx(np.full((1, split.ep), gpus))
    return 1e9 * float(moe.volume_S(load, expert_P, rows_SR)[0])


def test_three_levels_with_an_oversubscribed_spine_and_shared_nics() -> None:
    """4 nodes of 2 GPUs, one NIC of 10 GB/s per node, racks of 2 nodes, 4:1 into the spine.

    NVLink: 1 row from the peer, 1/100 ns. NIC: each of its 2 GPUs gets 6 rows from other nodes, 12/10 ns. Uplinks of
    a rack: 2 NICs of 10 GB/s over 4 carry 5 GB/s; each of its 4 GPUs gets 4 rows from the other rack, 16/5 ns.
    """
    links = [level("node", "100 GB/s"), level("rack", "10 GB/s", nodes=2, shared_by=2)]
    spine = level("spine", "10 GB/s", shared_by=2)
    assert one_row_each(machine(4, 2, *links, spine)) == pytest.approx(12 / 10)
    assert one_row_each(machine(4, 2, *links, {**spine, "oversubscription": 4.0})) == pytest.approx(16 / 5)
    # 1.2:1 is no bottleneck: 16 rows over 20/1.2 GB/s need less than the NIC.
    assert one_row_each(machine(4, 2, *links, {**spine, "oversubscription": 1.2})) == pytest.approx(12 / 10)


def test_gpus_of_two_rails_may_share_a_nic_into_an_oversubscribed_spine() -> None:
    """2 racks of 2 nodes of 2 GPUs; a rail joins GPUs with the same number, a NIC of 10 GB/s serves both of a node.

    Through the spine each GPU gets 4 rows from the other rack, and 1 from the other rail in its own. A rail of a rack
    has half of 2 NICs, 2:1 into the spine 5 GB/s, for its 2 GPUs: 10/5 ns. A NIC carries 12 rows: 12/10 ns.
    """
    rail = level("rail", "10 GB/s", nodes=2, rails=True, shared_by=2)
    spine = level("spine", "10 GB/s", shared_by=2, oversubscription=2.0)
    assert one_row_each(machine(4, 2, level("node", "100 GB/s"), rail, spine)) == pytest.approx(10 / 5)


def test_a_nic_carries_what_all_groups_of_a_stage_send() -> None:
    """2 nodes of 2 GPUs, a NIC per node, every expert on 2 GPUs of a node: the groups are {0, 2} and {1, 3}.

    Each rank gets 4 rows, 2 from the other node, half of each on each GPU: 1 row per GPU, 2 per NIC.
    """
    links = [level("node", "100 GB/s"), level("cluster", "10 GB/s", shared_by=2)]
    assert one_row_each(machine(2, 2, *links), ep=2, etp=2) == pytest.approx(2 / 10)
    assert one_row_each(machine(2, 2, links[0], level("cluster", "10 GB/s")), ep=2, etp=2) == pytest.approx(1 / 10)


def test_a_slow_pair_slows_its_own_transfers_only() -> None:
    """4 GPUs; the row between 0 and 3 takes 1/0.5 ns, all others share ports of 100 GB/s."""
    slow = [{"between": [{"node": 0, "gpu": 0}, {"node": 0, "gpu": 3}], "bandwidth": "500 MB/s"}]
    assert one_row_each(machine(1, 4, level("node", "100 GB/s"))) == pytest.approx(3 / 100)
    assert one_row_each(machine(1, 4, level("node", "100 GB/s"), overrides=slow)) == pytest.approx(1 / 0.5)
    # In two groups {0, 1} and {2, 3} nothing passes the pair.
    four = machine(1, 4, level("node", "100 GB/s"), overrides=slow)
    assert one_row_each(four, ep=2, edp=2) == pytest.approx(2 / 100)


def test_rails_carry_equal_indices_and_the_spine_the_rest() -> None:
    """2 nodes of 2 GPUs on 2 rails of 10 GB/s, with a spine of 1 GB/s.

    Each GPU gets one row by its rail and one over the spine, by the same NIC: 2/10 ns at the NIC, and
    1/1 ns for the row that crosses the spine. With one copy per node, the copy enters by the sender's
    own rail and is forwarded inside; the spine is idle, as on a flat network of 10 GB/s.
    """
    links = [level("node", "100 GB/s"), level("rail", "10 GB/s", rails=True), level("spine", "1 GB/s")]
    assert one_row_each(machine(2, 2, *links)) == pytest.approx(1.0)
    flat = machine(2, 2, links[0], level("cluster", "10 GB/s"))
    assert one_row_each(machine(2, 2, *links), "node") == pytest.approx(one_row_each(flat, "node"))


def test_a_level_inside_a_node_joins_gpus_in_a_row() -> None:
    """4 cards in 2 bridged pairs: 1 row over the bridge, 1/50 ns; 2 over PCIe, 2/10 ns."""
    pairs = machine(1, 4, level("bridge", "50 GB/s", gpus=2), level("node", "10 GB/s"))
    assert pairs.unit_VG.tolist() == [[0, 0, 1, 1], [0, 0, 0, 0]]
    assert (pairs.ports, pairs.scale_up_level) == ((0, 1), 1)
    assert one_row_each(pairs) == pytest.approx(2 / 10)
    assert one_row_each(pairs, ep=2, edp=2) == pytest.approx(2 / 50)


def test_groups_may_have_slower_ports() -> None:
    """The receiver's port counts as much as the sender's: 2 rows at 10 GB/s beside 100 GB/s."""
    groups = [
        {"gpu": CARD, "gpus_per_node": 1},
        {"gpu": CARD, "gpus_per_node": 1, "nodes": 2, "links": [{"level": "cluster", "bandwidth": "10 GB/s"}]},
    ]
    links = [level("node", "100 GB/s"), level("cluster", "100 GB/s")]
    mixed = resolve(validated(TopologyFile, {"groups": groups, "links": links}))
    assert mixed.bandwidth_VG[1].tolist() == [100e9, 10e9, 10e9]
    assert one_row_each(mixed) == pytest.approx(2 / 10)


def test_collectives_go_round_a_ring() -> None:
    """8 GPUs on 2 nodes with a NIC each: a ring over all crosses once each way, two rings of 4 in turn twice."""
    on = machine(2, 4, level("node", "100 GB/s"), level("cluster", "10 GB/s", shared_by=4, oversubscription=2.0))
    nccl = load_kernel("nccl").reach
    whole = Ports(on, nccl, tuple(range(8)))
    assert whole.slowest(*ring(8, 1)).rate == pytest.approx(5e9)  # one message over a NIC at half its rate
    assert whole.slowest(*ring(4, 2)).rate == pytest.approx(100e9)
    crossing = Ports(on, nccl, (0, 1, 4, 5, 2, 3, 6, 7))
    assert crossing.slowest(*ring(4, 2)).rate == pytest.approx(2.5e9)
    half = Ports(on, nccl, (0, 1, 4, 5))  # the other two users of each NIC have their half of it
    assert half.slowest(*ring(4, 1)).rate == pytest.approx(2.5e9)
