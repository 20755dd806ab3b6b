"""Ranks that die, hang, do not come or do not fit: one line names rank, host and phase, in time; no orphans."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cli.running import command, environment, files_in, run
from tests.dist.launching import LIMIT_S, Ended, children_of, free_port, is_alive, own_name, run_ranks

SIZE = 4
HOST = own_name()


def worker(plan: Path, meeting: str, *options: object) -> list[object]:
    limits = ["--timeout", "15 s", "--join-timeout", "60 s"]
    return ["validate", plan, "--emulate", "--worker", "--rendezvous", meeting, *limits, *options]


def local() -> str:
    return f"127.0.0.1:{free_port()}"


def ranks_with(plan: Path, folder: Path, odd: int, before: str) -> dict[int, Ended]:
    """Four ranks, one of which does something before it begins."""
    (folder / "run").mkdir()
    return run_ranks(SIZE, worker(plan, local()), folder / "run", folder / "logs", before={odd: before})


def error_lines(ended: dict[int, Ended]) -> list[str]:
    for one in ended.values():
        assert "Traceback" not in one.err, one.err
    return [line for one in ended.values() for line in one.err.splitlines() if line.startswith("error: ")]


def codes(ended: dict[int, Ended]) -> list[int]:
    return [one.code for one in ended.values()]


NO_PICKLES = """
import pickle
import torch.distributed.distributed_c10d as c10d
def refuse(*arguments, **options):
    raise AssertionError("something was pickled")
pickle.load = pickle.loads = pickle.dump = pickle.dumps = refuse
pickle.Pickler = pickle.Unpickler = c10d._pickler = c10d._unpickler = refuse
"""


def test_ranks_that_a_launcher_started_agree_and_pickle_nothing(four_rank_plan: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    arguments = worker(four_rank_plan, local(), "--links")
    before = dict.fromkeys(range(SIZE), NO_PICKLES)
    ended = run_ranks(SIZE, arguments, tmp_path / "run", tmp_path / "logs", before=before)
    assert codes(ended) == [0] * SIZE, ended
    assert "pass" in ended[0].out
    assert all(ended[rank].out == "" for rank in range(1, SIZE))
    assert "validation.json" in files_in(tmp_path / "run")


DYING = """
import os, signal, time
from planner.measure import micro_run
usual = micro_run.combine
count = [0]
def dying(*arguments):
    count[0] += 1
    if count[0] == 5:
        time.sleep(2)  # long enough to tell where it is
        os.kill(os.getpid(), signal.SIGKILL)
    return usual(*arguments)
micro_run.combine = dying
"""
STOPPING = """
import os, signal, time
from planner.measure import micro_run
usual = micro_run.combine
count = [0]
def stopping(*arguments):
    count[0] += 1
    if count[0] == 5:
        time.sleep(2)  # long enough to tell where it is
        if not os.fork():  # what stops cannot end itself
            time.sleep(30)
            os.kill(os.getppid(), signal.SIGKILL)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGSTOP)
    return usual(*arguments)
micro_run.combine = stopping
"""
HANGING = """
import time
from planner.measure import micro_run
def hanging(*arguments):
    time.sleep(600)
micro_run.serve = hanging
"""
MISSING = """
import planner.measure.worker as worker
usual = worker.sha256_of
def missing(path):
    if path.suffix == ".npz":
        raise FileNotFoundError(2, "No such file or directory")
    return usual(path)
