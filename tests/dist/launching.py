"""Starts ranks as a launcher would, so that tests can do something to one of them.

One process imports torch and forks the ranks, which then read the variables that torchrun sets.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.cli.running import environment

LIMIT_S = 240

_FORK = """
import json, os, signal, sys, time
import planner.measure.validate, planner.cli.validate, planner.report.validation_report
from planner.cli.main import call
job = json.loads(sys.argv[1])
pids = {}
for rank in job["ranks"]:
    pid = os.fork()
    if pid:
        pids[pid] = rank
        continue
    try:
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(job["size"]), LOCAL_RANK=str(rank))
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{job['logs']}/{rank}.{name}", os.O_CREAT | os.O_WRONLY), number)
        exec(job["before"].get(str(rank), ""))
        code = call(job["arguments"])
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    except BaseException:
        import traceback
        traceback.print_exc()
        os._exit(1)
end = time.monotonic() + job["limit"]
codes = {}
while pids:
    pid, status = os.waitpid(-1, os.WNOHANG)
    if pid:
        codes[pids.pop(pid)] = os.waitstatus_to_exitcode(status)
    elif time.monotonic() > end:
        for left in pids:
            os.kill(left, signal.SIGKILL)
        end += 1000
    else:
        time.sleep(0.02)
print(json.dumps(codes))
"""


@dataclass(frozen=True)
class Ended:
    """How one rank ended; -9 also if it had to be killed because it did not end by itself."""

    code: int
    out: str
    err: str


def free_port() -> int:
    """A port of the loopback interface that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_ranks(
    size: int,
    arguments: Sequence[object],
    folder: Path,
    logs: Path,
    *,
    ranks: Sequence[int] | None = None,
    before: Mapping[int, str] | None = None,
) -> dict[int, Ended]:
    """Run ranks to their end.

    Args:
        size: world size that they are told.
        arguments: command line of all of them.
        folder: where they run.
        logs: where their output goes.
        ranks: those that are started; default: all.
        before: Python that a rank runs first.
    """
    logs.mkdir(parents=True, exist_ok=True)
    job = {
        "ranks": list(range(size) if ranks is None else ranks),
        "size": size,
        "arguments": [str(argument) for argument in arguments],
        "before": {str(rank): text for rank, text in (before or {}).items()},
        "logs": str(logs),
        "limit": LIMIT_S,
    }
    done = subprocess.run(
        [sys.executable, "-c", _FORK, json.dumps(job)],
        cwd=folder,
        env=environment(OMP_NUM_THREADS="1", TORCH_CPP_LOG_LEVEL="ERROR"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=LIMIT_S + 60,
        check=True,
    )
    codes = json.loads(done.stdout)
    return {
        int(rank): Ended(code, (logs / f"{rank}.out").read_text(), (logs / f"{rank}.err").read_text())
        for rank, code in sorted(codes.items())
    }


def children_of(pid: int) -> list[int]:
    """Processes that a process has started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            if int(stat.rpartition(")")[2].split()[1]) == pid:
                found.append(int(entry.name))
    return sorted(found)


def is_alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def own_name() -> str:
    """This host."""
    return os.uname().nodename
