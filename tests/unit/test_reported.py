"""What the driver says of links, from kernel files and `nvidia-smi` output made for these tests."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

pytest.importorskip("torch", minversion="2.10")

from planner.measure.drawn import Machine, topology_text
from planner.measure.probe import findings
from planner.measure.reported import (
    Joined,
    Nic,
    Pcie,
    Reported,
    Smi,
    joined,
    read_reported,
    reported_findings,
    reported_from,
)
from planner.report.probe_report import render_probe

UUIDS = [f"{number}1111111-aaaa-bbbb-cccc-000000000000" for number in range(4)]
ADDRESSES = ["0000:18:00.0", "0000:2a:00.0", "0000:3b:00.0", "0000:5d:00.0"]
QUERY = "".join(f"GPU-{uuid}, 0000{address.upper()}\n" for uuid, address in zip(UUIDS, ADDRESSES, strict=True))
MATRIX = """\
\x1b[4m\tGPU0\tGPU1\tGPU2\tGPU3\tNIC0\tNIC1\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m
GPU0\t X \tNV4\tSYS\tSYS\tPIX\tSYS\t0-31\t0\tN/A
GPU1\tNV4\t X \tSYS\tSYS\tPXB\tSYS\t0-31\t0\tN/A
GPU2\tSYS\tSYS\t X \tNV4\tSYS\tPIX\t32-63\t1\tN/A
GPU3\tSYS\tSYS\tNV4\t X \tSYS\tPXB\t32-63\t1\tN/A
NIC0\tPIX\tPXB\tSYS\tSYS\t X \tSYS\t\t\t
NIC1\tSYS\tSYS\tPIX\tPXB\tSYS\t X \t\t\t

Legend:

  X    = Self

NIC Legend:

  NIC0: mlx5_0
  NIC1: mlx5_1
"""


def smi(links: int = 4) -> Smi:
    """A driver of four GPUs in bridged pairs."""
    status = "GPU 0: NVIDIA Some GPU (UUID: GPU-x)\n" + "".join(f"\t Link {at}: 25 GB/s\n" for at in range(links))

    def answer(arguments: tuple[str, ...]) -> str | None:
        if arguments[0].startswith("--query-gpu"):
            return QUERY
        return MATRIX if arguments[0] == "topo" else status + "\t Link 9: <inactive>\n"

    return answer


def sysfs(root: Path, lanes: dict[str, tuple[str, str]] | None = None) -> Path:
    """Kernel files of a host with four GPUs and three InfiniBand cards, one of them down; lanes: current, most."""
    devices = root / "sys/bus/pci/devices"
    cards = {"mlx5_0": "0000:19:00.0", "mlx5_1": "0000:3c:00.0", "mlx5_9": "0000:90:00.0"}
    for address in (*ADDRESSES, *cards.values()):
        folder = devices / address
        folder.mkdir(parents=True)
        current, most = (lanes or {}).get(address, ("16", "16"))
        (folder / "current_link_width").write_text(f"{current}\n")
        (folder / "max_link_width").write_text(f"{most}\n")
        (folder / "current_link_speed").write_text("32.0 GT/s PCIe\n")
        (folder / "numa_node").write_text("1\n")
    for name, address in cards.items():
        port = root / "sys/class/infiniband" / name / "ports/1"
        port.mkdir(parents=True)
        (port / "state").write_text("1: DOWN\n" if name == "mlx5_9" else "4: ACTIVE\n")
        (port / "rate").write_text("800 Gb/sec (4X XDR)\n" if name == "mlx5_9" else "400 Gb/sec (4X NDR)\n")
        (port.parents[1] / "device").symlink_to(devices / address)
    for name, speed in (("eth0", "25000"), ("eth1", "-1"), ("lo", "")):
        folder = root / "sys/class/net" / name
        folder.mkdir(parents=True)
        (folder / "speed").write_text(f"{speed}\n")
    return root


def read(root: Path, gpu: int, links: int = 4) -> Reported:
    """As one rank reads it, sent to another process and back."""
    said = read_reported(UUIDS[gpu], root, smi(links))
    return reported_from(json.loads(json.dumps(said.data())))


def test_a_gpu_with_everything(tmp_path: Path) -> None:
    said = read(sysfs(tmp_path), 1)
    lanes = Pcie(16, 16, pytest.approx(16 * 32e9 * 128 / 130 / 8))  # type: ignore[arg-type]
    assert said == Reported(
        gpu=ADDRESSES[1],
        numa_node=1,
        pcie=lanes,
        paths={ADDRESSES[0]: "NV4", ADDRESSES[2]: "SYS", ADDRESSES[3]: "SYS"},
        nvlinks=4,
        nvlink_bytes_per_s=25e9,
        nics=(Nic("mlx5_0", 50e9, 1, "0000:19:00.0", lanes), Nic("mlx5_1", 50e9, 4, "0000:3c:00.0", lanes)),
        interfaces={"eth0": 25e9 / 8},
    )


def link(one: Reported, other: Reported, *, inside: bool = True, over: str | None = None) -> Joined:
    return joined(one, other, inside=inside, interfaces=(over, over))


def test_what_joins_two_ranks(tmp_path: Path) -> None:
    root = sysfs(tmp_path)
    ranks = [read(root, gpu) for gpu in range(4)]
    assert link(ranks[0], ranks[1]) == Joined("NVLink NV4", 100e9)
    over_pcie = link(ranks[1], ranks[2])
    assert over_pcie.by == "PCIe SYS"
    assert over_pcie.bytes_per_s == pytest.approx(63e9, rel=0.01)
    assert link(ranks[0], ranks[1], inside=False) == Joined("NIC mlx5_0", 50e9)
    assert link(ranks[0], ranks[2], inside=False) == Joined("NIC mlx5_0/mlx5_1", 50e9)
    plain = read_reported(None, tmp_path, smi())
    assert link(plain, plain) == Joined("host", None)
    assert link(plain, plain, inside=False, over="eth0") == Joined("NIC eth0", 25e9 / 8)
    assert link(plain, plain, inside=False, over="eth1") == Joined("NIC eth1", None)
    assert link(plain, plain, inside=False) == Joined("NIC", None)


def test_what_nobody_tells_is_left_out(tmp_path: Path) -> None:
    def silent(_: tuple[str, ...]) -> None:
        return None

    assert read_reported(UUIDS[0], tmp_path, silent) == Reported(interfaces={})
    said = read_reported(UUIDS[0], tmp_path, smi())  # a container that hides /sys
    assert (said.pcie, said.numa_node, said.nics) == (None, None, ())
    assert link(said, said) == Joined("host", None)
    other = read_reported(UUIDS[2], tmp_path, smi())
    assert link(said, other) == Joined("PCIe SYS", None)
    assert read_reported("0", tmp_path, smi()).gpu is None  # a GPU that the driver does not list: a MIG slice


@pytest.mark.parametrize("text", ["", "no table at all", MATRIX.replace("GPU3\tSYS", "GPU3\tSOS"), MATRIX[:60]])
def test_a_table_that_cannot_be_read_is_no_error(tmp_path: Path, text: str) -> None:
    usual = smi()
    said = read_reported(UUIDS[0], tmp_path, lambda words: text if words[0] == "topo" else usual(words))
    assert (said.gpu, said.paths, said.nvlinks) == (ADDRESSES[0], None, 4)


@pytest.mark.parametrize(("current", "most"), [("63", "63"), ("0", "16"), ("", ""), ("16", "255")])
def test_lanes_that_cannot_be_are_not_believed(tmp_path: Path, current: str, most: str) -> None:
    said = read(sysfs(tmp_path, {ADDRESSES[0]: (current, most)}), 0)
    assert said.pcie is None or said.pcie.most_lanes is None
    assert reported_findings(results([said])) == ()


def results(said: list[Reported], host: str = "node-a") -> list[dict[str, Any]]:
    """As ranks of a probe would send them, one after the other on a host."""
    rate = {"median": 1e12, "low": 9e11, "high": 1.1e12, "samples": 7}
    sample = {"seconds": 1e-4, "flop": 1e8, "weight_bytes": 1e6, "moved_bytes": 0.0, "experts": 0}
    kernels = {name: [sample] * 2 for name in ("gemm", "experts", "attention_decode", "attention_prefill")}
    links = [
        [
            {
                "rank": rank,
                "partner": other,
                "inside": True,
                "latency_s": 1e-5,
                "send_bytes_per_s": 80e9 if rank // 2 == other // 2 else 20e9,
                "spread": 0.0,
                "points": [(8, 1e-5), (1 << 28, 1e-5 + (1 << 28) / (80e9 if rank // 2 == other // 2 else 20e9))],
            }
            for other in (rank ^ 1, rank ^ 2)
            if other < len(said)
        ]
        for rank in range(len(said))
    ]
    return [
        {
            "host": host,
            "smoke": {"device": "Some GPU", "memory_bytes": 80 << 30},
            "memory_bytes_per_s": rate,
            "compute": {"bf16": rate},
            "kernels": {"bf16": kernels},
            "links": links[rank],
            "exchanges": [],
            "reported": one.data(),
            "interface": None,
        }
        for rank, one in enumerate(said)
    ]


def test_narrow_links_are_named_with_host_and_device(tmp_path: Path) -> None:
    root = sysfs(tmp_path, {ADDRESSES[2]: ("8", "16"), "0000:3c:00.0": ("4", "16")})
    said = [read(root, gpu, links=3 if gpu == 1 else 4) for gpu in range(4)]
    assert reported_findings(results(said)) == (
        "host node-a: NIC mlx5_1 (0000:3c:00.0) runs on 4 of its 16 PCIe lanes",
        "rank 1 (node-a): GPU 0000:2a:00.0 has 3 NVLinks up, others of its kind 4",
        "rank 2 (node-a): GPU 0000:3b:00.0 runs on 8 of its 16 PCIe lanes",
    )


def test_a_probe_sets_the_line_rate_beside_the_measured_one(tmp_path: Path) -> None:
    root = sysfs(tmp_path)
    machine = Machine(results([read(root, gpu) for gpu in range(4)]), "cuda", "1")
    near, far = yaml.safe_load(topology_text(machine))["links"]
    assert (near["level"], near["gpus"], far["level"]) == ("bridge", 2, "node")
    assert near["bandwidth"]["source"].endswith("; by NVLink NV4, line rate 100 GB/s")
    assert far["bandwidth"]["source"].endswith("; by PCIe SYS, line rate 63.0 GB/s")
    out = StringIO()
    render_probe(machine, Console(file=out, width=200))
    lines = {line.split()[0]: line.split() for line in out.getvalue().splitlines() if line.strip()}
    assert lines["bridge"][1:8] == ["NVLink", "NV4", "100", "GB/s", "80.00", "GB/s", "80.0"]
    assert lines["node"][1:8] == ["PCIe", "SYS", "63.0", "GB/s", "20.00", "GB/s", "31.7"]
    assert findings(machine) == ()


def test_a_probe_without_a_driver_says_so() -> None:
    machine = Machine(results([Reported()] * 2), "cpu", "1")
    assert "; by host, line rate not reported by the driver" in topology_text(machine)
    out = StringIO()
    render_probe(machine, Console(file=out, width=200))
    assert "not reported by the driver" in out.getvalue()
