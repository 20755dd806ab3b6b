"""Layers are placed in parallel processes; the answer does not depend on how many there are."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import forkserver, resource_tracker
from types import TracebackType

from planner.errors import MissingEnvironmentError
from planner.solve.place import LayerJob, LayerResult, place_layer

_SMALL = 200_000
"""Jobs whose sizes (windows x slots x experts) add up to less are done in this process."""

_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


class TimeIsUpError(Exception):
    """The time limit passed while layers were being placed."""


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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


class Workers:
    """Places layers; keeps the processes between calls, ends them on exit."""

    def __init__(self, cores: int | None = None, deadline: float | None = None) -> None:
        self.cores = cores or available_cores()
        self.deadline = deadline
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None and error is None:
            self._pool.shutdown()
        else:
            self._stop()

    def _stop(self) -> None:
        """End the processes at once, whatever they do."""
        if self._pool is not None:
            for child in multiprocessing.active_children():  # first: whatever interrupts this, nothing goes on
                child.terminate()
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None

    def place(self, jobs: Sequence[LayerJob]) -> Iterator[tuple[int, LayerResult]]:
        """Results with the index of their job, in the order in which they are ready.

        Raises:
            TimeIsUpError: the deadline passed; what was yielded before stands.
        """
        size = sum(job.problem.num_windows * job.problem.num_slots * job.problem.num_experts for job in jobs)
        exact = any(job.effort > 0 for job in jobs)
        if self.cores == 1 or len(jobs) == 1 or (size < _SMALL and not exact):
            for index, job in enumerate(jobs):
                if self.time_is_up():
                    raise TimeIsUpError
                yield index, place_layer(job)
            return
        yield from self._parallel(jobs)

    def time_is_up(self) -> bool:
        """Whether the deadline has passed."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    def _parallel(self, jobs: Sequence[LayerJob]) -> Iterator[tuple[int, LayerResult]]:
        try:
            waiting = self._submitted(jobs)
            while waiting:
                for future in self._done(waiting):
                    yield waiting.pop(future), self._result(future)
        except BaseException:
            self._stop()
            raise

    def _submitted(self, jobs: Sequence[LayerJob]) -> dict[Future[LayerResult], int]:
        if self._pool is not None:
            return {self._pool.submit(place_layer, job): index for index, job in enumerate(jobs)}
        context = multiprocessing.get_context(_METHOD)
        context.set_forkserver_preload(["planner.solve.place"])
        with _interrupt_deferred():
            self._pool = ProcessPoolExecutor(self.cores, context, _begin)
            return {self._pool.submit(place_layer, job): index for index, job in enumerate(jobs)}

    def _done(self, waiting: Iterable[Future[LayerResult]]) -> set[Future[LayerResult]]:
        left = None if self.deadline is None else max(0.0, self.deadline - time.monotonic())
        done, _ = wait(waiting, timeout=left, return_when=FIRST_COMPLETED)
        if not done:
            raise TimeIsUpError
        return done

    @staticmethod
    def _result(future: Future[LayerResult]) -> LayerResult:
        try:
            return future.result()
        except BrokenProcessPool:
            raise MissingEnvironmentError(
                "a worker process was killed", hint="most likely memory ran out; fewer cores need less (taskset)"
            ) from None
