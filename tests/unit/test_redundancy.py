"""The curve of redundant experts: gains by hand, and where its knee is."""

from __future__ import annotations

import pytest

from planner.capacity.figures import Figures
from planner.capacity.redundancy import Copies, gains, knee
from planner.capacity.sweep import REDUNDANT_EXPERTS, Axis, Point, Sweep


def curve(*steps: tuple[int, float]) -> list[Copies]:
    """Numbers of redundant experts with their step times; each copy costs ten KV tokens."""
    return [Copies(number, step_s, 1 + step_s, 1000 - 10 * number) for number, step_s in steps]


def test_gains_by_hand() -> None:
    found = gains(curve((0, 1.0), (8, 0.6), (16, 0.5), (32, 0.6)))
    assert [gain.step_s for gain in found] == pytest.approx([0, 0.4, 0.5, 0.4])
    assert [gain.step_s_per_expert for gain in found] == pytest.approx([0, 0.4 / 8, 0.1 / 8, -0.1 / 16])
    assert [gain.max_over_mean for gain in found] == pytest.approx([0, 0.4, 0.5, 0.4])
    assert [gain.kv_tokens for gain in found] == [0, 80, 160, 320]


def swept(*points: tuple[int, int, str]) -> Sweep:
    """Asked and planned numbers of redundant experts, with the split."""
    rest = (8, 1.0, 1.0, 100.0, 10.0, 1.0, None, 1.0, 0.5, 100, 8)
    of = tuple(Point((asked,), Figures(split, planned, *rest)) for asked, planned, split in points)
    return Sweep((Axis(REDUNDANT_EXPERTS, tuple(asked for asked, _, _ in points)),), of)


def test_a_curve_is_of_one_split_with_the_copies_asked_for() -> None:
    assert [one.redundant_experts for one in swept((0, 0, "ep=8"), (8, 8, "ep=8")).redundancy] == [0, 8]
    assert swept((0, 0, "ep=8"), (8, 8, "ep=4")).redundancy == ()
    assert swept((0, 0, "ep=1"), (8, 0, "ep=1")).redundancy == ()


def test_gains_of_what_is_unknown() -> None:
    found = gains([Copies(0, 1.0, None, None), Copies(8, 0.9, None, None)])
    assert (found[1].max_over_mean, found[1].kv_tokens) == (None, None)


@pytest.mark.parametrize(
    ("steps", "wanted"),
    [
        (((0, 1.0), (8, 0.5), (16, 0.45), (24, 0.4)), 8),  # 0.83 - 1/3 above the line, then 0.92 - 2/3
        (((0, 1.0), (8, 0.9), (16, 0.5), (24, 0.49)), 16),
        (((0, 1.0), (8, 0.5), (16, 0.6)), 8),  # the best one bounds the line
        (((0, 1.0), (8, 0.9995)), None),  # less than the search tells apart
        (((0, 1.0), (8, 1.2)), None),
        (((4, 1.0),), None),
    ],
)
def test_the_knee(steps: tuple[tuple[int, float], ...], wanted: int | None) -> None:
    assert knee(curve(*steps)) == wanted
