"""Ranks as processes of this machine: started, followed, and ended together, whatever happens.

torch.distributed.elastic starts and reaps them; there is no agent, no restart, and the store listens on the
loopback address only.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from torch.distributed import TCPStore
from torch.distributed.elastic.multiprocessing import (
    DefaultLogsSpecs,
    PContext,
    SignalException,
    Std,
    start_processes,
)

from planner.measure import store as stores
from planner.measure.coordinate import Coordinator, Hello
from planner.measure.identity import host_name
from planner.measure.job import Identity, Job
from planner.measure.worker import work

_END_S: Final = 30
_LOG_LINES: Final = 30
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
"""Those that elastic takes over."""


def run_locally(job: Job, ranks: int, prepare: Callable[[TCPStore], None]) -> tuple[list[Hello], list[dict[str, Any]]]:
    """Start so many ranks here and wait for what they found.

    Args:
        job: what they do.
        ranks: how many.
        prepare: puts into the store what ranks will look for.

    Returns:
        What each rank said when it joined, and its result.

    Raises:
        PlannerError: a rank failed; it is named, and all others are ended.
    """
    for name in ("torch.distributed.elastic", "torch.multiprocessing"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # the coordinator says it in one line
    listener = stores.listening(stores.Meeting("127.0.0.1", 0), "launcher")
    meeting = stores.Meeting(*listener.getsockname()[:2])
    with _own_signals(), tempfile.TemporaryDirectory(prefix="ep-plan-") as folder:
        context = _start(job, ranks, meeting, listener, Path(folder))
        try:
            store = stores.serve(listener)
            prepare(store)
            follower = Coordinator(
                store, ranks, job.timeout_s, job.join_timeout_s, meeting, died=lambda: _died(context)
            )
            hellos = follower.admit()
            results = follower.results()
            follower.dismiss(0)
            context.wait(_END_S)
            return hellos, results
        except Exception:
            _show_tracebacks(context)
            raise
        finally:
            context.close()


@contextmanager
def _own_signals() -> Iterator[None]:
    """A signal does what it did before elastic took it over, once ranks and temporary files are gone."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    stopped_by: int | None = None
    try:
        yield
    except SignalException as error:
        stopped_by = error.sigval
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if stopped_by is not None:
        if stopped_by != signal.SIGINT:
            os.kill(os.getpid(), stopped_by)
        raise KeyboardInterrupt


def _start(job: Job, ranks: int, meeting: stores.Meeting, listener: socket.socket, folder: Path) -> PContext:
    threads = {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    return start_processes(
        name="rank",
        entrypoint=_rank,
        args={rank: (job, rank, ranks, meeting, listener.fileno()) for rank in range(ranks)},
        envs=dict.fromkeys(range(ranks), threads),
        logs_specs=DefaultLogsSpecs(log_dir=str(folder), redirects=Std.ALL),
        # forked ranks share torch's memory and start at once; CUDA does not survive a fork
        start_method="spawn" if job.device == "cuda" else "fork",
    )


def _rank(job: Job, rank: int, ranks: int, meeting: stores.Meeting, listener: int) -> None:
    """Entry of a rank's process."""
    for number in (signal.SIGTERM, signal.SIGINT):  # elastic's handlers, inherited, would wait for an exchange to end
        signal.signal(number, signal.SIG_DFL)
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.pop(name, None)  # for a cluster: here ranks meet on the loopback interface
    if job.device != "cuda":
        os.close(listener)  # inherited: the store must end with the process that serves it
    code = work(job, Identity(rank, ranks, rank, host_name()), meeting)
    if code:
        sys.exit(code)


def _died(context: PContext) -> Mapping[int, int]:
    """Exit codes of ranks that ended with an error; elastic ends the others then."""
    result = getattr(context, "_first_failure", None) or context.wait(0)
    if result is None or not result.is_failed():
        return {}
    context._first_failure = result  # noqa: SLF001 - elastic tells it once only
    return {rank: failure.exitcode for rank, failure in result.failures.items()}


def _show_tracebacks(context: PContext) -> None:
    """Pass on what a bug in a rank wrote before it ended."""
    for rank, path in sorted(context.stderrs.items()):
        file = Path(path)
        text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
        if "Traceback" in text:
            lines = text[text.index("Traceback") :].splitlines()[-_LOG_LINES:]
            sys.stderr.write(f"rank {rank}:\n" + "\n".join(lines) + "\n")
            return
