"""Several hosts, one with a slow link: probe and pairs name it, a plan moves traffic off it, baselines run too."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.cli.running import plan_of
from tests.dist.hosts import Hosts, hosts, why_not
from tests.dist.plans import small_plan

REASON = why_not()
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")

SLOW = 3
LIMITS = ["--timeout", "150 s", "--join-timeout", "150 s"]


@pytest.fixture(scope="module")
def four_hosts() -> Iterator[Hosts]:
    """Links of 40 Mbit/s, but a tenth of that to host-3: slow enough that the processor does not matter."""
    with hosts(["40mbit", "40mbit", "40mbit", "4mbit"]) as made:
        yield made


@pytest.fixture(scope="module")
def probed(four_hosts: Hosts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The topology that `probe` writes; not to be changed."""
    folder = tmp_path_factory.mktemp("probe")
    ended = four_hosts.run_ranks(["probe", "--device", "cpu", *LIMITS, "-o", "topology.yaml"], folder)
    assert [one.code for one in ended] == [0] * 4, ended
    assert f"slow NIC or link of host host-{SLOW} (rank {SLOW})" in ended[0].err
    return folder / "topology.yaml"


def test_probe_measures_the_links_and_the_slow_one_apart(probed: Path) -> None:
    data = yaml.safe_load(probed.read_text())
    usual, slow = data["groups"]
    assert (usual["nodes"], slow["nodes"]) == (SLOW, 1)
    links = {link["level"]: link for link in data["links"]}
    usual_rate = rate(links["cluster"]["bandwidth"]["value"])
    assert usual_rate < 6e6  # 40 Mbit/s are 5 MB/s: a busy machine is slower, none is faster
    (own,) = slow["links"]
    assert own["level"] == "cluster"
    assert rate(own["bandwidth"]["value"]) < min(0.6e6, usual_rate)
    assert links["cluster"]["bandwidth"]["basis"] == "measured"
    assert "middle 80 %" in links["cluster"]["bandwidth"]["source"]
    assert {"gemm", "experts", "attention_decode", "attention_prefill"} <= set(usual["gpu"]["efficiency"])
    assert data["calibration"][0]["kernel"] == "all-to-all"


def test_a_plan_for_it_moves_traffic_off_the_slow_host(four_hosts: Hosts, probed: Path, tmp_path: Path) -> None:
    topology = probed.read_text().partition("schema: ep-plan/topology/1\n")[2]
    solve = "{split: {ep: 4, tp: 1, pp: 1}}"
    plan = small_plan(
        tmp_path / "plan", topology=topology, solve=solve, experts=16, tokens=128, hidden=256, gap="20%", hot_last=True
    )
    # homes are uniform, so what the slow host must send does not depend on the plan; what it receives does
    served = sum(row[SLOW] for row in plan_of(plan).predicted.rank_tokens)
    chosen = np.load(plan.parent / "trace.npz")["expert_ids"]
    assert served < 0.6 * int((chosen >= 12).sum())  # of the linear layout
    ended = four_hosts.run_ranks(
        ["validate", plan, "--device", "cpu", "--against", "linear", "--windows", 1, "--repeats", 2, *LIMITS], tmp_path
    )
    assert {one.code for one in ended} <= {0, 6}, ended  # seconds on a busy machine may be off; counts may not
    document = json.loads((tmp_path / "validation.json").read_text())
    assert document["counts"]["judged"] == "pass"
    assert document["outputs"]["judged"] == "pass"
    assert any(f"host host-{SLOW} (rank {SLOW})" in text for text in document["machine"])
    assert f"host-{SLOW}" in document["nodes"]["failing"]
    runs = {run["name"]: run for run in document["placements"]}
    assert runs["plan"]["predicted_s"] < 0.9 * runs["linear"]["predicted_s"]
    assert min(run["step_s"] for run in runs.values()) > 0  # both were timed; by how much they differ is no test
    terms = {term["name"] for term in document["terms"]}
    assert {"dispatch", "experts", "combine", "attention"} <= terms


def rate(text: str) -> float:
    number, unit = text.split()
    return float(number) * {"MB/s": 1e6, "kB/s": 1e3, "GB/s": 1e9}[unit]