worker.sha256_of = missing
"""
OTHER_VERSION = "import planner.measure.worker as worker; worker.__version__ = '9.9'"


@dataclass(frozen=True)
class Case:
    """Four ranks, one of which does something before it begins."""

    odd: int
    before: str = ""
    size: int = SIZE
    ranks: tuple[int, ...] = tuple(range(SIZE))
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ran:
    """How they ended."""

    ended: dict[int, Ended]
    left: set[str]
    """Files where they ran."""
    meeting: str


CASES = {
    "stopped 0": Case(0, STOPPING),
    "stopped 2": Case(2, STOPPING),
    "never arrives": Case(2, ranks=(0, 1, 3), options=("--join-timeout", "25 s")),
    "hangs": Case(3, HANGING),
    "killed": Case(2, DYING),
    "cannot read": Case(2, MISSING),
    "other version": Case(1, OTHER_VERSION),
    "too few": Case(0, size=2, ranks=(0, 1)),
}


@pytest.fixture(scope="module")
def ran(four_rank_plan: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ran]:
    """All cases, several at a time: most of their time they wait for a time limit."""
    folders = {name: tmp_path_factory.mktemp("case") for name in CASES}
    ports: set[int] = set()
    while len(ports) < len(CASES):
        ports.add(free_port())
    meetings = {name: f"127.0.0.1:{port}" for name, port in zip(CASES, ports, strict=True)}

    def run_case(name: str) -> Ran:
        case, folder, meeting = CASES[name], folders[name], meetings[name]
        (folder / "run").mkdir()
        arguments = worker(four_rank_plan, meeting, *case.options)
        before = {case.odd: case.before}
        ended = run_ranks(case.size, arguments, folder / "run", folder / "logs", ranks=case.ranks, before=before)
        return Ran(ended, files_in(folder / "run"), meeting)

    with ThreadPoolExecutor(max_workers=4) as pool:
        return dict(zip(CASES, pool.map(run_case, CASES), strict=True))


def test_a_rank_killed_in_the_middle(ran: dict[str, Ran]) -> None:
    ended = ran["killed"].ended
    assert ended[2].code == -signal.SIGKILL
    assert [ended[rank].code for rank in (0, 1, 3)] == [7] * 3
    (line,) = error_lines(ended)
    assert line.startswith(f"error: rank 2 ({HOST}): ")
    assert "of layer 0, plan, window 2" in line
    assert ran["killed"].left == set()


@pytest.mark.parametrize("stopped", [0, 2])
def test_a_stopped_rank_no_longer_answers(ran: dict[str, Ran], stopped: int) -> None:
    """SIGSTOP: the process is there, and says nothing; stopping rank 0 stops the store as well."""
    case = ran[f"stopped {stopped}"]
    others = [rank for rank in range(SIZE) if rank != stopped]
    assert [case.ended[rank].code for rank in others] == [7] * 3
    lines = error_lines(case.ended)
    if stopped:
        assert lines[0].startswith(f"error: rank {stopped} ({HOST}): ")
        assert "of layer 0, plan, window 2: no longer answers" in lines[0]
        assert len(lines) == 1
    else:  # nobody is left to judge: every rank says what it lost
        assert len(lines) == 3
        assert all("lost the store that holds the run together" in line for line in lines)
    assert case.left == set()


def test_a_rank_that_cannot_read_the_trace_says_so_at_once(ran: dict[str, Ran]) -> None:
    ended = ran["cannot read"].ended
    assert codes(ended) == [7] * SIZE
    (line,) = error_lines(ended)
    assert line.startswith(f"error: rank 2 ({HOST}): smoke: cannot read ")
    assert line.endswith("trace.npz: No such file or directory")


def test_a_rank_that_hangs(ran: dict[str, Ran]) -> None:
    ended = ran["hangs"].ended
    assert codes(ended) == [7] * SIZE
    (line,) = error_lines(ended)
    assert line == f"error: rank 3 ({HOST}): experts of layer 0, plan, window 0: hangs: no progress within 15 s"
    assert ran["hangs"].left == set()


def test_a_rank_that_never_arrives(ran: dict[str, Ran]) -> None:
    case = ran["never arrives"]
    assert codes(case.ended) == [7] * 3
    (line,) = error_lines(case.ended)
    assert line == (
        f"error: rank 2: join: never arrived at {case.meeting} within 25 s; 3 of 4 are there (hosts {HOST})"
    )
    assert case.left == set()


def test_another_version_of_one_rank(ran: dict[str, Ran]) -> None:
    ended = ran["other version"].ended
    assert codes(ended) == [7] * SIZE
    (line,) = error_lines(ended)
    assert line.startswith(f"error: rank 1 ({HOST}): join: runs ep-plan 9.9, rank 0 ({HOST})")


def test_the_wrong_number_of_ranks(ran: dict[str, Ran]) -> None:
    ended = ran["too few"].ended
    assert codes(ended) == [7] * 2
    (line,) = error_lines(ended)
    assert "2 ranks were started, the plan has 4 GPUs" in line


def test_a_rank_that_comes_late_again_and_again_is_named(four_rank_plan: Path, tmp_path: Path) -> None:
    before = """
import time
from planner.measure import micro_run
usual = micro_run.MicroRun.run_window
def sleeping(self, *arguments):
    made = micro_run.MicroRun._received
    def late(self, *others):
        time.sleep(0.2)
        return made(self, *others)
    micro_run.MicroRun._received = late
    try:
        return usual(self, *arguments)
    finally:
        micro_run.MicroRun._received = made
