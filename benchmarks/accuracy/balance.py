"""Published figures of balance: what EPLB gains, and how unequal ranks are, from recorded loads of the same model.

DeepSeek-V3's loads in six serving scenarios (`deepseek_v3_sglang_loads_6.npz`) stand for the traffic of the sources,
which is not published. EPLB sees the loads that it is judged on, as the sources say of theirs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.accuracy.published import IN_TURN, NORMAL, Case, Outcome, Published, cost_of, cuts_of
from benchmarks.cases import DEEPSEEK, arrays_of, trace_in, write_windows
from planner import baselines
from planner.cost.step import predict, stage_of_layers
from planner.plan.placement import linear

Arrays = dict[str, NDArray[Any]]
GAIN, IMBALANCE = "sglang-eplb-gain", "trt-eplb-imbalance-r1"
_DECODE: Final = "decode_in2000out100"
ROWS: Final = 1024
"""Mean rows of a rank in one step of `trt-eplb-imbalance-r1`."""
_STEPS: Final = 8


@dataclass(frozen=True)
class Gain:
    """A step with the layout that an engine uses unasked, over one with EPLB's."""

    phase: str
    scenario: str
    case: Case
    unasked_redundant: int
    """Redundant experts without EPLB: as many as the ranks need to hold equally many."""


GAINS: Final = (
    Gain("prefill", "prefill_in4096", Case(GAIN, "4 x hgx-h100", "prefill", 16384, 4096, 32, 32, NORMAL), 0),
    Gain("decode", _DECODE, Case(GAIN, "9 x hgx-h100", "decode", 256, 2000, 72, 32, IN_TURN), 32),
)


def loads_path(data: Path) -> Path:
    """The file of recorded loads."""
    return trace_in(data, DEEPSEEK.trace)


def read_loads(data: Path) -> Arrays:
    """The recorded loads."""
    return arrays_of(loads_path(data))


def gains(published: Published, loads: Arrays) -> Iterator[tuple[Gain, Outcome]]:
    """Of prefill and decode."""
    for one in GAINS:
        measured = published[GAIN]["measured"][f"eplb_gain_{one.phase}"]
        yield one, Outcome(GAIN, measured, predicted_gain(one, loads))


def predicted_gain(one: Gain, loads: Arrays) -> float:
    """Ratio of two steps."""
    window = loads["scenario_names"].tolist().index(one.scenario)
    with TemporaryDirectory() as folder:
        trace = write_windows(loads, [window], Path(folder) / "loads.npz")
        unasked = _step_s(replace(one.case, redundant=one.unasked_redundant), trace, "linear")
        return unasked / _step_s(one.case, trace, "eplb")


def _step_s(case: Case, trace: Path, layout: str) -> float:
    cost = cost_of(case, trace)
    cuts, windows = cuts_of(cost), cost.instance.windows
    assert windows is not None
    found = baselines.placements(cost, stage_of_layers(cost, cuts), baselines.weights_of(windows))
    return predict(cost, cuts, found[layout]).step_s


@dataclass(frozen=True)
class Spread:
    """How unequal the ranks are, in one setting."""

    ranks: int
    slots: int

    @property
    def layout(self) -> str:
        """In words."""
        return f"{self.ranks} ranks, {'contiguous' if self.slots == 256 else f'EPLB, {self.slots} slots'}"


SPREADS: Final = (Spread(32, 256), Spread(32, 288), Spread(36, 288))


def spreads(published: Published, loads: Arrays) -> Iterator[tuple[Spread, str, Outcome]]:
    """(max - mean) / mean of the ranks' rows, and their deviation where the mean is `ROWS`."""
    measured = published[IMBALANCE]["measured"]
    pairs = zip(measured["rank_imbalance"], measured["std_tokens_mean_1024"], strict=True)
    for one, (over, deviation) in zip(SPREADS, pairs, strict=True):
        excess, spread = predicted_spread(one, loads)
        yield one, "imbalance", Outcome(IMBALANCE, over, excess)
        yield one, "deviation", Outcome(IMBALANCE, deviation, spread)


def predicted_spread(one: Spread, loads: Arrays) -> tuple[float, float]:
    """Mean over layers and steps whose choices are drawn from the recorded loads."""
    rng = np.random.default_rng(0)
    counts_LE = loads["counts"][loads["scenario_names"].tolist().index(_DECODE)].astype(float)
    excess, deviation = [], []
    for counts_E in counts_LE:
        experts = len(counts_E)
        if one.slots == experts:
            expert_P = linear(experts, np.full(one.ranks, one.slots // one.ranks))
        else:
            expert_P = baselines.eplb_layer(counts_E, one.slots, 1, 1, one.ranks)
        copies_E = np.bincount(expert_P, minlength=experts)
        rows_NE = rng.multinomial(ROWS * one.ranks, counts_E / counts_E.sum(), size=_STEPS)
        rows_NR = (rows_NE / copies_E)[:, expert_P].reshape(_STEPS, one.ranks, -1).sum(axis=2)
        excess.append(rows_NR.max(axis=1) / rows_NR.mean(axis=1) - 1)
        deviation.append(rows_NR.std(axis=1))
    return float(np.mean(excess)), float(np.mean(deviation))
