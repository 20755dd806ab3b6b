"""Is balancing experts worth it, and will a static placement hold? Judged on windows that planning has not seen.

The criteria follow the proposal to screen a workload before a balancer is switched on
(vllm-ascend issue 16795 and pull request 16800): hot experts are not yet imbalanced ranks, a hot expert may be
gone before a new placement is used, and one window proves nothing. So a placement is made from some windows and
tried on later ones. Less peak work is no promise of a faster step: the net benefit stays unknown without timing.

Two trials: *static* places on the first half and is tried on the last half; *fresh* places on each eighth and is
tried on the next, as a balancer that runs again and again would. Schedules that place less often, from the eighth
just passed, tell how often is enough.

Legend: S windows, L layers, E experts, P slots, R ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from planner.capacity.placing import Place, Ranks, linear_place
from planner.inputs.units import format_number_of
from planner.trace.statistics import noise_floor
from planner.trace.windows import Windows, subset

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Answer = Literal["recommended", "not_worth_it", "insufficient_evidence"]
Holds = Literal["yes", "partly", "no", "unknown"]
How = Literal["static", "periodic", "none"]
_STRETCHES: Final = 8


@dataclass(frozen=True)
class Criteria:
    """When balancing counts as worth it."""

    judged_windows: int = 2
    """At least so many unseen windows, or nothing is said."""
    better_part: float = 0.8
    """In this part of them the placement must have less peak work."""
    less_peak: float = 0.05
    """So much less peak work, mean over them."""
    kept: float = 0.8
    """A static placement holds if it saves this part of what a fresh one saves, in all and in each eighth."""
    errors: float = 2.0
    """What an eighth lacks counts beyond so many standard errors."""


@dataclass(frozen=True)
class Trial:
    """A placement made from some windows and tried on others."""

    seen: tuple[int, ...]
    judged: tuple[int, ...]
    saved: tuple[float, ...]
    """Part of the peak work saved in each judged window; negative: more work."""

    @property
    def mean_saved(self) -> float:
        """Mean over the judged windows."""
        return float(np.mean(self.saved)) if self.saved else 0.0

    @property
    def better_part(self) -> float:
        """Part of the judged windows with less peak work."""
        return float(np.mean([saved > 0 for saved in self.saved])) if self.saved else 0.0

    def passes(self, criteria: Criteria) -> bool:
        """Whether enough is saved, often enough."""
        return self.better_part >= criteria.better_part and self.mean_saved >= criteria.less_peak


@dataclass(frozen=True)
class Schedule:
    """Placing anew every so many eighths of the windows, from the eighth just passed."""

    eighths: int
    windows: float
    """So many windows lie between two placements, on average."""
    trial: Trial


@dataclass(frozen=True)
class Verdict:
    """The answer, its reasons in words, and the trials behind it."""

    answer: Answer
    reasons: tuple[str, ...]
    static_holds: Holds
    static_reason: str
    static: Trial | None
    fresh: Trial | None
    net_benefit: Literal["unknown"] = "unknown"
    """Less peak work was counted; whether a step gets faster was not measured."""
    schedules: tuple[Schedule, ...] = ()
    how: How = "none"
    """static: one placement will do; periodic: it must be renewed; none: not recommended."""
    every: Schedule | None = None
    """If periodic: the one that places least often of those that keep what the best of them saves."""


def rank_loads(counts_SLE: Ints, expert_LP: Ints, ranks: int) -> Floats:
    """Choices that each rank serves, copies of an expert sharing evenly: [S, L, R]."""
    layers, slots = expert_LP.shape
    experts = counts_SLE.shape[2]
    share_LER = np.zeros((layers, experts, ranks))
    layer_LP = np.broadcast_to(np.arange(layers)[:, None], expert_LP.shape)
    rank_LP = np.broadcast_to(np.arange(slots) * ranks // slots, expert_LP.shape)
    filled = expert_LP >= 0
    np.add.at(share_LER, (layer_LP[filled], expert_LP[filled], rank_LP[filled]), 1.0)
    share_LER /= share_LER.sum(axis=2, keepdims=True)
    loads: Floats = np.einsum("sle,ler->slr", counts_SLE.astype(float), share_LER)
    return loads


def imbalance(loads_SLR: Floats) -> Floats:
    """Max/mean of the ranks [S, L]."""
    found: Floats = loads_SLR.max(axis=2) / loads_SLR.mean(axis=2)
    return found


def peak_S(windows: Windows, expert_LP: Ints, ranks: int) -> Floats:
    """Peak work of each window: the rows of the fullest rank, summed over layers."""
    found: Floats = rank_loads(windows.counts_SLE, expert_LP, ranks).max(axis=2).sum(axis=1)
    return found


def trial(windows: Windows, seen: Sequence[int], judged: Sequence[int], group: Ranks, place: Place) -> Trial:
    """Place on some windows and hold it against the linear layout on others."""
    return Trial(tuple(seen), tuple(judged), saved_S(windows, judged, group, place(subset(windows, seen))))


def saved_S(windows: Windows, judged: Sequence[int], group: Ranks, expert_LP: Ints) -> tuple[float, ...]:
    """Part of the linear layout's peak work that a placement saves in each of some windows."""
    layers, experts = windows.counts_SLE.shape[1:]
    later = subset(windows, judged)
    before_S = peak_S(later, linear_place(experts, layers, group.ranks), group.ranks)
    after_S = peak_S(later, expert_LP, group.ranks)
    return tuple((1 - after_S / before_S).tolist())


