"""What all ranks found, put together by layer, slot and phase.

Legend: L replayed layers, P slots, G ranks of the run, R EP ranks, V link levels, S windows, W timed windows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.measure.seats import Seating

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Gathered:
    """Results of all ranks of one placement."""

    seating: Seating
    runs: tuple[Mapping[str, Any], ...]
    """By rank."""
    layers: tuple[int, ...]
    """Replayed hidden layers, of all stages."""

    def served_LP(self, slots_per_rank: int) -> Ints:
        """Choices that each slot served; all copies of the grid, and all GPUs that share a rank, together."""
        total = np.zeros((len(self.layers), self.seating.plan.split.ep, slots_per_rank), dtype=np.int64)
        row_of = {layer: row for row, layer in enumerate(self.layers)}
        for seat, run in zip(self.seating.seats, self.runs, strict=True):
            for layer, counts in run["served"].items():
                total[row_of[int(layer)], seat.ep_rank] += counts
        return total.reshape(len(self.layers), -1)

    def served_LSR(self) -> Ints:
        """Choices that each EP rank served in each window; all copies of the grid, and all its GPUs, together."""
        windows = max((len(served_S) for run in self.runs for served_S in run["served_windows"].values()), default=0)
        total = np.zeros((len(self.layers), windows, self.seating.plan.split.ep), dtype=np.int64)
        row_of = {layer: row for row, layer in enumerate(self.layers)}
        for seat, run in zip(self.seating.seats, self.runs, strict=True):
            for layer, served_S in run["served_windows"].items():
                total[row_of[int(layer)], :, seat.ep_rank] += served_S
        return total

    def sent_LGV(self, levels: int) -> Ints:
        """Copies that each rank handed to each level in dispatch."""
        total = np.zeros((len(self.layers), len(self.runs), levels), dtype=np.int64)
        row_of = {layer: row for row, layer in enumerate(self.layers)}
        for rank, run in enumerate(self.runs):
            for layer, counts in run["sent"].items():
                total[row_of[int(layer)], rank] += counts
        return total

    def broken_sends(self) -> list[str]:
        """Stages between which hidden states changed on the way."""
        found = []
        for column in self.seating.rank_KI.T.tolist():
            for before, after in pairwise(column):
                sent = self.runs[before]["sums"]
                middle = self.seating.seats[before].stage > 0
                sent = sent[1::2] if middle else sent  # a stage in the middle receives, then sends
                got = self.runs[after]["sums"]
                last = self.seating.seats[after].stage == self.seating.plan.split.pp - 1
                got = got if last else got[0::2]
                if sent != got:
                    found.append(f"hidden states that rank {before} sent did not arrive whole at rank {after}")
        return found

    def slowest_s(self, phase: str, key: str, timed: int) -> float:
        """A phase of one timed window: the slowest rank of each layer, summed over layers."""
        total = 0.0
        for layer in (*self.layers, -1):
            values = [
                run["timed"][timed]["phases"][phase][str(layer)][key][0]
                for run in self.runs
                if str(layer) in run["timed"][timed]["phases"].get(phase, {})
            ]
            total += max(values, default=0.0)
        return total

    def mean_wait_s(self, phase: str, timed: int) -> float:
        """Mean waiting of the ranks before a phase, summed over layers."""
        per_rank = [
            sum(entry["wait_s"][0] for entry in run["timed"][timed]["phases"].get(phase, {}).values())
            for run in self.runs
        ]
        return float(np.mean(per_rank))

    @property
    def num_timed(self) -> int:
        """W."""
        return len(self.runs[0]["timed"])

    def stage_step_s(self, timed: int, names: Sequence[str]) -> Floats:
        """By stage: the named phases of one timed window, slowest rank of each layer, summed."""
        seats = self.seating.seats
        found = np.zeros(self.seating.plan.split.pp)
        for stage in range(len(found)):
            runs = [run for seat, run in zip(seats, self.runs, strict=True) if seat.stage == stage]
            part = Gathered(self.seating, tuple(runs), self.layers)
            found[stage] = sum(part.slowest_s(name, "busy_s", timed) for name in names)
        return found

    def whole_s(self) -> float | None:
        """A pass back to back: its slowest rank, median of the repeats, mean over timed windows."""
        if not self.num_timed:
            return None
        return float(
            np.mean(
                [
                    np.median(np.max([run["timed"][w]["whole_s"] for run in self.runs], axis=0))
                    for w in range(self.num_timed)
                ]
            )
        )
