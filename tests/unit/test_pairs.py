"""Pairing in rounds, and who is to blame for slow pairs."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("torch", minversion="2.10")

from planner.measure.machine import link_findings, stragglers
from planner.measure.pairs import Measured, repaired, rounds, slow_pairs

FAST = 1e9


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7, 8, 13, 64])
def test_rounds_are_few_and_pairs_are_apart(ranks: int) -> None:
    plan = rounds(ranks)
    assert len(plan) == (math.ceil(math.log2(ranks)) if ranks > 1 else 0)
    for pairs in plan:
        ends = [end for pair in pairs for end in pair]
        assert len(ends) == len(set(ends))
        assert all(0 <= end < ranks for end in ends)
    assert len({pair for pairs in plan for pair in pairs}) == sum(map(len, plan))
    if ranks & (ranks - 1) == 0 and ranks > 1:
        assert all(2 * len(pairs) == ranks for pairs in plan)


def measured(hosts: list[str], rate_of: dict[frozenset[int], float], slow_rank: int | None = None) -> list[Measured]:
    """What the rounds and two rounds of re-pairing would find."""

    def both(one: int, other: int) -> list[Measured]:
        rate = rate_of.get(frozenset((one, other)), FAST)
        if slow_rank in (one, other):
            rate = FAST / 10
        inside = hosts[one] == hosts[other]
        return [Measured(a, b, inside, 1e-5, rate, 0.0) for a, b in ((one, other), (other, one))]

    found = [m for pairs in rounds(len(hosts)) for pair in pairs for m in both(*pair)]
    for _ in range(2):
        found += [m for pair in repaired(found, hosts) for m in both(*pair)]
    return found


def test_nothing_slow() -> None:
    assert link_findings(measured(["a"] * 4 + ["b"] * 4, {}), ["a"] * 4 + ["b"] * 4) == []


def test_a_slow_host_of_several() -> None:
    hosts = ["a", "b", "c", "d"]
    (finding,) = link_findings(measured(hosts, {}, slow_rank=2), hosts)
    assert finding.message.startswith("slow NIC or link of host c (rank 2): 100 MB/s")
    assert finding.hosts == ("c",)


def test_a_slow_nic_of_one_rank() -> None:
    hosts = [host for host in "abcd" for _ in range(2)]
    found = measured(hosts, {}, slow_rank=5)
    between = [m if not m.inside else Measured(m.rank, m.partner, True, 1e-5, FAST, 0.0) for m in found]
    (finding,) = link_findings(between, hosts)
    assert finding.message.startswith("slow NIC or link of rank 5 (c)")
    assert finding.hosts == ("c",)


def test_a_slow_gpu_inside_a_host() -> None:
    hosts = ["a"] * 8
    (finding,) = link_findings(measured(hosts, {}, slow_rank=6), hosts)
    assert finding.message.startswith("slow GPU or its link of rank 6 (a)")


def test_bridged_pairs_do_not_make_the_others_slow() -> None:
    hosts = ["a"] * 4 + ["b"] * 4
    bridges = {frozenset((rank, rank + 1)): 5 * FAST for rank in range(0, 8, 2)}
    assert link_findings(measured(hosts, bridges), hosts) == []
    (finding,) = link_findings(measured(hosts, {**bridges, frozenset((4, 5)): 2 * FAST}), hosts)
    assert finding.message == "slow link between rank 4 (b) and rank 5 (b): 2.00 GB/s, fast ones of its kind 5.00 GB/s"


def test_one_slow_link_blames_neither_end() -> None:
    hosts = ["a", "b", "c", "d"]
    slow = {frozenset((0, 1)): FAST / 5}
    found = measured(hosts, slow)
    assert slow_pairs(found, hosts) == {(0, 1)}
    (finding,) = link_findings(found, hosts)
    assert finding.message.startswith("slow link between rank 0 (a) and rank 1 (b): 200 MB/s")
    assert finding.hosts == ("a", "b")


def result(waits: list[float]) -> dict[str, object]:
    phases = {"dispatch": {"0": {"wait_s": waits}}}
    return {"host": "a", "runs": {"plan": {"counted": phases}}}


def test_a_rank_that_is_always_last_is_named() -> None:
    late = 2
    results = [result([0.0 if rank == late else 0.2] * 5) for rank in range(4)]
    (finding,) = stragglers(results, [0] * 4, 2.0)
    assert finding.message == "rank 2 (a) comes late: others wait 1.00 s for it in 2.00 s"


def test_ranks_that_take_turns_being_last_are_not() -> None:
    results = [result([0.0 if (step + rank) % 4 == 0 else 0.2 for step in range(8)]) for rank in range(4)]
    assert stragglers(results, [0] * 4, 2.0) == []
