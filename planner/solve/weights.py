"""What one copy of an expert weighs in the search: seconds that it adds to its rank, in every window.

The expert time of a rank is replaced by its tangent at the balanced point, so that each copy has one
weight per window and number of copies, and a rank's load is a sum of weights. With few windows the
smooth objective sees them spread further apart (`Stretch`), and windows in which one routing group is in
demand (`rising_groups`).

Legend: S windows, E experts, R ranks, k copies, D principal directions of the windows' differences,
A routing groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from planner.solve.problem import LayerProblem, mean_tangent

Floats = NDArray[np.float64]

FEW_WINDOWS: Final = 8
"""Fewer are a handful: they show little of what may come."""
_MANY_WINDOWS = 16


@dataclass(frozen=True)
class Stretch:
    """How windows are spread before the smooth objective sees them.

    What a handful of windows did not show lies mostly along the directions in which they differ,
    but not in proportion: the directions that differ least among those few are underrated most.
    So each principal direction of their differences is taken at least `floor` times as wide as
    the widest, and then all `factor` times as wide.
    """

    factor: float = 1.0
    floor: float = 0.0

    @property
    def is_none(self) -> bool:
        """Whether windows stay as they are."""
        return self.factor == 1.0 and self.floor == 0.0

    def matrix(self, window_SE: Floats) -> Floats:
        """Weights [S, S] that make each stretched window from the recorded ones; rows sum to 1."""
        windows = len(window_SE)
        centre = np.eye(windows) - 1 / windows
        centred_SE = np.einsum("st,te->se", centre, window_SE)  # no BLAS: the same on any number of cores
        variance_D, direction_SD = np.linalg.eigh(np.einsum("se,te->st", centred_SE, centred_SE))
        width_D = np.sqrt(np.maximum(variance_D, 0.0))
        is_real_D = width_D > _NO_WIDTH * width_D[-1]
        wanted_D = self.factor * np.maximum(width_D, self.floor * width_D[-1])
        gain_D = np.divide(wanted_D, width_D, out=np.ones(windows), where=is_real_D)
        spread = np.einsum("sd,d,td,tu->su", direction_SD, gain_D, direction_SD, centre)
        return np.asarray(spread + 1 / windows)


_NO_WIDTH = 0.01
"""Directions narrower than this part of the widest are noise, and stay as they are."""


def stretch_of(num_windows: int) -> Stretch:
    """The stretch in use for so many windows.

    Measured on recorded routing, held-out windows; from 16 windows on none helps
    (`python -m benchmarks generalisation`).
    """
    if num_windows == 1 or num_windows >= _MANY_WINDOWS:
        return Stretch()
    return Stretch(1.5, 0.35) if num_windows < FEW_WINDOWS else Stretch(1.5)


def weight_table(problem: LayerProblem, *, traffic: bool = True) -> Floats:
    """Seconds [k, S, E] that one of k + 1 copies adds to its rank, by the balanced tangent.

    Expert time and, with `traffic`, what the rank's rows cost in traffic (receiving, and gathering if etp > 1).
    """
    moe, tangent = problem.moe, mean_tangent(problem)
    per_row_S = tangent.per_row_CS[0]
    if traffic:
        per_row_S = per_row_S + (moe.dispatch_bytes + moe.combine_bytes) * _traffic_s_per_row(problem)
    rows_SE = problem.rows_SE
    table = []
    for copies in range(1, problem.most_copies + 1):
        touched_SE = problem.touched_SE(float(copies))
        table.append(per_row_S[:, None] * rows_SE / copies + tangent.per_touched_CS[0][:, None] * touched_SE)
    return np.stack(table)


def _traffic_s_per_row(problem: LayerProblem) -> float:
    """Seconds per byte that one more row costs the rank that receives it, at its slowest level."""
    moe = problem.moe
    worst = float(moe.exchange.row_s_R.max()) if moe.has_exchange else 0.0
    return worst / moe.etp + moe.gather_s_per_row_byte


def smooth_of(problem: LayerProblem) -> Floats:
    """The smooth objective's table of a layer, as `smooth_table`."""
    return smooth_table(weight_table(problem), problem.num_ranks, problem.num_groups)


def smooth_table(weight_kSE: Floats, ranks: int, groups: int = 1, stretch: Stretch | None = None) -> Floats:
    """The table in units of the mean rank load, with windows stretched and, if there are few, windows added.

    Args:
        weight_kSE: as from `weight_table`.
        ranks: EP ranks.
        groups: routing groups, of consecutive experts.
        stretch: of the windows; default: `stretch_of` their number.
    """
    mean_S = weight_kSE[0].sum(axis=1) / ranks
    relative_kSE = weight_kSE / mean_S[None, :, None]
    windows = relative_kSE.shape[1]
    stretch = stretch or stretch_of(windows)
    seen_kSE = relative_kSE
    if not stretch.is_none:
        seen_kSE = np.maximum(np.einsum("st,kte->kse", stretch.matrix(relative_kSE[0]), relative_kSE), 0.0)
    if groups == 1 or not 1 < windows < FEW_WINDOWS:
        return np.asarray(seen_kSE)
    return np.concatenate([seen_kSE, rising_groups(relative_kSE.mean(axis=1), groups)], axis=1)


_RISE = 0.25
"""By how much the demand for a routing group rises where a window is added for it."""
_RARE = 4**-0.125
"""What the loads of such a window count, so that its part in a sum of 8th powers is a quarter."""


def rising_groups(mean_kE: Floats, groups: int) -> Floats:
    """Windows [k, A, E] in each of which one routing group is in more demand than in the mean window.

    A model that routes to groups first moves the demand for a group's experts together: between recorded
    scenarios of DeepSeek-V3 the variance of the groups' means is 2 to 10 times what independent experts
    would give it. A few windows do not show each group rising.
    """
    is_in_AE = np.arange(mean_kE.shape[1]) // (mean_kE.shape[1] // groups) == np.arange(groups)[:, None]
    factor_AE = 1.0 + _RISE * is_in_AE
    mean_A = (mean_kE[0] * factor_AE).sum(axis=1) / mean_kE[0].sum()
    return np.asarray(_RARE * mean_kE[:, None, :] * (factor_AE / mean_A[:, None]))
