"""What an all-to-all reaches of the links that it waits for."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch", minversion="2.10")

from planner.inputs.units import parse_quantity
from planner.measure.drawn import Machine, topology_data
from planner.measure.reported import Reported
from tests.unit.test_reported import results

FAST, SLOW = 10e9, 1e9


def points(rate: float, crossing: int, alpha_s: float = 5e-5) -> list[tuple[int, float]]:
    """Bytes to each rank and seconds of an all-to-all of which so many parts cross links of this rate."""
    return [(size, alpha_s + size * crossing / rate) for size in (1 << 10, 1 << 20, 1 << 22)]


def reached(ranks: list[dict[str, Any]]) -> dict[str, float]:
    (entry,) = topology_data(Machine(ranks, "cuda", "1"))["calibration"]
    return {name: parse_quantity(one["value"], "fraction") for name, one in entry["levels"].items()}


def test_bridged_gpus_wait_for_the_links_between_the_pairs() -> None:
    ranks = results([Reported()] * 4)  # pairs at 80 GB/s, between them 20 GB/s
    for rank in ranks:
        rank["exchanges"] = [{"inside": True, "ranks": [0, 1, 2, 3], "points": points(15e9, crossing=2)}]
    assert reached(ranks) == pytest.approx({"bridge": 0.75, "node": 0.75}, rel=0.01)


def test_all_hosts_wait_for_the_one_with_a_slow_link() -> None:
    ranks = results([Reported()] * 4)
    for number, rank in enumerate(ranks):
        rank["host"] = f"host-{number}"
        for link in rank["links"]:
            rate = SLOW if 3 in (link["rank"], link["partner"]) else FAST
            link |= {"inside": False, "send_bytes_per_s": rate}
            link["points"] = [(8, 1e-5), (1 << 28, 1e-5 + (1 << 28) / rate)]
        rank["exchanges"] = [{"inside": False, "ranks": [0, 1, 2, 3], "points": points(0.8 * SLOW, crossing=3)}]
    assert reached(ranks) == pytest.approx({"cluster": 0.8}, rel=0.01)
