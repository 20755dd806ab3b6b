"""Work in several processes: its order, and a process that is killed at the worst of times."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence

import pytest

from planner.errors import MissingEnvironmentError
from planner.processes import in_order, started


def double(number: int) -> int:
    """The later of two jobs is ready first."""
    time.sleep(0.02 * (number % 2 == 0))
    return 2 * number


def die_at_three(number: int) -> int:
    """As the kernel ends a process when memory runs out."""
    if number == 3:
        os._exit(9)
    return number


class KilledWhileHandedOut(Sequence[int]):
    """Jobs; before the second is handed out the process that has the first is killed."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> int:  # type: ignore[override]
        return index

    def __iter__(self) -> Iterator[int]:
        yield 0
        for child in multiprocessing.active_children():
            child.kill()
            child.join()
        time.sleep(1)  # until the pool has seen it
        yield from (1, 2)


def all_end() -> bool:
    """Whether every process ends soon."""
    limit = time.monotonic() + 10
    while multiprocessing.active_children() and time.monotonic() < limit:
        time.sleep(0.01)
    return not multiprocessing.active_children()


@pytest.mark.parametrize("cores", [1, 2])
def test_results_keep_the_order_of_the_jobs(cores: int) -> None:
    assert list(in_order(cores, double, range(7))) == [0, 2, 4, 6, 8, 10, 12]


def test_a_process_that_dies_ends_the_work() -> None:
    with pytest.raises(MissingEnvironmentError, match="worker process was killed"):
        list(in_order(2, die_at_three, range(9)))
    assert all_end()


def test_a_process_killed_while_jobs_are_handed_out() -> None:
    with pytest.raises(MissingEnvironmentError, match="worker process was killed"):
        started(2, __name__, double, KilledWhileHandedOut())
    assert all_end()
