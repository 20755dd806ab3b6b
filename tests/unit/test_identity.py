"""Which rank a process is, by what launchers say, and what its host is called."""

from __future__ import annotations

import socket

import pytest

from planner.errors import MissingEnvironmentError, UsageError
from planner.measure.identity import host_name, identity_from

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}
SLURM = {"SLURM_PROCID": "2", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0"}
OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "5", "OMPI_COMM_WORLD_SIZE": "6", "OMPI_COMM_WORLD_LOCAL_RANK": "5"}


@pytest.mark.parametrize(
    ("said", "expected"),
    [(TORCHRUN, (3, 4, 1)), (SLURM, (2, 8, 0)), (OPEN_MPI, (5, 6, 5)), (SLURM | TORCHRUN, (3, 4, 1))],
)
def test_the_innermost_launcher_counts(said: dict[str, str], expected: tuple[int, int, int]) -> None:
    found = identity_from(said)
    assert (found.rank, found.world_size, found.local_rank) == expected


@pytest.mark.parametrize("changed", [{"RANK": "x"}, {"RANK": "-1"}, {"RANK": "4"}, {"LOCAL_RANK": "4"}, {"RANK": ""}])
def test_ranks_that_cannot_be(changed: dict[str, str]) -> None:
    with pytest.raises(MissingEnvironmentError, match="torchrun says"):
        identity_from(TORCHRUN | changed)


def test_no_launcher() -> None:
    with pytest.raises(UsageError, match="no launcher says"):
        identity_from({"RANK": "0", "WORLD_SIZE": "1"})


@pytest.mark.parametrize(
    ("raw", "shown"),
    [("node-7", "node-7"), ("caf\xe9", "caf\xe9"), ("n\udcff", "n\\xff"), ("a\nb\x1b[2J", "a\\nb\\x1b[2J")],
)
def test_any_host_name_can_be_written(raw: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: raw)
    assert host_name() == shown
    assert host_name().encode("utf-8")
