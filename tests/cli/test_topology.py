"""`ep-plan topology import`: the file written, the warnings, the exit codes."""

from __future__ import annotations

from pathlib import Path

import pytest

from planner.cli.main import call
from planner.inputs.topology import load_topology

TABLE = "\tGPU0\tGPU1\tNIC0\tCPU Affinity\nGPU0\t X \tNV12\tPIX\t0-7\nGPU1\tNV12\t X \tPIX\t0-7\n\nNIC0: mlx5_0\n"


def test_writes_a_topology_that_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "topo.txt", tmp_path / "topology.yaml"
    source.write_text(TABLE)
    arguments = ["topology", "import", str(source), "--gpu", "a100-sxm-80", "--nic", "ib-hdr", "-o", str(target)]
    assert call(arguments) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "warning" not in err
    assert f"wrote {target}: 1 x 2 a100-sxm-80" in err
    made = load_topology(target)
    assert [link.bandwidth.value for link in made.links] == [300e9, 25e9]
    assert made.port_VG.tolist() == [[0, 1], [0, 0]]  # an NVLink port each, one NIC for both


def test_errors_keep_the_old_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "topo.txt", tmp_path / "topology.yaml"
    source.write_text(TABLE.replace("GPU1\tNV12", "GPU1\tNV11"))
    target.write_text("old")
    assert call(["topology", "import", str(source), "--gpu", "a100-sxm-80", "-o", str(target)]) == 3
    assert "topo.txt:3:6: GPU1 to GPU0: NV11" in capsys.readouterr().err
    assert target.read_text() == "old"


def test_the_table_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "topo.txt"
    source.write_text(TABLE)
    (tmp_path / "link").symlink_to("topo.txt")
    for output in (source, tmp_path / "link"):
        assert call(["topology", "import", str(source), "--gpu", "a100-sxm-80", "-o", str(output)]) == 2
        assert "is an input" in capsys.readouterr().err
    assert source.read_text() == TABLE


def test_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "topo.txt"
    source.write_text(TABLE)
    assert call(["topology", "import", str(tmp_path / "none.txt"), "--gpu", "l4"]) == 2
    assert call(["topology", "import", str(source)]) == 2
    assert call(["topology", "import", str(source), "--gpu", "a100"]) == 3
    assert "a100-sxm-80" in capsys.readouterr().err
