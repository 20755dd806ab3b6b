"""The machine: GPU ids, link levels, ports, and what a topology file may not say."""

from __future__ import annotations

from pathlib import Path

import pytest

from planner.errors import InputError
from planner.inputs.topology import Topology, load_topology, topology_of_nodes
from planner.report.machine_text import machine_text
from tests import building

GPU = "gpu: {memory: 80 GiB, hbm_bandwidth: 3.35 TB/s, compute: {bf16: 989 TFLOP/s}}"
NODE = "{level: node, bandwidth: 450 GB/s, latency: 3 us}"
CLUSTER = "{level: cluster, bandwidth: 50 GB/s, latency: 10 us}"


def load(tmp_path: Path, nodes: int, per_node: int, *links: str, gpu: str = GPU, gpus: int | None = None) -> Topology:
    """A topology from a file with these lines."""
    path = tmp_path / "topology.yaml"
    rows = "\n".join(f"  - {link}" for link in links)
    head = f"schema: ep-plan/topology/1\n{gpu}\nnodes: {nodes}\ngpus_per_node: {per_node}\nlinks:\n"
    path.write_text(f"{head}{rows}\n")
    return load_topology(path, gpus)


def fault(tmp_path: Path, nodes: int, per_node: int, *links: str, gpu: str = GPU, gpus: int | None = None) -> str:
    """The only problem of such a file."""
    with pytest.raises(InputError) as caught:
        load(tmp_path, nodes, per_node, *links, gpu=gpu, gpus=gpus)
    (problem,) = caught.value.problems
    return f"{problem.message}\n{problem.hint}"


def test_gpus_are_numbered_node_by_node(tmp_path: Path) -> None:
    machine = load(tmp_path, 2, 3, NODE, CLUSTER)
    assert machine.num_gpus == 6
    assert machine.node_G.tolist() == [0, 0, 0, 1, 1, 1]
    assert machine.unit_VG.tolist() == [[0, 0, 0, 1, 1, 1], [0] * 6]
    assert machine.num_nodes == 2


def test_quantities_are_bytes_and_seconds(tmp_path: Path) -> None:
    machine = load(tmp_path, 1, 8, NODE)
    assert machine.gpu.memory.value == 80 * 2**30
    assert machine.gpu.compute["bf16"].value == 989e12
    assert (machine.links[0].bandwidth.value, machine.links[0].latency.value) == (450e9, 3e-6)


def test_bare_values_are_given_by_the_user(tmp_path: Path) -> None:
    machine = load(tmp_path, 1, 8, NODE)
    assert machine.gpu.memory.basis == "given"
    measured = "{level: node, bandwidth: {value: 390 GB/s, basis: measured, source: nccl-tests}, latency: 3 us}"
    link = load(tmp_path, 1, 8, measured).links[0]
    assert (link.bandwidth.value, link.bandwidth.basis, link.bandwidth.source) == (390e9, "measured", "nccl-tests")


def test_a_rack_level_between_node_and_cluster(tmp_path: Path) -> None:
    rack = "{level: rack, nodes: 2, bandwidth: 50 GB/s, latency: 5 us}"
    machine = load(tmp_path, 4, 2, NODE, rack, CLUSTER)
    assert machine.unit_VG.tolist() == [[0, 0, 1, 1, 2, 2, 3, 3], [0, 0, 0, 0, 1, 1, 1, 1], [0] * 8]
    # The NIC is another port than NVLink; further out it is the same NIC.
    assert machine.ports == (0, 1, 1)


def test_trays_of_one_nvlink_domain_share_a_port(tmp_path: Path) -> None:
    domain = "{level: rack, same_port: true, bandwidth: 900 GB/s, latency: 3 us}"
    machine = load(tmp_path, 18, 4, "{level: tray, bandwidth: 900 GB/s, latency: 2 us}", domain)
    assert (machine.num_gpus, machine.ports) == (72, (0, 0))


