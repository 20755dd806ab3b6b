"""What a search is asked for, what it has found, and which of two plans is better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from planner.cost.step import Prediction
from planner.plan.placement import Placement
from planner.plan.plan import SearchRecord
from planner.solve.candidates import Candidate
from planner.solve.history import Progress
from planner.solve.problem import CLOSED

StoppedBy = Literal["proof", "gap", "effort", "time_limit", "interrupt"]
DEFAULT_EFFORT: Final = 60.0


@dataclass(frozen=True)
class Options:
    """What to minimise, and when to stop."""

    gap: float = 0.01
    effort: float = DEFAULT_EFFORT
    seed: int = 0
    risk: float | None = None
    """Minimise the mean over this part of the windows, the slowest; None: over all."""

    @staticmethod
    def of(search: SearchRecord) -> Options:
        """Those that a plan was made with."""
        return Options(gap=search.gap, seed=search.seed, risk=search.risk)


@dataclass(frozen=True)
class Best:
    """The best plan so far."""

    candidate: Candidate
    cuts: tuple[range, ...]
    placement: Placement
    prediction: Prediction
    objective_s: float
    """What is minimised."""


@dataclass
class Solution:
    """What the search leaves behind."""

    best: Best | None
    candidates: list[Candidate]
    bound_s: float
    stopped_by: StoppedBy
    effort: float
    history: tuple[Progress, ...] = ()
    """Changes of best plan or bound."""


def better(found: Best, best: Best) -> bool:
    """Faster; where time does not tell plans apart, better balanced, less traffic, the simpler split."""
    faster, tie_s = found.objective_s - best.objective_s, CLOSED * best.objective_s
    if abs(faster) > tie_s:
        return faster < 0
    mine, theirs = found.prediction.balancedness or 0.0, best.prediction.balancedness or 0.0
    if abs(mine - theirs) > CLOSED:
        return mine > theirs
    traffic = found.prediction.traffic_s - best.prediction.traffic_s
    if abs(traffic) > tie_s:
        return traffic < 0
    return faster < 0 or (faster == 0 and found.candidate.order < best.candidate.order)
