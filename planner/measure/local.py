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
from types import FrameType
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
"""Those that end all ranks; elastic would take them over."""


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
    with _own_signals() as signals, tempfile.TemporaryDirectory(prefix="ep-plan-") as folder:
        context = _start(job, ranks, meeting, listener, Path(folder))
        try:
            signals.check()
            store = stores.serve(listener)
            prepare(store)
            follower = Coordinator(
                store, ranks, job.timeout_s, job.join_timeout_s, meeting, died=lambda: _died(context, signals)
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


class _Signals:
    """Raises at a signal, and remembers it: what is raised while Python forks or collects garbage is lost."""

    def __init__(self) -> None:
        self.got: int | None = None

    def __call__(self, number: int, _: FrameType | None) -> None:
        """Handle a signal."""
        self.got = number
        self.check()

    def check(self) -> None:
        """Raise if there was one."""
        if self.got is not None:
            raise SignalException("stopped", signal.Signals(self.got))


@contextmanager
def _own_signals() -> Iterator[_Signals]:
    """Once ranks and temporary files are gone, a signal does what it would have done without them."""
    signals = _Signals()
    before = {number: signal.signal(number, signals) for number in _SIGNALS}
    stopped_by: int | None = None
    try:
        yield signals
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
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = ""  # see `_Signals`
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
    for number in (signal.SIGTERM, signal.SIGINT):  # handlers, inherited, would wait for an exchange to end
        signal.signal(number, signal.SIG_DFL)
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.pop(name, None)  # for a cluster: here ranks meet on the loopback interface
    if job.device != "cuda":
        os.close(listener)  # inherited: the store must end with the process that serves it
    code = work(job, Identity(rank, ranks, rank, host_name()), meeting)
    if code:
        sys.exit(code)


def _died(context: PContext, signals: _Signals) -> Mapping[int, int]:
    """Exit codes of ranks that ended with an error; elastic ends the others then."""
    signals.check()
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
