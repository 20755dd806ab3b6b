"""The history of a search: never going back, ending where the search does, the same however workers finish."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import pytest

from planner.solve.history import MOST_POINTS, History, stops
from planner.solve.master import Master
from planner.solve.place import LayerJob, LayerResult
from planner.solve.solution import Options, Solution
from planner.solve.workers import TimeIsUpError, Workers
from tests import building


def test_points_never_go_back_nor_beyond_the_end() -> None:
    history = History()
    for effort, best_s, bound_s in ((0, 9.0, 1.0), (1, 7.0, 3.0), (2, 8.0, 2.0), (3, 4.9, 6.0), (4, 5.0, 4.0)):
        history.note(effort, best_s, bound_s)
    told = history.told(5.0, 4.0)
    # The third is neither better nor higher; the fourth is faster than the plan that the search ends with.
    assert [(one.effort, one.best_s, one.bound_s) for one in told] == [(0, 9.0, 1.0), (1, 7.0, 3.0), (3, 5.0, 4.0)]


def test_the_first_point_is_within_the_end_too() -> None:
    history = History()
    history.note(0, 5.0, np.nextafter(5.0, 6.0))  # a bound by other sums than the plan's
    assert [(one.best_s, one.bound_s) for one in history.told(5.0, 5.0)] == [(5.0, 5.0)]


def test_long_histories_are_thinned_but_keep_both_ends() -> None:
    history = History()
    for effort in range(1000):
        history.note(effort, 2000.0 - effort, 1.0)
    told = history.told(1001.0, 1.0)
    assert len(told) == MOST_POINTS
    assert (told[0].effort, told[-1].effort) == (0, 999)
    steps = [after.effort - before.effort for before, after in pairwise(told)]
    assert max(steps) - min(steps) <= 1


@pytest.mark.parametrize("jobs", [1, 5, 16, 17, 58])
def test_points_of_a_batch_end_with_its_last_job(jobs: int) -> None:
    assert stops(jobs) <= set(range(jobs))
    assert max(stops(jobs)) == jobs - 1
    assert len(stops(jobs)) == min(jobs, 16)


class OneByOne(Workers):
    """Hands out results in another order, and may stop before the last."""

    def __init__(self, backwards: bool, most: int = 1000) -> None:
        super().__init__(cores=1)
        self.backwards, self.most = backwards, most

    def place(self, jobs: Sequence[LayerJob]) -> Iterator[tuple[int, LayerResult]]:
        found = list(super().place(jobs))
        for one in found[::-1] if self.backwards else found:
            self.most -= 1
            if self.most < 0:
                raise TimeIsUpError
            yield one


def searched(workers: Workers) -> Solution:
    """Six traced layers of uneven load on four GPUs."""
    model = building.model(layers=6)
    windows = building.random_windows(np.random.default_rng(3), model, 2)
    made = building.instance(model, building.topology(1, 4), windows=windows)
    return Master(made, building.space(ep=4, pp=1, tp=1), Options(gap=0.0, effort=2.0), workers).run()


def test_the_order_in_which_workers_finish_does_not_show() -> None:
    forwards, backwards = searched(OneByOne(backwards=False)), searched(OneByOne(backwards=True))
    assert forwards.history == backwards.history
    assert len(forwards.history) > 4  # a point for each layer that gets better, not only for the whole
    assert forwards.best is not None
    assert forwards.history[-1].best_s == forwards.best.prediction.step_s
    assert forwards.history[-1].bound_s == forwards.bound_s


def test_what_was_placed_until_the_time_was_up_counts() -> None:
    whole, cut = searched(OneByOne(backwards=False)), searched(OneByOne(backwards=False, most=5))
    assert cut.stopped_by == "time_limit"
    assert whole.best is not None
    assert cut.best is not None
    linear_s = whole.history[0].best_s
    assert whole.best.prediction.step_s < cut.best.prediction.step_s < linear_s
    # Five of six layers: the plan that the whole search had after as many.
    assert cut.best.prediction.step_s in {one.best_s for one in whole.history}
