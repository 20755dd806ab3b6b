"""Plots for the terminal."""

from __future__ import annotations

import pytest

from planner.report.plots import Axes, Series, num_places, terminal_plot


@pytest.mark.parametrize("room", [32, 45, 60, 76, 200])
def test_a_plot_is_no_wider_than_the_terminal(room: int) -> None:
    drawn = terminal_plot([Series("a", [0.0, 1.0, 2.0], [3.0, 2.0, 1.5])], Axes("n", "t"), room)
    assert max(map(len, drawn.splitlines())) <= room


def test_points_at_one_place_count_once() -> None:
    """Machines of any size can have the same rate per GPU in the same time."""
    once = Series("a", [0.5, 0.5, 0.5], [3.0, 3.0, 3.0], joined=False)
    assert num_places([once, once]) == 1
    assert num_places([once, Series("b", [0.5], [2.0])]) == 2
