"""What ranks found, put together over windows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch", minversion="2.10")

from planner.measure.gathered import Gathered
from planner.measure.verdict import placement_runs


def test_balance_as_served_is_the_mean_over_windows() -> None:
    """Each rank is the fuller one in one window: all windows together would look even."""
    seats = [SimpleNamespace(ep_rank=rank) for rank in (0, 1, 0, 1)]  # two copies of the grid
    seating: Any = SimpleNamespace(seats=seats, plan=SimpleNamespace(split=SimpleNamespace(ep=2)))
    windows = [[4, 1], [1, 4], [2, 1], [1, 2]]
    runs = [{"served": {"3": [sum(one), 0]}, "served_windows": {"3": one}, "timed": []} for one in windows]
    gathered = Gathered(seating, tuple(runs), (3,))
    assert gathered.served_LSR().tolist() == [[[6, 2], [2, 6]]]
    found: Any = SimpleNamespace(
        gathered={"plan": gathered},
        placements={"plan": SimpleNamespace(slots_per_rank=2, num_ranks=2)},
        layers=(3,),
        job=SimpleNamespace(emulates=True),
    )
    (run,) = placement_runs(found)
    assert run.imbalance == pytest.approx(1.5)