micro_run.MicroRun.run_window = sleeping
"""
    ended = ranks_with(four_rank_plan, tmp_path, 1, before)
    assert codes(ended) == [0] * SIZE  # an emulation judges no seconds
    assert f"rank 1 ({HOST}) comes late" in ended[0].out


@pytest.mark.parametrize(
    ("rank", "meeting", "words"),
    [
        (0, "no-such-host.invalid:29500", "the rendezvous host 'no-such-host.invalid' does not resolve"),
        (0, "192.0.2.7:29500", "cannot listen on 192.0.2.7:29500"),
        (1, "127.0.0.1:9", "nobody answers at 127.0.0.1:9 within 1 s"),
        (0, "TAKEN", "cannot listen on 127.0.0.1:"),
    ],
)
def test_a_wrong_rendezvous(four_rank_plan: Path, tmp_path: Path, rank: int, meeting: str, words: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:  # another program's port
        meeting = meeting.replace("TAKEN", f"127.0.0.1:{other.getsockname()[1]}")
        arguments = worker(four_rank_plan, meeting, "--join-timeout", "1 s")
        result = run(*arguments, cwd=tmp_path, env={"RANK": str(rank), "WORLD_SIZE": "4", "LOCAL_RANK": "0"})
    assert result.code == 7
    assert result.err.startswith(f"error: rank {rank} ({HOST}): join: {words}")
    assert result.err.count("error: ") == 1
    assert files_in(tmp_path) == set()


@contextmanager
def started(plan: Path, folder: Path) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A validation that has started its ranks, and their process ids."""
    process = subprocess.Popen(
        command("validate", plan, "--emulate"),
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    with process:
        try:
            end = time.monotonic() + LIMIT_S
            while len(children := children_of(process.pid)) < SIZE and time.monotonic() < end:
                time.sleep(0.02)
            assert len(children) >= SIZE
            yield process, children
        finally:
            process.kill()


def all_end(pids: list[int]) -> bool:
    end = time.monotonic() + LIMIT_S
    while any(map(is_alive, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    return not any(map(is_alive, pids))


def test_the_launcher_killed_leaves_no_orphans(four_rank_plan: Path, tmp_path: Path) -> None:
    with started(four_rank_plan, tmp_path) as (process, children):
        process.kill()
        process.wait()
        assert all_end(children)
    assert files_in(tmp_path) == set()


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [(signal.SIGINT, 130, "interrupted; nothing was written"), (signal.SIGTERM, -signal.SIGTERM, "")],
)
def test_a_signal_ends_all_ranks(
    four_rank_plan: Path, tmp_path: Path, number: signal.Signals, code: int, words: str
) -> None:
    with started(four_rank_plan, tmp_path) as (process, children):
        process.send_signal(number)
        out, err = process.communicate(timeout=LIMIT_S)
        assert process.returncode == code, err
        assert (out, err.strip()) == ("", words)
        assert all_end(children)
    assert files_in(tmp_path) == set()


def test_a_child_of_the_launcher_killed(four_rank_plan: Path, tmp_path: Path) -> None:
    with started(four_rank_plan, tmp_path) as (process, children):
        os.kill(children[-1], signal.SIGKILL)
        out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 7, err
    assert out == ""
    assert err.startswith("error: rank ")
    assert err.rstrip().endswith("was killed by SIGKILL")
    assert err.count("error:") == 1
    assert all_end(children)
    assert files_in(tmp_path) == set()


def test_without_torch_the_rest_of_the_program_says_so(four_rank_plan: Path, tmp_path: Path) -> None:
    package = tmp_path / "blocked" / "torch"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('blocked by a test')\n")
    result = run("validate", four_rank_plan, "--emulate", cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "blocked")})
    assert result.code == 7
    assert result.err.startswith("error: measuring needs torch (blocked by a test)")
    assert "ep-plan[torch]" in result.err


def test_without_gpus(four_rank_plan: Path, tmp_path: Path) -> None:
    result = run("validate", four_rank_plan, cwd=tmp_path, env={"CUDA_VISIBLE_DEVICES": ""})
    assert result.code == 7
    assert result.err.startswith("error: the plan needs 4 GPUs on 2 nodes; this machine has 0")
    assert "--print-launch" in result.err
    assert "--emulate" in result.err


def test_more_ranks_than_cores_are_no_machine(four_rank_plan: Path, tmp_path: Path) -> None:
    result = run(
        "validate", four_rank_plan, "--device", "cpu", cwd=tmp_path, before=lambda: os.sched_setaffinity(0, {0})
    )
    assert result.code == 7
    assert "4 ranks on 1 cores" in result.err
