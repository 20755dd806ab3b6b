"""What `ep-plan trace info` tells: everything that can be said about traces without a model or a machine.

Legend: S windows, L layers, E experts, R ranks.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from planner.capacity.advise import Work, advice_on, judged_windows, without_effect
from planner.capacity.placing import Ranks, linear_place
from planner.capacity.verdict import Verdict, imbalance, rank_loads
from planner.errors import Place, UsageError
from planner.inputs.named_files import named_twice
from planner.inputs.workload import Phase
from planner.plan.placement import slots_of_ranks
from planner.trace import affinity
from planner.trace.affinity import CoActivation, NextLayer
from planner.trace.aggregate import co_activation_counts
from planner.trace.consistency import describe_suspicions
from planner.trace.domains import DomainLoads, domain_loads, domains_of
from planner.trace.drift import Drift, drift_of, shares
from planner.trace.native import read_trace
from planner.trace.statistics import LayerStatistics, layer_statistics, noise_floor
from planner.trace.trace import TokenTrace, Trace
from planner.trace.windows import Windows, cut

Floats = NDArray[np.float64]
_NODES: Final = (2, 4)


@dataclass(frozen=True)
class Nodes:
    """Distinct nodes that a token's experts lie on when they are laid out linearly over so many nodes."""

    nodes: int
    seen: float
    by_chance: float
    """If every set of experts were equally likely."""


@dataclass(frozen=True)
class Description:
    """A trace described. Means over layers unless an entry stands for each layer."""

    paths: tuple[Path, ...]
    num_experts: int
    top_k: int
    tokens: int
    sequences: int | None
    windows: Windows
    group: Ranks
    layers: tuple[LayerStatistics, ...]
    layer_imbalance: tuple[float, ...]
    """Max/mean of the ranks in the linear layout, mean over windows, for each layer."""
    rank_floor: float
    """The same if every set of experts were equally likely: chance of windows of this size."""
    expert_floor: float
    """Max/mean of the experts by chance alone."""
    least_without_copies: float
    """No placement without copies has a lower max/mean: the hottest expert alone fills its rank so far."""
    share_LE: Floats
    """Part of the choices of each layer that goes to each expert."""
    drift: Drift | None
    domains: DomainLoads | None
    pairs: tuple[CoActivation, ...]
    successors: tuple[NextLayer, ...]
    nodes: tuple[Nodes, ...]
    judged_layers: tuple[int, ...]
    """On which the verdicts rest: all, or an even sample of many."""
    judged_tokens: tuple[int, ...]
    """Of each window on which they rest: about a step's, but where steps or counts are recorded as such."""
    verdict: Verdict
    """With the placement that `ep-plan solve` would make."""
    engine_verdict: Verdict
    """With EPLB's, which is what engines make by themselves."""
    warnings: tuple[str, ...]


def describe(
    paths: Sequence[Path],
    *,
    phase: Phase,
    step_tokens: int,
    ranks: int | None = None,
    redundant: int | None = None,
    node_counts: Sequence[int] = (),
    asked: Collection[str] = (),
) -> Description:
    """Describe one or more traces of the same model.

    Args:
        paths: trace files.
        phase: how the engine's batch is imitated where a trace does not say.
        step_tokens: tokens that one step routes.
        ranks: expert-parallel ranks for imbalance and verdict; default 8.
        redundant: redundant experts for the verdict; default one on each rank.
        node_counts: for each, the distinct nodes per token are counted; default 2 and 4.
        asked: options that the user gave; of those without effect a warning tells.

    Raises:
        InputError: a file is no good trace, or traces disagree.
        UsageError: ranks, copies or nodes do not fit the experts.
    """
    twice = named_twice(paths, Place("TRACE"))
    if twice:
        raise UsageError.of(twice)
    read = [read_trace(path) for path in paths]
    traces = [one.trace for one in read]
    windows, first = cut(traces, phase, step_tokens), traces[0]
    experts, top_k = first.num_experts, first.top_k
    judged = judged_windows(windows, traces, step_tokens)
    advice = advice_on(paths, first, windows, judged, Work(phase, step_tokens, ranks, redundant))
    group = advice.group
    linear_LP = linear_place(experts, len(first.layer_ids_L), group.ranks)
    share_LE = shares(windows.counts_SLE.sum(axis=0))
    per_window = float(windows.tokens_S.mean())
    sets = windows.sets
    nodes = node_counts or [count for count in _NODES if count <= experts]
    return Description(
        paths=tuple(paths),
        num_experts=experts,
        top_k=top_k,
        tokens=int(windows.tokens_S.sum()),
        sequences=_sequences(traces),
        windows=windows,
        group=group,
        layers=tuple(layer_statistics(windows)),
        layer_imbalance=tuple(imbalance(rank_loads(windows.counts_SLE, linear_LP, group.ranks)).mean(axis=0).tolist()),
        rank_floor=noise_floor(per_window, experts, top_k, group.ranks),
        expert_floor=noise_floor(per_window, experts, top_k, experts),
        least_without_copies=float(np.maximum(1.0, group.ranks * share_LE.max(axis=1)).mean()),
        share_LE=share_LE,
        drift=drift_of(windows),
        domains=_domains(traces),
        pairs=tuple(_pairs(traces, windows.counts_SLE.sum(axis=0))),
        successors=tuple(affinity.next_layer(sets, experts)) if sets else (),
        nodes=tuple(_nodes(windows, experts, top_k, count) for count in nodes) if sets else (),
        judged_layers=tuple(judged.layer_ids_L.tolist()),
        judged_tokens=tuple(judged.tokens_S.tolist()),
        verdict=advice.verdict,
        engine_verdict=advice.engine,
        warnings=(
            *(warning for one in read for warning in one.warnings),
            *describe_suspicions(windows, traces),
            *without_effect(traces, asked),
        ),
    )


def _sequences(traces: Sequence[Trace]) -> int | None:
    """Over all traces; None if one of them does not know its sequences."""
    total = 0
    for trace in traces:
        seq_id_T = trace.seq_id_T if isinstance(trace, TokenTrace) else None
        if seq_id_T is None:
            return None
        total += len(np.unique(seq_id_T))
    return total


def _domains(traces: Sequence[Trace]) -> DomainLoads | None:
    """Of a single trace; several traces number their domains each for itself."""
    trace = traces[0]
    if len(traces) > 1 or not isinstance(trace, TokenTrace):
        return None
    domains = domains_of(trace)
    return domain_loads(trace, domains) if domains else None


def _pairs(traces: Sequence[Trace], popularity_LE: NDArray[np.int64]) -> list[CoActivation]:
    """Over all tokens of all traces; nothing if one of them has counts only."""
    counted = [co_activation_counts(trace) for trace in traces if isinstance(trace, TokenTrace)]
    return affinity.co_activation(np.sum(counted, axis=0), popularity_LE) if len(counted) == len(traces) else []


def _nodes(windows: Windows, num_experts: int, top_k: int, count: int) -> Nodes:
    if count > num_experts:
        raise UsageError(f"{count} nodes for {num_experts} experts")
    assert windows.sets is not None
    unit_E = np.repeat(np.arange(count), slots_of_ranks(num_experts, count))
    seen = float(affinity.distinct_units(windows.sets, unit_E).mean())
    return Nodes(count, seen, affinity.distinct_units_by_chance(unit_E, top_k))
