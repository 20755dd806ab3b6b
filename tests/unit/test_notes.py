"""What a plan's notes say about windows of other sizes than a step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from planner.cost.notes import notes
from tests import building


def told(tokens: list[int]) -> str:
    """Notes of a plan for steps of 512 tokens, from windows of so many."""
    of = building.model(experts=4, top_k=2, layers=1)
    windows = building.random_windows(np.random.default_rng(0), of, len(tokens))
    made = building.instance(
        of, building.topology(1, 4), tokens=128, windows=replace(windows, tokens_S=np.array(tokens))
    )
    return "\n".join(notes(made, "gap", 0.0))


def test_windows_of_about_a_step_need_no_note() -> None:
    assert not told([512, 300, 700])


@pytest.mark.parametrize(
    ("tokens", "says"),
    [
        ([2000, 3], "1 of 2 windows: less than half of a step's 512 tokens; they count as much"),
        ([9000, 3], "1 of 2 windows: less than half"),
        ([100, 100], "a window holds 100 tokens, a step 512: steps are better"),
        ([9000, 9000], "a window holds 9,000 tokens, a step 512: single steps vary more"),
        ([10, 1000, 100, 3, 500], "3 of 5 windows: less than half"),
    ],
)
def test_windows_of_other_sizes_are_told(tokens: list[int], says: str) -> None:
    assert says in told(tokens)