def test_only_the_first_gpus_in_service(tmp_path: Path) -> None:
    machine = load(tmp_path, 2, 4, NODE, CLUSTER, gpus=5)
    assert machine.node_G.tolist() == [0, 0, 0, 0, 1]
    assert "9 GPUs asked for, 8 are there" in fault(tmp_path, 2, 4, NODE, CLUSTER, gpus=9)
    assert "give 1..8" in fault(tmp_path, 2, 4, NODE, CLUSTER, gpus=0)


@pytest.mark.parametrize(
    ("nodes", "links", "message"),
    [
        (2, [NODE], "2 nodes, but only the level 'node' inside a node\nadd the level that joins the nodes"),
        (2, [NODE, CLUSTER.replace("cluster", "node")], "links: a level name stands twice: node, node"),
        (4, [NODE, CLUSTER.replace("}", ", nodes: 2}")], "links: the outermost level joins 2 of 4 nodes"),
        (
            4,
            [NODE, "{level: rack, nodes: 1, bandwidth: 1 GB/s, latency: 1 us}", CLUSTER],
            "links: each level must join more nodes than the one before, found [1, 1, 4]",
        ),
        (10_000, [NODE, CLUSTER], "80,000 GPUs\nat most 65,536 are planned"),
    ],
)
def test_links_that_do_not_join_the_machine(tmp_path: Path, nodes: int, links: list[str], message: str) -> None:
    assert fault(tmp_path, nodes, 8, *links).startswith(message)


@pytest.mark.parametrize(
    ("gpu", "message"),
    [
        ("gpu: h100", "unknown GPU 'h100'\ndid you mean h100-nvl or h100-sxm or h100-pcie?\nor describe it: memory, "),
        ("gpu: tpu-v5", "unknown GPU 'tpu-v5'\nknown: a10, a100-pcie-40, "),
        (GPU.replace("bf16", "bf17"), "unknown format bf17\nknown: fp4, fp8, bf16, fp32"),
        (GPU.replace("{bf16: 989 TFLOP/s}", "{}"), "dictionary should have at least 1 item"),
    ],
)
def test_gpus_that_are_not_known(tmp_path: Path, gpu: str, message: str) -> None:
    assert fault(tmp_path, 1, 8, NODE, gpu=gpu).startswith(message)


def test_an_unknown_gpu_can_be_described_inline(tmp_path: Path) -> None:
    # What the message tells the user to write is itself accepted.
    said = fault(tmp_path, 1, 8, NODE, gpu="gpu: my-gpu")
    assert "or describe it: memory, hbm_bandwidth and compute (" in said
    inline = said.split("inline:\n")[1].strip()
    assert load(tmp_path, 1, 8, NODE, gpu=inline).gpu.compute["fp8"].value == 1979e12


def test_nodes_by_count_and_profile(tmp_path: Path) -> None:
    machine = topology_of_nodes(4, "hgx-h100", None)
    assert (machine.num_gpus, machine.num_nodes, machine.gpu.name) == (32, 4, "h100-sxm")
    with pytest.raises(InputError, match="unknown node 'hgx-h1000'") as caught:
        topology_of_nodes(4, "hgx-h1000", None)
    hint = caught.value.problems[0].hint
    assert hint.startswith("did you mean hgx-h100 or ")
    assert "\nor describe it: gpu, nodes, gpus_per_node, links (level; " in hint
    path = tmp_path / "topology.yaml"
    path.write_text(hint.split("in a topology.yaml:\n")[1])
    assert load_topology(path, None).num_gpus == 32


@pytest.mark.parametrize("count", [0, 8193])
def test_a_count_of_nodes_out_of_range(count: int) -> None:
    with pytest.raises(InputError) as caught:
        topology_of_nodes(count, "hgx-h100", None)
    assert caught.value.problems[0].hint == "expected 1..8192"  # 65 536 / 8


@pytest.mark.parametrize(
    ("gpus", "text"),
    [(None, "16 x test-gpu on 2 nodes"), (9, "9 x test-gpu on 2 nodes"), (8, "8 x test-gpu"), (4, "4 x test-gpu")],
)
def test_words_count_the_nodes_with_a_gpu_in_use(gpus: int | None, text: str) -> None:
    assert machine_text(building.topology(2, 8, gpus=gpus)) == text
