"""Judging a placement on windows that it was not made from: which windows plan, which judge, and the rivals.

Legend: S windows, R ranks, P slots.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from planner.baselines import placements, weights_of
from planner.cost.step import SplitCost, split_cost
from planner.trace.windows import subset

Ints = NDArray[np.int64]
Layout = Mapping[int, Ints]
"""Slots [P] of traced layers, by row."""

_LAYERS: Final = 12
_TIME_ORDERED_WINDOWS: Final = 16


@dataclass(frozen=True)
class HeldOut:
    """A split on the windows that plan and on those that judge."""

    how: str
    rows: tuple[int, ...]
    """The traced layers that take part."""
    planning: SplitCost
    judging: SplitCost

    def rivals(self) -> dict[str, Layout]:
        """The baselines, made from the windows that plan."""
        instance, windows = self.planning.instance, self.planning.instance.windows
        assert windows is not None
        stage_of = dict.fromkeys(range(instance.model.num_layers), self.planning.stages[0])
        layer_ids = instance.model.moe_layer_ids
        places = {row: layer_ids.index(instance.traced_layer_ids[row]) for row in self.rows}
        return {
            name: {row: placed.expert_LP[place] for row, place in places.items()}
            for name, placed in placements(self.planning, stage_of, weights_of(windows)).items()
        }

    def judge(self, layout: Layout) -> tuple[float, float]:
        """Max/mean and seconds of a layer, mean over the windows that judge and the layers that take part."""
        moe = self.judging.stages[0].moe
        imbalance, seconds = [], []
        for row in self.rows:
            load = self.judging.instance.loads[row]
            rows_SR = moe.rank_rows(load, layout[row])
            imbalance.append(float((rows_SR.max(axis=1) / rows_SR.mean(axis=1)).mean()))
            seconds.append(float(moe.layer(load, layout[row]).total_S.mean()))
        return float(np.mean(imbalance)), float(np.mean(seconds))


def held_out(cost: SplitCost) -> HeldOut | None:
    """The two halves of the windows; None where there are none, or nothing to place."""
    windows, split = cost.instance.windows, cost.split
    if windows is None or windows.num_windows < 2 or split.ep == 1:
        return None
    count = windows.num_windows
    if count >= _TIME_ORDERED_WINDOWS:
        seen, unseen = list(range(count // 2)), list(range(count // 2, count))
        how = f"placed on the first {len(seen)} windows, judged on the last {len(unseen)}"
    else:
        seen, unseen = list(range(0, count, 2)), list(range(1, count, 2))
        how = f"placed on every other window ({len(seen)}), judged on the rest ({len(unseen)})"
    redundant = cost.physical_experts - cost.instance.model.moe.num_experts
    shares = [stage.grid.gpus for stage in cost.stages], [stage.slots_R for stage in cost.stages]
    planning, judging = (
        split_cost(replace(cost.instance, windows=subset(windows, half)), split, redundant, *shares)
        for half in (seen, unseen)
    )
    rows = len(cost.instance.traced_layer_ids)
    step = max(1, rows // _LAYERS)
    return HeldOut(how, tuple(range(step // 2, rows, step))[:_LAYERS], planning, judging)