def verdict(windows: Windows, top_k: int, group: Ranks, place: Place, criteria: Criteria | None = None) -> Verdict:
    """Judge whether balancing is worth it, on windows in the order of time.

    Args:
        windows: recorded routing.
        top_k: experts per token.
        group: ranks and slots to judge for.
        place: makes a placement from windows (`placing.py`).
        criteria: thresholds; default those of the proposal.
    """
    criteria = criteria or Criteria()
    count = windows.num_windows
    first, last = range(count // 2), range(count // 2, count)
    if not first or len(last) < criteria.judged_windows:
        reason = (
            f"{format_number_of(count, 'window')}: a placement must be tried on at least "
            f"{criteria.judged_windows} windows that it was not made from"
        )
        return Verdict("insufficient_evidence", (reason,), "unknown", "not tried", None, None)
    static = trial(windows, first, last, group, place)
    schedules = _schedules(windows, group, place) if count >= 4 else ()
    fresh = schedules[0].trial if schedules else static
    holds, why = _holds(static, fresh, criteria)
    if not (static.passes(criteria) or fresh.passes(criteria)):
        best = max(static, fresh, key=lambda one: one.mean_saved)
        answer, reasons = _no(windows, list(first), top_k, group, best, criteria)
        return Verdict(answer, reasons, holds, why, static, fresh, schedules=schedules)
    told = (_told(static if static.passes(criteria) else fresh, "less"),)
    every = _every(schedules, criteria)
    if holds == "yes" or every is None:
        return Verdict("recommended", told, holds, why, static, fresh, schedules=schedules, how="static")
    return Verdict("recommended", told, holds, why, static, fresh, schedules=schedules, how="periodic", every=every)


def _no(
    windows: Windows, first: list[int], top_k: int, group: Ranks, best: Trial, criteria: Criteria
) -> tuple[Answer, tuple[str, ...]]:
    """That it is not worth it, or that there are too few tokens to say so."""
    told = _told(best, "short", criteria)
    sample = float(windows.tokens_S[first].sum())
    floor = noise_floor(sample, windows.counts_SLE.shape[2], top_k, group.ranks)
    if floor - 1 <= criteria.less_peak:
        return "not_worth_it", (told,)
    few = f"{sample:,.0f} tokens to place from are too few: chance alone makes a max/mean of {floor:.3f}"
    return "insufficient_evidence", (told, few)


def _schedules(windows: Windows, group: Ranks, place: Place) -> tuple[Schedule, ...]:
    """From placing after every eighth to placing once; all judge all windows but the first eighth."""
    eighths = np.array_split(np.arange(windows.num_windows), min(_STRETCHES, windows.num_windows))
    stretches = [part.tolist() for part in eighths]
    placed = [place(subset(windows, seen)) for seen in stretches[:-1]]
    found = []
    period = 1
    while period < len(stretches):
        saved: list[float] = []
        for number, judged in enumerate(stretches[1:]):
            saved += saved_S(windows, judged, group, placed[number // period * period])
        later = tuple(window for judged in stretches[1:] for window in judged)
        trial_ = Trial(tuple(stretches[0]), later, tuple(saved))
        found.append(Schedule(period, period * windows.num_windows / len(stretches), trial_))
        period *= 2
    return tuple(found)


def _every(schedules: Sequence[Schedule], criteria: Criteria) -> Schedule | None:
    """The schedule that places least often of those that keep enough of what the best of them saves."""
    best = max((one.trial.mean_saved for one in schedules), default=0.0)
    enough = [one for one in schedules if one.trial.passes(criteria) and one.trial.mean_saved >= criteria.kept * best]
    return max(enough, key=lambda one: one.eighths, default=None)


def saved_text(one: Trial) -> str:
    """What a trial saved, or cost."""
    return f"{abs(one.mean_saved):.1%} {'more' if one.mean_saved < 0 else 'less'} peak work"


def _told(one: Trial, how: Literal["less", "short"], criteria: Criteria | None = None) -> str:
    better = round(one.better_part * len(one.judged))
    figures = f"{saved_text(one)} than the linear layout on {format_number_of(len(one.judged), 'unseen window')}"
    often = f"less in {better} of them"
    if how == "less" or criteria is None:
        return f"{figures}, {often}"
    return (
        f"{figures}, {often}; {criteria.less_peak:.0%} less, in {criteria.better_part:.0%} of them, would be worth it"
    )


def _saves(part: float) -> str:
    return f"saves {part:.1%}" if part >= 0 else f"costs {-part:.1%} more"


def _holds(static: Trial, fresh: Trial, criteria: Criteria) -> tuple[Holds, str]:
    """Compare both trials on the windows that both judge."""
    if not (static.passes(criteria) or fresh.passes(criteria)):
        return "unknown", "there is no gain that could be kept"
    of_fresh = dict(zip(fresh.judged, fresh.saved, strict=True))
    both = [(w, saved, of_fresh[w]) for w, saved in zip(static.judged, static.saved, strict=True) if w in of_fresh]
    own, best = (float(np.mean(values)) for values in list(zip(*both, strict=True))[1:])
    figures = f"made from the first half it {_saves(own)} on the last; one made just before {_saves(best)}"
    if not static.passes(criteria):
        return "no", figures
    if own < criteria.kept * best:
        return "partly", figures
    stale = _stale_eighth(both, criteria)
    return ("yes", figures) if stale is None else ("partly", f"{figures}; {stale}")


def _stale_eighth(both: Sequence[tuple[int, float, float]], criteria: Criteria) -> str | None:
    """An eighth in which a static placement keeps too little, beyond chance, in words: the mean would hide it.

    Chance is judged by how far windows of one eighth differ among themselves, over all eighths together.

    Args:
        both: window, and what the static and the fresh placement save in it.
        criteria: when a placement holds.
    """
    count = max(window for window, _, _ in both) + 1
    eighths = np.array_split(np.arange(count), min(_STRETCHES, count))
    parts = [np.array([one for one in both if one[0] in eighth]) for eighth in eighths]
    parts = [part for part in parts if len(part)]
    gaps = [part[:, 2] - part[:, 1] for part in parts]
    freedom = len(both) - len(parts)
    if not freedom:
        return None
    spread = np.sqrt(sum(float(((gap - gap.mean()) ** 2).sum()) for gap in gaps) / freedom)
    for part, gap in reversed(list(zip(parts, gaps, strict=True))):
        own, best = float(part[:, 1].mean()), float(part[:, 2].mean())
        if own < criteria.kept * best and gap.mean() > criteria.errors * spread / np.sqrt(len(gap)):
            first, last = int(part[0, 0]), int(part[-1, 0])
            return f"in windows {first} to {last} it {_saves(own)}, one made just before {_saves(best)}"
    return None
