"""Synthetic routing from stated figures: skew, domains, drift, co-activation.

After what published traces show: hottest expert 3 to 9 times the mean, loads of domains correlated by 0.35 to 0.75,
slow drift in serving and fast drift in training, partners chosen together several times as often as chance.

Legend: G stretches of time, D domains, Z topics, L layers, E experts, S sequences.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

from planner.errors import UsageError
from planner.trace.synthesis.routing import Routing, bounded

Floats = NDArray[np.float64]
STRETCHES: Final = 16
TOPICS: Final = 8
_STEEPEST: Final = 64.0
_LEAST_TILT: Final = 1e-6


@dataclass(frozen=True)
class Stated:
    """The figures that a synthetic trace shall show."""

    experts: int = 64
    top_k: int = 8
    layers: int = 8
    tokens: int = 65_536
    length: int = 256
    """Tokens of a sequence."""
    skew: float = 4.0
    """Hottest expert over the mean one, in one domain at one time."""
    domains: int = 4
    domain_correlation: float = 0.5
    """Of the logarithms of the loads of two domains."""
    mixed: bool = True
    """Domains take turns; otherwise they come one after the other."""
    drift: float = 1.0
    """Correlation of the logarithms of the load from one sixteenth of the trace to the next; 1: no drift."""
    lift: float = 2.0
    """How much more often partners are chosen together than their popularity alone would give; 1: no partners."""
    persistence: float = 0.5
    seed: int = 0


def routing_of(stated: Stated) -> Routing:
    """The routing model with these figures.

    Raises:
        UsageError: figures that no routing can have.
    """
    _possible(stated)
    rng = np.random.default_rng([stated.seed, 1])
    sequences = -(-stated.tokens // stated.length)
    length_S = np.full(sequences, stated.length, dtype=np.int64)
    length_S[-1] = stated.tokens - stated.length * (sequences - 1)
    turn_S = np.arange(sequences, dtype=np.int64)
    domain_S = turn_S % stated.domains if stated.mixed else turn_S * stated.domains // sequences
    return Routing(
        num_experts=stated.experts,
        top_k=stated.top_k,
        layer_ids_L=np.arange(stated.layers, dtype=np.int64),
        load_GDLE=_loads(stated, rng),
        choices_GDL=np.full((STRETCHES, stated.domains, stated.layers), float(stated.top_k)),
        tilt_ZLE=_tilts(stated, rng),
        topic_GDZ=np.full((STRETCHES, stated.domains, TOPICS), 1 / TOPICS),
        persistence=stated.persistence,
        length_S=length_S,
        domain_S=domain_S,
        stretch_S=turn_S * STRETCHES // sequences,
        domain_names=tuple(f"domain {number}" for number in range(stated.domains)),
    )


def _possible(stated: Stated) -> None:
    if stated.top_k > stated.experts:
        raise UsageError(f"top-{stated.top_k} of {stated.experts} experts", hint="--top-k of at most --experts")
    most = stated.experts / stated.top_k
    if not 1 <= stated.skew <= most:
        hint = (
            f"with top-{stated.top_k} of {stated.experts}: 1 to {most:g}; then every token chooses the hottest expert"
        )
        raise UsageError(f"skew {stated.skew:g} cannot be", hint=hint)
    if stated.lift == 1:
        return
    if stated.experts < 2 * TOPICS or stated.top_k < 2:
        raise UsageError("partners need some experts", hint=f"--lift 1, or {2 * TOPICS} experts and top-2 or more")
    highest = lift_of(1.0, stated.experts, stated.top_k)
    if not 1 <= stated.lift <= highest:
        hint = f"1 to {highest:.2f} with top-{stated.top_k} of {stated.experts}"
        raise UsageError(f"lift {stated.lift:g} cannot be", hint=hint)


def _loads(stated: Stated, rng: np.random.Generator) -> Floats:
    """Loads [G, D, L, E] in which each row has the stated skew.

    Ranks of experts follow a Gaussian process: steps of time correlate by `drift`, domains by
    `domain_correlation`; each row then takes the quantiles of one log-normal law in that order.
    """
    shape = (stated.layers, stated.experts)
    keep, fresh = stated.drift, (1 - stated.drift**2) ** 0.5
    common, own = rng.standard_normal(shape), rng.standard_normal((stated.domains, *shape))
    ladder_E = _ladder(stated)
    loads = np.empty((STRETCHES, stated.domains, *shape))
    for stretch in range(STRETCHES):
        if stretch:
            common = keep * common + fresh * rng.standard_normal(shape)
            own = keep * own + fresh * rng.standard_normal((stated.domains, *shape))
        height_DLE = stated.domain_correlation**0.5 * common + (1 - stated.domain_correlation) ** 0.5 * own
        loads[stretch] = ladder_E[np.argsort(np.argsort(height_DLE, axis=2), axis=2)]
    return loads


def _ladder(stated: Stated) -> Floats:
    """Ascending probabilities [E] with sum K whose largest is `skew` times their mean: a log-normal law."""
    normal = NormalDist()
    height_E = np.array([normal.inv_cdf((rank + 0.5) / stated.experts) for rank in range(stated.experts)])
    wanted = stated.skew * stated.top_k / stated.experts
    low, high = 0.0, _STEEPEST
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _at(middle, height_E, stated.top_k)[-1] < wanted else (low, middle)
    return _at(high, height_E, stated.top_k)


def _at(steepness: float, height_E: Floats, top_k: int) -> Floats:
    return bounded(np.exp(steepness * (height_E - height_E[-1])), top_k)


def _tilts(stated: Stated, rng: np.random.Generator) -> Floats:
    """Topics [Z, L, E]: each expert is at home in one topic of its layer, drawn at random.

    At home the probability is 1 + a (Z - 1) times the load, elsewhere 1 - a times, so that the mean over topics is 1.
    """
    low, high = 0.0, 0.0 if stated.lift == 1 else 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if lift_of(middle, stated.experts, stated.top_k) < stated.lift else (low, middle)
    home = np.tile(np.arange(stated.experts) % TOPICS, (stated.layers, 1))
    home_LE = rng.permuted(home, axis=1)
    at_home = home_LE == np.arange(TOPICS)[:, None, None]
    tilt: Floats = np.where(at_home, 1 + high * (TOPICS - 1), max(1 - high, _LEAST_TILT))
    return tilt


def lift_of(part: float, experts: int, top_k: int) -> float:
    """How much more often than any two experts two of one topic are chosen together, if all are equally popular.

    Two of K different experts meet with probability p q (1 - (1 - p) (1 - q) / sum of p (1 - p)) (Hajek, 1964,
    "Asymptotic theory of rejective sampling with varying probabilities from a finite population"). A single expert
    has no partner to meet: 1.
    """
    if experts == 1:
        return 1.0
    homely = experts / TOPICS
    home = min(1.0, top_k / experts * (1 + part * (TOPICS - 1)))
    away = (top_k - homely * home) / (experts - homely)
    spread = homely * home * (1 - home) + (experts - homely) * away * (1 - away)

    def meet(one: float, other: float) -> float:
        return one * other * (1 - (1 - one) * (1 - other) / spread) if spread > 0 else one * other

    alike = meet(home, home) / TOPICS + meet(away, away) * (1 - 1 / TOPICS)
    unlike = meet(home, away) * 2 / TOPICS + meet(away, away) * (1 - 2 / TOPICS)
    partners = (homely - 1) / (experts - 1)
    return alike / (partners * alike + (1 - partners) * unlike)
