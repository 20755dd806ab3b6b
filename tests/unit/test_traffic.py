"""What dispatch puts on the links, against a count of every token's messages in plain Python."""

from __future__ import annotations

from collections import defaultdict
from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray

from planner.cost.step import split_cost
from planner.cost.traffic import copies_between
from planner.inputs.kernels import Fitted
from planner.inputs.links import Link
from planner.inputs.sourced import Sourced
from planner.inputs.topology import Topology, resolve
from planner.inputs.topology_file import TopologyFile
from planner.inputs.units import Duration, Rate
from planner.inputs.workload import CopyRule, Dedup
from planner.plan.split import Split
from tests import building

DEDUPS: tuple[Dedup, ...] = ("expert", "gpu", "node")
INNER, OUTER = 0.70, 0.90
"""Parts of the bandwidth that the generic all-to-all reaches inside and between nodes."""


def link(level: str, bandwidth: str, nodes: int | None = None, same_port: bool | None = None) -> Link:
    """One level of links."""
    return Link(
        level=level,
        bandwidth=Sourced[Rate](value=bandwidth),  # type: ignore[arg-type]
        latency=Sourced[Duration](value="1 us"),  # type: ignore[arg-type]
        nodes=nodes,
        same_port=same_port,
    )


def machine(nodes: int, per_node: int, *links: Link, gpus: int | None = None) -> Topology:
    """A machine with these links."""
    file = TopologyFile(gpu=building.gpu(), nodes=nodes, gpus_per_node=per_node, links=links)
    return resolve(file, gpus)


NODE, CLUSTER = link("node", "10 GB/s"), link("cluster", "1 GB/s")
# Machine; unit of each GPU at each level; GB/s reached at each level; the port that each level
# leaves by; domain in which a node-wise copy is forwarded.
MACHINES = {
    "one node": (machine(1, 4, NODE), [[0] * 4], [10 * INNER], [0], [0] * 4),
    "two nodes": (
        machine(2, 2, NODE, CLUSTER),
        [[0, 0, 1, 1], [0] * 4],
        [10 * INNER, 1 * OUTER],
        [0, 1],
        [0, 0, 1, 1],
    ),
    "uneven nodes": (
        machine(2, 3, NODE, CLUSTER, gpus=5),
        [[0, 0, 0, 1, 1], [0] * 5],
        [10 * INNER, 1 * OUTER],
        [0, 1],
        [0, 0, 0, 1, 1],
    ),
    "lone gpus": (machine(3, 1, NODE, CLUSTER), [[0, 1, 2], [0] * 3], [10 * INNER, 1 * OUTER], [0, 1], [0, 1, 2]),
    "racks": (
        machine(4, 1, NODE, link("rack", "2 GB/s", 2), CLUSTER),
        [[0, 1, 2, 3], [0, 0, 1, 1], [0] * 4],
        [10 * INNER, 2 * OUTER, 1 * OUTER],
        [0, 1, 1],
        [0, 1, 2, 3],
    ),
    "slow leaf switches": (  # all that leaves a node passes the leaf, also what goes further
        machine(6, 1, NODE, link("rack", "1 GB/s", 3), link("cluster", "2 GB/s")),
        [[0, 1, 2, 3, 4, 5], [0, 0, 0, 1, 1, 1], [0] * 6],
        [10 * INNER, 1 * OUTER, 2 * OUTER],
        [0, 1, 1],
        [0, 1, 2, 3, 4, 5],
    ),
    "trays": (
        machine(3, 2, link("tray", "10 GB/s"), link("domain", "8 GB/s", same_port=True)),
        [[0, 0, 1, 1, 2, 2], [0] * 6],
        [10 * INNER, 8 * INNER],
        [0, 0],
        [0] * 6,
    ),
}


