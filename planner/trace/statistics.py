"""What routing looks like, and how much of an imbalance is only chance.

Legend: S windows, L layers, E experts, R ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

from planner.trace.windows import Windows

Floats = NDArray[np.float64]
_HOTTEST: Final = 5


def noise_floor(tokens: float, num_experts: int, top_k: int, num_ranks: int) -> float:
    """Max/mean of the ranks' rows when every token chooses uniformly among all experts.

    The rows of a rank with E/R experts are a sum of hypergeometric draws, one per token, nearly
    normal; the largest of R independent normals lies about Phi^-1(0.5264**(1/R)) deviations above the
    mean (Chen and Tyler, 1999, "Accurate approximation to the extreme order statistics"), that of
    ranks whose rows have a fixed sum (R / (R - 1))**0.5 times as far.
    """
    if num_ranks == 1:
        return 1.0
    part = 1.0 / num_ranks
    mean = tokens * top_k * part
    spread = max(num_experts - top_k, 0) / max(num_experts - 1, 1)
    deviation = (mean * spread) ** 0.5  # the variance has a factor 1 - 1/R, the fixed sum takes it back
    return float(1.0 + NormalDist().inv_cdf(0.5264 ** (1.0 / num_ranks)) * deviation / mean)


@dataclass(frozen=True)
class LayerStatistics:
    """Skew of one layer."""

    layer: int
    max_over_mean: float
    """Hottest expert against the mean expert, mean over windows."""
    pooled_max_over_mean: float
    """The same on the sum of all windows: what a balancer that averages sees."""
    gini: float
    """Mean over windows."""
    pooled_gini: float
    hottest: tuple[int, ...]
    """The five experts chosen most, most first."""
    hottest_share: float
    """Part of all choices that goes to the first of them."""
    never_chosen: int
    """Experts that no window chose."""


def layer_statistics(windows: Windows) -> list[LayerStatistics]:
    """Skew of every traced layer."""
    found = []
    for row, layer in enumerate(windows.layer_ids_L.tolist()):
        counts_SE = windows.counts_SLE[:, row].astype(float)
        total_E = counts_SE.sum(axis=0)
        order_E = np.argsort(-total_E, kind="stable")
        found.append(
            LayerStatistics(
                layer=layer,
                max_over_mean=float((counts_SE.max(axis=1) / counts_SE.mean(axis=1)).mean()),
                pooled_max_over_mean=float(total_E.max() / total_E.mean()),
                gini=float(np.mean([gini(counts) for counts in counts_SE])),
                pooled_gini=gini(total_E),
                hottest=tuple(order_E[:_HOTTEST].tolist()),
                hottest_share=float(total_E.max() / total_E.sum()),
                never_chosen=int((total_E == 0).sum()),
            )
        )
    return found


def gini(load_E: Floats) -> float:
    """Gini coefficient of the experts' loads: 0 all equal, near 1 all on one."""
    total = load_E.sum()
    if total == 0:
        return 0.0
    rank_E = 2 * np.arange(1, len(load_E) + 1) - len(load_E) - 1
    return float((rank_E * np.sort(load_E)).sum() / (len(load_E) * total))
