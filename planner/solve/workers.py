"""Layers are placed in parallel processes; the answer does not depend on how many there are."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from types import TracebackType

from planner.solve.place import LayerJob, LayerResult, place_layer

_SMALL = 200_000
"""Jobs whose sizes (windows x slots x experts) add up to less are done in this process."""


class TimeIsUpError(Exception):
    """The time limit passed while layers were being placed."""


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _ignore_interrupt() -> None:
    """Ctrl-C is for the main process, which then ends the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


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
        if self._pool is None:
            return
        self._pool.shutdown(wait=error is None, cancel_futures=True)
        if error is not None:
            for child in multiprocessing.active_children():
                child.terminate()

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
        if self._pool is None:
            method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
            context = multiprocessing.get_context(method)
            if method == "forkserver":
                context.set_forkserver_preload(["planner.solve.place"])
            self._pool = ProcessPoolExecutor(self.cores, context, _ignore_interrupt)
        waiting: dict[Future[LayerResult], int] = {
            self._pool.submit(place_layer, job): index for index, job in enumerate(jobs)
        }
        while waiting:
            left = None if self.deadline is None else max(0.0, self.deadline - time.monotonic())
            done, _ = wait(waiting, timeout=left, return_when=FIRST_COMPLETED)
            if not done:
                for future in waiting:
                    future.cancel()
                raise TimeIsUpError
            for future in done:
                yield waiting.pop(future), future.result()
