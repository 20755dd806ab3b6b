"""How routing depends on what the text is about.

Legend: T tokens, D domains, L layers, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Final

import numpy as np
from numpy.typing import NDArray

from planner.errors import InputError, Place, Problem
from planner.inputs.printable import printable
from planner.trace.aggregate import count_by
from planner.trace.drift import correlation, distance, shares
from planner.trace.trace import Ints, TokenTrace

_LIMIT_DOMAINS: Final = 1024


@dataclass(frozen=True)
class Domains:
    """The domain of each token."""

    names: tuple[str, ...]
    number_T: NDArray[np.int32]
    """Position in `names`."""


@dataclass(frozen=True)
class DomainLoads:
    """How unlike the loads of domains are; means over layers."""

    names: tuple[str, ...]
    tokens: tuple[int, ...]
    max_over_mean: tuple[float, ...]
    """Hottest expert against the mean one, on the tokens of one domain."""
    mean_correlation: float
    """Over all pairs of domains."""
    least_correlation: float
    mean_distance: float
    farthest: tuple[str, str, float]
    """The two domains whose loads differ most, and the part of all choices that would have to move."""


def domains_of(trace: TokenTrace) -> Domains | None:
    """The domains of a trace that has `domain_id`; names come from `domain_names` where it has them.

    Control characters of names become escapes, which is how a user sees them and can write them.

    Raises:
        InputError: the arrays do not fit the tokens, or there are too many domains.
    """
    headers = trace.source.headers
    if "domain_id" not in headers:
        return None
    where = Place(str(trace.path), key="domain_id")
    header = headers["domain_id"]
    if header.shape != (trace.num_tokens,) or header.dtype.kind not in "iu":
        hint = f"expected whole numbers [{trace.num_tokens}]"
        raise InputError(Problem(f"{header.shape} of {header.dtype} found", where, hint))
    ids, number_T = np.unique(trace.source.whole("domain_id").astype(np.int64), return_inverse=True)
    if len(ids) > _LIMIT_DOMAINS:
        raise InputError(Problem(f"{len(ids):,} domains, at most {_LIMIT_DOMAINS:,} are told apart", where))
    texts = trace.source.whole("domain_names").reshape(-1).tolist() if "domain_names" in headers else []
    named = [printable(str(text)) for text in texts]
    names = tuple(named[number] if 0 <= number < len(named) else f"domain {number}" for number in ids.tolist())
    return Domains(names, number_T.astype(np.int32))


def domain_loads(trace: TokenTrace, domains: Domains) -> DomainLoads | None:
    """The loads of the domains compared with each other; None if there is only one."""
    count = len(domains.names)
    if count < 2:
        return None
    counts_DLE = count_by(trace, domains.number_T, count)
    share_DLE = shares(counts_DLE)
    pairs = list(combinations(range(count), 2))
    correlations = [float(correlation(share_DLE[one], share_DLE[other]).mean()) for one, other in pairs]
    distances = [float(distance(share_DLE[one], share_DLE[other]).mean()) for one, other in pairs]
    far = int(np.argmax(distances))
    tokens_D: Ints = np.bincount(domains.number_T, minlength=count)
    return DomainLoads(
        names=domains.names,
        tokens=tuple(tokens_D.tolist()),
        max_over_mean=tuple((share_DLE.max(axis=2) * share_DLE.shape[2]).mean(axis=1).tolist()),
        mean_correlation=float(np.mean(correlations)),
        least_correlation=min(correlations),
        mean_distance=float(np.mean(distances)),
        farthest=(domains.names[pairs[far][0]], domains.names[pairs[far][1]], distances[far]),
    )