def counted(
    name: str, dedup: Dedup, tokens: list[list[int]], held: list[set[int]], copies: CopyRule
) -> tuple[float, NDArray[np.float64]]:
    """Seconds per byte of a copy on the busiest port, and copies [to, from], one message at a time."""
    _, unit, speed, port, domain = MACHINES[name]
    ranks = range(len(held))
    volume: dict[tuple[int, int, str], float] = defaultdict(float)
    copies_GG = np.zeros((len(held), len(held)))

    def innermost(one: int, other: int) -> int:
        return next(level for level, units in enumerate(unit) if units[one] == units[other])

    used = {innermost(a, b) for a in ranks for b in ranks if a != b}

    def send(source: int, target: int, copies: float) -> None:
        if source == target:
            return
        copies_GG[target, source] += copies
        outermost = innermost(source, target)
        for level in range(outermost + 1):
            if port[level] == port[outermost] and level in used:
                volume[level, source, "out"] += copies
                volume[level, target, "in"] += copies

    def serving(expert: int, home: int) -> list[int]:
        pool = [rank for rank in ranks if expert in held[rank]]
        if copies == "even":
            return pool
        return [home] if home in pool else [rank for rank in pool if unit[0][rank] == unit[0][home]] or pool

    for experts in tokens:
        for home in ranks:
            choices = [serving(expert, home) for expert in experts if expert >= 0]
            for chosen in product(*choices):  # each copy in question of each expert is equally likely
                part = 1 / len(ranks) / np.prod([len(places) for places in choices])
                if dedup == "expert":
                    for rank in chosen:
                        send(home, rank, part)
                elif dedup == "gpu" or len(set(domain)) == 1:
                    for rank in set(chosen):
                        send(home, rank, part)
                else:
                    for visited in {domain[rank] for rank in chosen}:
                        inside = [rank for rank in ranks if domain[rank] == visited]
                        if visited == domain[home]:
                            entries = {home: part}
                        else:  # one copy, spread over the GPUs of the domain, and forwarded from there
                            entries = dict.fromkeys(inside, part / len(inside))
                            for member, amount in entries.items():
                                send(home, member, amount)
                        for member, amount in entries.items():
                            for rank in set(chosen) & set(inside):
                                send(member, rank, amount)
    slowest = max((copies / (speed[level] * 1e9) for (level, _, _), copies in volume.items()), default=0.0)
    return slowest, copies_GG


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("dedup", DEDUPS)
@pytest.mark.parametrize(("redundant", "copies"), [(0, "even"), (3, "even"), (3, "nearest")])
def test_volumes_equal_the_count_of_messages(name: str, dedup: Dedup, redundant: int, copies: CopyRule) -> None:
    topology = MACHINES[name][0]
    gpus, experts, top_k = topology.num_gpus, 7, 3
    rng = np.random.default_rng(len(name) + redundant)
    window_T = np.array([0] * 5 + [1] * 8, dtype=np.int32)
    chosen_TLK = rng.random((13, 1, experts)).argsort(axis=2)[:, :, :top_k]
    chosen_TLK[3, 0, 1:] = -1  # a token with fewer choices
    windows = building.routed(np.where(chosen_TLK < 0, 0, chosen_TLK), window_T, [0], experts)
    counts, choices = windows.counts_SLE.copy(), windows.choices_SL.copy()
    counts[0, 0, 0] -= 2
    choices[0, 0] = 13 / 5
    assert windows.sets is not None
    windows.sets.experts_NLK[3, 0, 1:] = -1
    exact = type(windows)(**{**windows.__dict__, "counts_SLE": counts, "choices_SL": choices})
    model = building.model(experts=experts, top_k=top_k, layers=1)
    instance = building.instance(
        model, topology, tokens=8, windows=exact, using=building.constants(dedup, copies=copies)
    )
    cost = split_cost(instance, Split(tp=1, dp=gpus, pp=1, ep=gpus), redundant)
    expert_P = building.random_placement(rng, experts, cost.stages[0].slots_R)
    moe, load = cost.stages[0].moe, instance.loads[0]
    rows_SR = moe.rank_load(load, expert_P)[0]
    found_S = moe.volume_S(load, expert_P, rows_SR)
    pairs_GG = copies_between(cost.stages[0].grid, dedup, moe.copies(load, expert_P, rows_SR))
    mean_GG = np.zeros_like(pairs_GG)
    held = [{expert for expert in rank if expert >= 0} for rank in expert_P.reshape(gpus, -1).tolist()]
    for window, size in ((0, 5), (1, 8)):
        tokens = chosen_TLK[window_T == window, 0].tolist()
        seconds, copies_GG = counted(name, dedup, tokens, held, copies)
        assert found_S[window] == pytest.approx(seconds / size * 8 * gpus, rel=1e-9)
        mean_GG += copies_GG / size * 8 * gpus / 2
    np.testing.assert_allclose(pairs_GG, mean_GG, rtol=1e-9, atol=1e-12)


