"""Windows stretched before the smooth objective sees them, against a singular value decomposition."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from planner.solve.weights import Stretch, smooth_table, stretch_of

Floats = NDArray[np.float64]


def _widths(window_SE: Floats) -> Floats:
    """Singular values of the differences from the mean, widest first, without the last: it is 0 by construction."""
    widths_D: Floats = np.asarray(np.linalg.svd(window_SE - window_SE.mean(axis=0), compute_uv=False))
    kept_D: Floats = widths_D[:-1]
    return kept_D


@pytest.fixture
def window_SE() -> Floats:
    rng = np.random.default_rng(5)
    scale_S = np.array([1.0, 0.5, 0.2, 0.05, 0.02])
    return np.asarray(10.0 + rng.standard_normal((5, 40)) * scale_S[:, None])


def test_a_factor_alone_pushes_every_window_from_the_mean(window_SE: Floats) -> None:
    mean_E = window_SE.mean(axis=0)
    stretched = Stretch(2.0).matrix(window_SE) @ window_SE
    np.testing.assert_allclose(stretched, mean_E + 2.0 * (window_SE - mean_E), atol=1e-9)


def test_the_floor_widens_the_narrow_directions_only(window_SE: Floats) -> None:
    before = _widths(window_SE)
    assert before[-1] < 0.35 * before[0] < before[1], "the case has directions on both sides of the floor"
    after = _widths(Stretch(1.5, 0.35).matrix(window_SE) @ window_SE)
    np.testing.assert_allclose(after, 1.5 * np.maximum(before, 0.35 * before[0]), rtol=1e-9)


def test_the_mean_stays_and_weights_sum_to_one(window_SE: Floats) -> None:
    matrix = Stretch(1.5, 0.35).matrix(window_SE)
    np.testing.assert_allclose(matrix.sum(axis=1), 1.0, atol=1e-12)
    np.testing.assert_allclose((matrix @ window_SE).mean(axis=0), window_SE.mean(axis=0), atol=1e-9)


def test_a_difference_too_small_to_tell_from_noise_is_not_blown_up(window_SE: Floats) -> None:
    twice = np.vstack([window_SE[:3], window_SE[2] + 1e-9 * np.arange(40)])
    stretched = Stretch(1.5, 0.35).matrix(twice) @ twice
    np.testing.assert_allclose(stretched[2], stretched[3], atol=1e-6)


def test_equal_windows_stay_equal() -> None:
    same = np.tile(np.arange(1.0, 9.0), (3, 1))
    np.testing.assert_allclose(Stretch(1.5, 0.35).matrix(same) @ same, same, atol=1e-12)


@pytest.mark.parametrize("windows", [1, 16, 64])
def test_one_window_or_many_are_taken_as_recorded(windows: int) -> None:
    table = np.random.default_rng(1).uniform(1, 2, (2, windows, 12))
    mean_S = table[0].sum(axis=1) / 4
    np.testing.assert_array_equal(smooth_table(table, 4), table / mean_S[None, :, None])
    assert stretch_of(windows).is_none


def test_no_stretched_load_is_negative() -> None:
    table = np.random.default_rng(2).exponential(1.0, (3, 4, 30)) ** 3
    assert smooth_table(table, 4, stretch=Stretch(4.0, 0.9)).min() == 0.0


def test_a_window_is_added_for_each_group_that_may_rise() -> None:
    table_kSE = np.random.default_rng(3).uniform(1, 2, (2, 5, 12))
    alone, joined = smooth_table(table_kSE, 4), smooth_table(table_kSE, 4, groups=3)
    np.testing.assert_array_equal(joined[:, :5], alone)
    mean_kE = (table_kSE / (table_kSE[0].sum(axis=1) / 4)[:, None]).mean(axis=1)
    for group, window_kE in enumerate(joined[:, 5:].swapaxes(0, 1)):
        factor_kE = window_kE / mean_kE
        risen_E = np.arange(12) // 4 == group
        np.testing.assert_allclose(factor_kE[:, risen_E], 1.25 * factor_kE[0, (4 * group + 4) % 12])
        np.testing.assert_allclose(factor_kE[:, ~risen_E], factor_kE[0, (4 * group + 4) % 12])
        assert (window_kE[0].sum() / 4) ** 8 == pytest.approx(1 / 4), "a quarter of what a window counts"
    assert joined.shape == (2, 8, 12)


@pytest.mark.parametrize(("windows", "groups"), [(1, 4), (5, 1), (8, 4), (20, 4)])
def test_no_group_rises_where_nothing_calls_for_it(windows: int, groups: int) -> None:
    table_kSE = np.random.default_rng(4).uniform(1, 2, (1, windows, 12))
    np.testing.assert_array_equal(smooth_table(table_kSE, 4, groups), smooth_table(table_kSE, 4))
