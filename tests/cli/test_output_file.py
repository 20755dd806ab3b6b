"""A plan is written whole or not at all, and what stood there before stays."""

from __future__ import annotations

import os
import resource
import stat
import threading
from pathlib import Path

import pytest

from tests.cli.running import Result, example, files_in, run


@pytest.fixture
def deployment(tmp_path: Path) -> Path:
    """A small deployment; the working folder holds nothing else."""
    return example("mixtral-4gpu", tmp_path)


def solve(deployment: Path, output: object) -> Result:
    """Solve into a file."""
    return run("solve", deployment, "-q", "-o", output, cwd=deployment.parent.parent)


NO_BYTECODE = {"PYTHONDONTWRITEBYTECODE": "1"}
"""For runs with that limit: Python would keep byte code cut off at 4 KiB, and no later run could start."""


def no_file_over_4_kib() -> None:
    """Let every write beyond 4 KiB fail, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))


def test_a_write_that_fails_leaves_the_older_plan(deployment: Path, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("older")
    result = run("solve", deployment, "--json", cwd=tmp_path, before=no_file_over_4_kib, env=NO_BYTECODE)
    assert result.code == 7
    assert "plan.json" in result.problems()[0]["message"]
    assert "nothing was written" in result.problems()[0]["hint"]
    assert (tmp_path / "plan.json").read_text() == "older"
    assert files_in(tmp_path) == {"mixtral-4gpu", "plan.json"}


def test_a_write_that_fails_leaves_nothing_where_nothing_was(deployment: Path, tmp_path: Path) -> None:
    result = run("solve", deployment, cwd=tmp_path, before=no_file_over_4_kib, env=NO_BYTECODE)
    assert (result.code, result.out) == (7, "")
    assert files_in(tmp_path) == {"mixtral-4gpu"}


@pytest.mark.skipif(os.geteuid() == 0, reason="a fault in the program could replace the device")
def test_a_full_device(deployment: Path) -> None:
    assert solve(deployment, "/dev/full").code == 7
    assert stat.S_ISCHR(Path("/dev/full").stat().st_mode)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(deployment: Path, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    result = solve(deployment, "locked/plan.json")
    assert result.code == 7
    assert "permission" in result.err.lower()


@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize("name", ["deployment.yaml", "topology.yaml", "config.json", "trace.npz"])
def test_an_input_is_not_written_over(name: str, link: bool, tmp_path: Path) -> None:
    folder = example("tiny-moe", tmp_path).parent
    kept = (folder / name).read_bytes()
    output = Path(name)
    if link:
        output = folder / "link.json"
        output.symlink_to(name)
    result = run("solve", "deployment.yaml", "-o", output, cwd=folder)
    assert (result.code, result.out) == (2, "")
    assert f"{output} is an input" in result.err
    assert "-o" in result.err
    assert (folder / name).read_bytes() == kept


def test_an_input_of_the_command_line_is_not_written_over(tmp_path: Path) -> None:
    folder = example("tiny-moe", tmp_path).parent
    trace = (folder / "trace.npz").rename(folder / "other.npz")
    kept = trace.read_bytes()
    result = run("solve", "deployment.yaml", "--trace", "other.npz", "-o", "./other.npz", cwd=folder)
    assert result.code == 2
    assert "other.npz is an input" in result.err
    assert trace.read_bytes() == kept


WRONG = {"a folder": "there", "no such folder": "nowhere/plan.json", "a file as folder": "file/plan.json", "empty": ""}


@pytest.mark.parametrize("output", [*WRONG.values(), "loop", "x" * 300], ids=[*WRONG, "a loop of links", "too long"])
def test_a_path_that_cannot_be_a_file_is_refused_before_solving(output: str, deployment: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    result = run("solve", "missing.yaml", "-o", output, cwd=tmp_path)
    assert result.code == 2
    assert "missing.yaml" not in result.err
    assert "-o" in result.err
    assert files_in(tmp_path) == {"mixtral-4gpu", "there", "file", "loop"}
    assert files_in(tmp_path / "there") == set()


def test_a_link_keeps_pointing_where_it_pointed(deployment: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "plan.json").symlink_to("real/plan.json")
    assert solve(deployment, "plan.json").code == 0
    assert (tmp_path / "plan.json").is_symlink()
    assert run("check", "real/plan.json", cwd=tmp_path).code == 0


def test_the_mode_of_an_older_file_stays(deployment: Path, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("older")
    (tmp_path / "plan.json").chmod(0o640)
    assert solve(deployment, "plan.json").code == 0
    assert stat.S_IMODE((tmp_path / "plan.json").stat().st_mode) == 0o640


def test_a_pipe_is_written_to_and_stays_a_pipe(deployment: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()), daemon=True)
    reader.start()
    assert solve(deployment, "pipe").code == 0
    reader.join(10)
    assert read[0].startswith("{")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert files_in(tmp_path) == {"mixtral-4gpu", "pipe"}
