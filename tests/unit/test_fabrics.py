"""Fabrics: what they carry, and links that name them."""

from __future__ import annotations

from pathlib import Path

import pytest

from planner.errors import InputError
from planner.inputs import profiles
from planner.inputs.documents import validated
from planner.inputs.fabrics import load_fabric
from planner.inputs.links import Link
from planner.inputs.topology import Topology, load_topology

FABRICS = profiles.names("fabrics")


def _topology(folder: Path, links: str) -> Topology:
    path = folder / "topology.yaml"
    path.write_text(f"schema: ep-plan/topology/1\ngpu: h100-sxm\nnodes: 2\ngpus_per_node: 8\nlinks:\n{links}")
    return load_topology(path)


@pytest.mark.parametrize("name", FABRICS)
def test_every_fabric_loads_with_sources(name: str) -> None:
    fabric = load_fabric(name)
    assert fabric.bandwidth.source
    assert fabric.latency.source
    assert fabric.bandwidth.basis in ("datasheet", "assumed")
    assert 0 < fabric.latency.value < 1e-3
    assert 1e9 < fabric.bandwidth.value < 1e12


@pytest.mark.parametrize(
    ("name", "per_gpu", "links"),
    [("nvlink-2", 150e9, 6), ("nvlink-3", 300e9, 12), ("nvlink-4", 450e9, 18), ("nvlink-5", 900e9, 18)],
)
def test_nvlink_generations(name: str, per_gpu: float, links: int) -> None:
    fabric = load_fabric(name)
    assert fabric.bandwidth.value == per_gpu
    assert fabric.num_links == links


def test_rates_count_one_direction() -> None:
    assert load_fabric("ib-ndr").bandwidth.value == 50e9
    assert load_fabric("roce-400").bandwidth.value == 50e9
    assert load_fabric("pcie-5-x16").bandwidth.value == 2 * load_fabric("pcie-4-x16").bandwidth.value


def test_a_link_may_name_a_fabric(tmp_path: Path) -> None:
    made = _topology(tmp_path, "- {level: node, fabric: nvlink-4}\n- {level: cluster, fabric: ib-ndr, latency: 7 us}\n")
    node, cluster = made.links
    assert (node.bandwidth.value, node.latency.value) == (450e9, 3e-6)
    assert node.bandwidth.basis == "datasheet"
    assert cluster.bandwidth.value == 50e9
    assert cluster.latency.value == pytest.approx(7e-6)
    assert cluster.latency.basis == "given"


def test_a_spelled_out_bandwidth_wins(tmp_path: Path) -> None:
    made = _topology(tmp_path, "- {level: node, fabric: nvlink-4, bandwidth: 200 GB/s}\n- {level: c, fabric: ib-ndr}\n")
    assert made.links[0].bandwidth.value == 200e9
    assert made.links[0].latency.value == 3e-6


def test_a_link_survives_writing_and_reading() -> None:
    link = validated(Link, {"level": "cluster", "fabric": "efa-v2", "bandwidth": "400 Gb/s"})
    assert validated(Link, link.model_dump(mode="json")) == link


def test_unknown_fabric_is_told_once_with_its_place_and_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        _topology(tmp_path, "- {level: node, fabric: nvlink-4}\n- {level: cluster, fabric: ib-nrd}\n")
    (problem,) = caught.value.problems
    assert problem.where is not None
    assert (problem.where.line, problem.where.key) == (7, "links[1].fabric")
    assert "'ib-nrd'" in problem.message
    assert "did you mean ib-ndr" in problem.hint
    assert all(name in problem.hint for name in FABRICS)


def test_a_link_needs_a_fabric_or_a_bandwidth(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        _topology(tmp_path, "- {level: node, latency: 3 us}\n- {level: cluster, fabric: ib-ndr}\n")
    (problem,) = caught.value.problems
    assert "bandwidth is missing" in problem.message
