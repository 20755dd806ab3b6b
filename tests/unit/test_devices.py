"""How much memory ranks may take: of the machine, of the control group, of the groups around it."""

from __future__ import annotations

from pathlib import Path

import pytest

from planner.errors import MissingEnvironmentError
from planner.measure.devices import check_room, free_memory, is_out_of_memory

MIB = 1 << 20


def machine(root: Path, groups: str, files: dict[str, int | str]) -> Path:
    """A root folder with 1 GiB free, and what the kernel shows of control groups."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text("MemTotal: 2097152 kB\nMemAvailable: 1048576 kB\n")
    (root / "proc/self/cgroup").write_text(groups)
    for name, value in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")
    return root


V2 = "0::/slice/job\n"
V1 = "9:name=systemd:/\n4:cpu,memory:/slice/job\n0::/\n"
OF = {V2: ("memory.max", "memory.current", ""), V1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory/")}


@pytest.mark.parametrize("version", [V1, V2])
@pytest.mark.parametrize(
    ("inner", "outer", "free"),
    [
        ("max", "max", 1024),
        (300 * MIB, "max", 200),
        ("max", 300 * MIB, 250),
        (600 * MIB, 200 * MIB, 150),
        (50 * MIB, "max", 0),
    ],
)
def test_the_tightest_group_counts(tmp_path: Path, version: str, inner: int | str, outer: int | str, free: int) -> None:
    limit, used, top = OF[version]
    files = {
        f"{top}slice/job/{limit}": inner,
        f"{top}slice/job/{used}": 100 * MIB,
        f"{top}slice/{limit}": outer,
        f"{top}slice/{used}": 50 * MIB,
    }
    assert free_memory(machine(tmp_path, version, files)) == free * MIB


def test_groups_of_another_namespace_and_none_at_all(tmp_path: Path) -> None:
    seen = machine(tmp_path / "a", "0::/../../elsewhere\n", {"memory.max": 300 * MIB, "memory.current": 0})
    assert free_memory(seen) <= 1024 * MIB
    bare = machine(tmp_path / "b", V2, {})
    (bare / "proc/self/cgroup").unlink()
    assert free_memory(bare) == 1024 * MIB


def test_ranks_that_do_not_fit_are_refused_with_what_would_help() -> None:
    check_room(2, 0, 1 << 30, emulated=True)
    with pytest.raises(
        MissingEnvironmentError, match=r"8 emulated ranks need about 1.50 GiB \(192 MiB each\), 1.00 GiB"
    ):
        check_room(8, 0, 1 << 30, emulated=True)
    with pytest.raises(MissingEnvironmentError, match="2 ranks need about") as raised:
        check_room(2, 1 << 30, 1 << 30, emulated=False)
    assert "--emulate" in raised.value.problems[0].hint


def test_what_counts_as_short_memory() -> None:
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"))
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))
