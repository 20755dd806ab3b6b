"""Work in several processes: how many, how they start, and how they end with Ctrl-C or with their parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from itertools import islice
from multiprocessing import forkserver, resource_tracker
from typing import TypeVar

from planner.errors import MissingEnvironmentError

_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"

_PATIENCE_S = 2.0
"""For processes that were told to end."""

Job = TypeVar("Job")
Answer = TypeVar("Answer")


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def spare_cores() -> int:
    """Cores for the work of this process: one in a worker, as the others work, too, and some cannot start processes."""
    return 1 if multiprocessing.parent_process() is not None else available_cores()


def _begin() -> None:
    """In a worker: Ctrl-C is for the main process, which then ends the workers; none outlives it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_main_process, daemon=True).start()


def _end_with_main_process() -> None:
    main = multiprocessing.parent_process()
    if main is not None:
        main.join()
        os._exit(1)


@contextmanager
def _interrupt_deferred() -> Iterator[None]:
    """Ctrl-C counts once the processes stand: half-started ones would answer it with tracebacks."""
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT)
    if not is_main or not callable(before):
        yield
        return
    pressed: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    try:
        if _METHOD == "forkserver":
            resource_tracker.ensure_running()  # or it would be started below, and lift the block
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited by the server and the workers
            try:
                forkserver.ensure_running()
            finally:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    for number in pressed[:-1]:
        with suppress(KeyboardInterrupt):
            before(number, None)
    if pressed:
        before(pressed[-1], None)


def started(
    cores: int, preload: str, function: Callable[[Job], Answer], jobs: Sequence[Job]
) -> tuple[ProcessPoolExecutor, dict[Future[Answer], int]]:
    """A pool of processes that works on the jobs; futures with the index of their job.

    Args:
        cores: processes.
        preload: the module of `function`, imported once where processes are forked from a server.
        function: of that module.
        jobs: what it is called with.

    Raises:
        MissingEnvironmentError: a process was killed meanwhile.
    """
    context = multiprocessing.get_context(_METHOD)
    context.set_forkserver_preload([preload])
    with _interrupt_deferred():
        pool = ProcessPoolExecutor(cores, context, _begin)
        return pool, submitted(pool, function, jobs)


def submitted(
    pool: ProcessPoolExecutor, function: Callable[[Job], Answer], jobs: Iterable[Job]
) -> dict[Future[Answer], int]:
    """Futures of more jobs for a pool, with the index of their job; raises as `result_of` does."""
    try:
        return {pool.submit(function, job): index for index, job in enumerate(jobs)}
    except BrokenProcessPool:  # a process started meanwhile is unknown to the pool, which would wait for its end
        stop(pool)
        raise _killed() from None


def stop(pool: ProcessPoolExecutor) -> None:
    """End the processes at once, whatever they do."""
    for child in multiprocessing.active_children():  # first: whatever interrupts this, nothing goes on
        child.terminate()
    # The pool's thread closes its pipe while it ends: the interpreter's exit, which writes to that pipe, must not
    # meet it. Waited for in another thread, as a pool that was killed in the middle of a message may never end.
    ending = threading.Thread(target=pool.shutdown, kwargs={"cancel_futures": True}, daemon=True)
    ending.start()
    ending.join(_PATIENCE_S)


def result_of(future: Future[Answer]) -> Answer:
    """The result of a job; raises `MissingEnvironmentError` if its process was killed."""
    try:
        return future.result()
    except BrokenProcessPool:
        raise _killed() from None


def _killed() -> MissingEnvironmentError:
    return MissingEnvironmentError(
        "a worker process was killed", hint="most likely memory ran out; fewer cores need less (taskset)"
    )


def in_order(cores: int, function: Callable[[Job], Answer], jobs: Sequence[Job]) -> Iterator[Answer]:
    """Results in the order of the jobs; in this process where there is one core or one job."""
    if cores == 1 or len(jobs) < 2:
        yield from map(function, jobs)
        return
    ahead = min(cores, len(jobs)) + 1  # results wait in memory: no more of them than keep the processes busy
    pool, first = started(min(cores, len(jobs)), function.__module__, function, jobs[:ahead])
    waiting, left = deque(first), iter(jobs[ahead:])
    first.clear()
    try:
        while waiting:
            answer = result_of(waiting.popleft())
            waiting.extend(submitted(pool, function, islice(left, 1)))
            yield answer
    except BaseException:
        stop(pool)
        raise
    pool.shutdown()