def test_sharded_experts_share_the_traffic() -> None:
    # Two nodes of two GPUs, etp = 2: the ranks are the nodes and each GPU carries half of every row.
    # 16 rows, top-1, experts 0 and 1 on rank 0 and 1: each rank gets 8 rows, half of them from the
    # other node, on two GPUs: 2 copies per GPU over 0.9 GB/s.
    topology = MACHINES["two nodes"][0]
    chosen = np.array([0, 1] * 8)[:, None, None]
    windows = building.routed(chosen, np.zeros(16, dtype=np.int32), [0], 2)
    model = building.model(experts=2, top_k=1, layers=1)
    instance = building.instance(model, topology, tokens=4, windows=windows)
    cost = split_cost(instance, Split(tp=1, dp=4, pp=1, ep=2, etp=2), 0)
    moe, load = cost.stages[0].moe, instance.loads[0]
    expert_P = np.array([0, 1])
    rows_SR = moe.rank_load(load, expert_P)[0]
    assert rows_SR.tolist() == [[8.0, 8.0]]
    assert moe.volume_S(load, expert_P, rows_SR) == pytest.approx([2 / 0.9e9])
    copies = moe.copies(load, expert_P, rows_SR)
    pairs_GG = copies_between(cost.stages[0].grid, "expert", {key: one / 2 for key, one in copies.items()})
    assert pairs_GG.tolist() == [[0, 0, 2, 0], [0, 0, 0, 2], [2, 0, 0, 0], [0, 2, 0, 0]]  # each to its shard


def test_long_messages_begin_with_a_handshake() -> None:
    """4 ranks of 64 tokens, top-2, 2 * 16 bytes: 64 * 2 / 4 copies to each rank, 1,024 bytes on the mean.

    Half of 8 us where half is taken at 1,024 bytes; placements and windows do not change that.
    """

    def fixed_s(handshake: float, tokens: int = 64) -> tuple[float, float]:
        using = building.constants()
        way = using.kernel.dispatch.value.model_copy(update={"handshake": handshake, "handshake_bytes": 1024})
        update = {"dispatch": Fitted(value=way), "combine": Fitted(value=way)}
        using = using.model_copy(update={"kernel": using.kernel.model_copy(update=update)})
        model = building.model(experts=4, hidden=16, layers=1)
        made = building.instance(model, building.topology(1, 4), using=using, tokens=tokens)
        moe = split_cost(made, Split(tp=1, dp=4, pp=1, ep=4), 0).stages[0].moe
        return moe.dispatch_fixed.seconds, moe.combine_fixed.seconds

    without, with_it = fixed_s(0.0), fixed_s(8e-6)
    assert [one - other for one, other in zip(with_it, without, strict=True)] == pytest.approx([4e-6, 4e-6])
    assert fixed_s(8e-6, tokens=640)[0] - without[0] == pytest.approx(8e-6 * 10 / 11)


@pytest.mark.parametrize(("nodes", "bandwidth", "share"), [(1, 1e9, 0.5), (1, 4e9, 0.5), (2, 1e9, 0.0)])
def test_a_rank_s_own_share_is_copied_inside_one_domain(nodes: int, bandwidth: float, share: float) -> None:
    """64 * 2 / 4 copies of 32 bytes stay on their rank; half of them take what 1,024 bytes over the port take."""

    def fixed_s(copied: float) -> float:
        using = building.constants()
        way = using.kernel.dispatch.value.model_copy(update={"copied": copied})
        kernel = using.kernel.model_copy(update={"dispatch": Fitted(value=way)})
        machine = building.topology(nodes, 4 // nodes, inner=f"{bandwidth:g} B/s")
        model = building.model(experts=4, hidden=16, layers=1)
        made = building.instance(model, machine, using=using.model_copy(update={"kernel": kernel}), tokens=64)
        return split_cost(made, Split(tp=1, dp=4, pp=1, ep=4), 0).stages[0].moe.dispatch_fixed.seconds

    reached = building.constants().kernel.reach.scale_up
    assert fixed_s(0.5) - fixed_s(0.0) == pytest.approx(share * 1024 / (bandwidth * reached))


def test_one_rank_sends_nothing() -> None:
    instance = building.instance(building.model(layers=1), building.topology(1, 4))
    cost = split_cost(instance, Split(tp=1, dp=4, pp=1, ep=1, etp=1, edp=4), 0)
    times = cost.stages[0].moe.layer(instance.loads[0], cost.linear_P(cost.stages[0]))
    assert (times.dispatch_S.tolist(), times.combine_S.tolist()) == ([0.0], [0.0])
