"""Layers are placed in parallel processes; the answer does not depend on how many there are."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from types import TracebackType

from planner.processes import available_cores, result_of, started, stop, submitted
from planner.solve.place import LayerJob, LayerResult, place_layer

SMALL = 200_000
"""Jobs whose sizes (windows x slots x experts) add up to less are done in this process."""


class TimeIsUpError(Exception):
    """The time limit passed while layers were being placed."""


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
            stop(self._pool)
            self._pool = None

    def place(self, jobs: Sequence[LayerJob]) -> Iterator[tuple[int, LayerResult]]:
        """Results with the index of their job, in the order in which they are ready.

        Raises:
            TimeIsUpError: the deadline passed; what was yielded before stands.
        """
        size = sum(job.problem.num_windows * job.problem.num_slots * job.problem.num_experts for job in jobs)
        exact = any(job.effort > 0 for job in jobs)
        if self.cores == 1 or len(jobs) == 1 or (size < SMALL and not exact):
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
                    yield waiting.pop(future), result_of(future)
        except BaseException:
            self._stop()
            raise

    def _submitted(self, jobs: Sequence[LayerJob]) -> dict[Future[LayerResult], int]:
        if self._pool is not None:
            return submitted(self._pool, place_layer, jobs)
        self._pool, waiting = started(self.cores, place_layer.__module__, place_layer, jobs)
        return waiting

    def _done(self, waiting: Iterable[Future[LayerResult]]) -> set[Future[LayerResult]]:
        left = None if self.deadline is None else max(0.0, self.deadline - time.monotonic())
        done, _ = wait(waiting, timeout=left, return_when=FIRST_COMPLETED)
        if not done:
            raise TimeIsUpError
        return done
