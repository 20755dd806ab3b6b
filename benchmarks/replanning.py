"""Never, always or sometimes: total time of three ways to treat drift, migration included.

A load drifts from interval to interval. At the end of each the placement for the next one is made from what was
recorded, and serves the next one's own windows:

- never: the placement made from the first interval stays;
- always: every interval places anew from the interval that ends, as engines do, whatever moves (ranks are still named
  so that most stays);
- always, two: the same from the last two intervals;
- replan: `ep-plan replan` decides, from the last two intervals.

Loads: two synthetic drifts with published correlations of the experts' loads (a training run of 32 experts, 0.998 /
0.990 / 0.977 / 0.970 / 0.960 at lags of 10 / 100 / 500 / 1,000 / 2,000 iterations, 250 of which are taken for an
interval; and one from a fresh checkpoint, 0.8 from one interval to the next and 0.57 at ten), and the drifting
recording `tiny_moe_64e_drift` in order of time. One draw says little, as the hottest expert's next home is chance: each
synthetic drift is drawn several times, and the means stand with the standard error of replan's lead over the better of
never and always.

Legend: S windows, L layers, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.cases import trace_in
from planner.capacity.migration import migration
from planner.capacity.replan import Asked, Deck, replanned_from
from planner.cost.instance import Instance
from planner.cost.prepare import Prepared, constants_of, load
from planner.inputs.deployment import Deployment
from planner.inputs.edits import edited, parse_setting
from planner.inputs.model import Attention, GroupedAttention, LayerRun, Model, MoeFfn
from planner.inputs.units import format_seconds
from planner.plan.decision import placement_of
from planner.plan.placement import Placement
from planner.plan.plan import Plan
from planner.processes import available_cores, in_order
from planner.solve.moves import MoveJob
from planner.solve.place import linear_start, searched
from planner.solve.relabel import relabelled
from planner.solve.request import plan_inputs, search_space
from planner.solve.solution import Options
from planner.solve.solver import solve
from planner.solve.watch import NoWatch
from planner.solve.workers import Workers
from planner.trace.drift import correlation, shares
from planner.trace.native import read_trace
from planner.trace.windows import TokenSets, Windows, cut, of_layers, subset

_EXAMPLE: Final = Path(__file__).resolve().parent.parent / "examples" / "tiny-moe" / "deployment.yaml"
_RECORDING: Final = "tiny_moe_64e_drift.npz"
_PLAN: Final = Path("plan.json")
"""Where a plan would lie: none is written."""
_INTERVALS, _WINDOWS, _TOKENS, _TOP_K, _LAYERS, _EXPERTS = 8, 6, 8192, 4, 2, 32
_RECORDED_LAYERS: Final = (2, 5)
_SKEW: Final = 0.6
_ITERATIONS: Final = 250
_DRIFTS: Final = {
    # Parts of the variance of the logarithm of popularity, and the intervals in which each falls to 1/e.
    "slow": ((0.955, np.inf), (0.015, 150 / _ITERATIONS), (0.03, 1500 / _ITERATIONS)),
    "fast": ((0.57, np.inf), (0.43, 1.6)),
}
_LENGTHS_S: Final = (0.1, 60.0)


_DRAWS: Final = 3
_KNOWN: Final = 2
"""Intervals that a placement is made from."""


@dataclass(frozen=True)
class Total:
    """What a policy took over all intervals but the first."""

    part: float
    """Time, migration included, over that of `never`."""
    moves: int


def run(data: Path | None, console: Console) -> None:
    """Print total times over that of never moving."""
    policies = ("never", "always", "always, two", "replan")
    table = Table("load", "interval", *policies, "replan leads by", "moves: always, replan")
    for name in _DRIFTS:
        _rows(f"{name} drift", [_synthetic(name, draw) for draw in range(_DRAWS)], table)
    if data is not None and trace_in(data, _RECORDING).is_file():
        _rows("tiny_moe_64e_drift", [_recorded(trace_in(data, _RECORDING))], table)
    console.print(table)


def _rows(name: str, draws: Sequence[tuple[Deployment, Sequence[Instance]]], table: Table) -> None:
    near, far = np.mean([_correlations(intervals) for _, intervals in draws], axis=0)
    planned = [(_planned(deployment, intervals[0]), intervals) for deployment, intervals in draws]
    for length_s in _LENGTHS_S:
        ways: dict[str, tuple[Callable[[Deck], Placement], int]] = {
            "never": (_never, 1),
            "always": (_always, 1),
            "always, two": (_always, _KNOWN),
            "replan": (_replan(length_s), _KNOWN),
        }
        totals = {
            policy: [_total(first, intervals, decide, known, length_s) for first, intervals in planned]
            for policy, (decide, known) in ways.items()
        }
        parts = {policy: np.array([total.part for total in of_draws]) for policy, of_draws in totals.items()}
        lead = np.minimum(parts["never"].mean(), parts["always"].mean()) - parts["replan"].mean()
        rival = "never" if parts["never"].mean() < parts["always"].mean() else "always"
        error = (parts[rival] - parts["replan"]).std(ddof=1) / np.sqrt(len(draws)) if len(draws) > 1 else np.nan
        cells = [f"{100 * part.mean():.2f} %" for part in parts.values()]
        moves = ", ".join(f"{np.mean([t.moves for t in totals[policy]]):,.0f}" for policy in ("always", "replan"))
        told = f"{100 * lead:+.2f} %" + (f" +- {100 * error:.2f}" if len(draws) > 1 else "")
        table.add_row(f"{name} (correlation {near:.2f}, {far:.2f})", format_seconds(length_s), *cells, told, moves)


def _correlations(intervals: Sequence[Instance]) -> tuple[float, float]:
    """Of the loads of neighbouring intervals, and of the first and the last."""
    share = [shares(one.windows.counts_SLE.sum(axis=0)) for one in intervals if one.windows is not None]
    near = np.mean([correlation(a, b).mean() for a, b in pairwise(share)])
    return float(near), float(correlation(share[0], share[-1]).mean())


# --- policies ---------------------------------------------------------------------------------------


def _total(
    first: Plan, intervals: Sequence[Instance], decide: Callable[[Deck], Placement], known: int, length_s: float
) -> Total:
    """What a policy takes: after each interval it may move, and serves the next one."""
    placement, parts, moves = placement_of(first), [], 0
    for number, coming in enumerate(intervals[1:], start=1):
        deck = replace(Deck.of(first, _joined(intervals[max(0, number - known) : number]), _PLAN), before=placement)
        after = decide(deck)
        moved = migration(deck.cost, deck.cuts, placement, after)
        moves, placement = moves + moved.moves, after
        serving = Deck.of(first, coming, _PLAN)
        parts.append(serving.step_s(placement) / serving.step_s(serving.before) + moved.seconds / length_s)
    return Total(float(np.mean(parts)), moves)


def _joined(intervals: Sequence[Instance]) -> Instance:
    """One instance with the windows of several; without homes: they are judged, never replayed."""
    windows = [one.windows for one in intervals if one.windows is not None]
    starts = np.cumsum([0, *(one.num_windows for one in windows)])
    sets = [
        TokenSets((one.sets.window_N + start).astype(np.int32), one.sets.experts_NLK)
        for one, start in zip(windows, starts, strict=False)
        if one.sets is not None
    ]
    joined = replace(
        windows[-1],
        counts_SLE=np.concatenate([one.counts_SLE for one in windows]),
        tokens_S=np.concatenate([one.tokens_S for one in windows]),
        choices_SL=np.concatenate([one.choices_SL for one in windows]),
        names_S=tuple(name for one in windows for name in one.names_S),
        sets=None,
        homes=None,
    )
    if len(sets) == len(windows):
        every = (np.concatenate([getattr(one, name) for one in sets]) for name in ("window_N", "experts_NLK"))
        joined = replace(joined, sets=TokenSets(*every))
    return replace(intervals[-1], windows=joined)


def _never(deck: Deck) -> Placement:
    return deck.before


def _always(deck: Deck) -> Placement:
    """Every layer placed anew, named so that most stays."""
    jobs = [MoveJob(problem, deck.before.expert_LP[row], problem.num_slots) for row, problem in deck.problems]
    found = list(in_order(available_cores(), free_of_limits, jobs))
    expert_LP = deck.before.expert_LP.copy()
    for (row, _), expert_P in zip(deck.problems, found, strict=True):
        expert_LP[row] = expert_P
    return replace(deck.before, expert_LP=expert_LP)


def free_of_limits(job: MoveJob) -> NDArray[np.int64]:
    """The placement of a search that does not look at what moves."""
    problem = job.problem
    linear_P = linear_start(problem)
    return relabelled(problem, job.before_P, searched(problem, linear_P, problem.seconds(linear_P))[0])


def _replan(length_s: float) -> Callable[[Deck], Placement]:
    def decide(deck: Deck) -> Placement:
        found = replanned_from(deck, Asked(length_s), NoWatch())
        return found.placements[found.best]

    return decide


# --- loads ------------------------------------------------------------------------------------------


def _synthetic(name: str, draw: int) -> tuple[Deployment, list[Instance]]:
    """Random popularity that drifts, for a model of two MoE layers on two nodes of four H100."""
    deployment = replace(_deployment("topology=2 x hgx-h100", "gpus_per_node=4"), model=_model())
    return deployment, [_instance(deployment, windows) for windows in _drifting(name, draw)]


def _model() -> Model:
    attention: Attention = GroupedAttention(num_heads=64, num_kv_heads=8, head_dim=64)
    moe = MoeFfn(num_experts=_EXPERTS, top_k=_TOP_K, intermediate_size=2048)
    layers = (LayerRun(count=_LAYERS, attention=attention, ffn=moe),)
    return Model(name="drifting", family="mixtral", hidden_size=4096, vocab_size=32_000, layers=layers)


def _drifting(name: str, draw: int) -> Iterator[Windows]:
    """Windows of each interval: the logarithm of popularity is a sum of walks that forget at their own pace."""
    rng = np.random.default_rng(draw)
    parts = _DRIFTS[name]
    walks = [rng.normal(size=(_LAYERS, _EXPERTS)) for _ in parts]
    for _ in range(_INTERVALS):
        log_LE = sum(np.sqrt(weight) * walk for (weight, _), walk in zip(parts, walks, strict=True))
        share_LE = np.exp(_SKEW * np.asarray(log_LE))
        share_LE /= share_LE.sum(axis=1, keepdims=True)
        counts_SLE = rng.multinomial(_TOKENS * _TOP_K, np.tile(share_LE, (_WINDOWS, 1, 1)))
        yield Windows(
            counts_SLE=counts_SLE,
            tokens_S=np.full(_WINDOWS, _TOKENS),
            choices_SL=np.full((_WINDOWS, _LAYERS), float(_TOP_K)),
            layer_ids_L=np.arange(_LAYERS),
            names_S=tuple(f"window {number}" for number in range(_WINDOWS)),
            how="drawn",
        )
        keeps = [np.exp(-1 / forgets) for _, forgets in parts]
        walks = [
            keep * walk + np.sqrt(1 - keep**2) * rng.normal(size=walk.shape)
            for keep, walk in zip(keeps, walks, strict=True)
        ]


def _recorded(path: Path) -> tuple[Deployment, list[Instance]]:
    """Two layers of the recording in order of time, on the machine of the tiny example."""
    deployment = _deployment()
    windows = of_layers(cut([read_trace(path).trace], "prefill", 2048), _RECORDED_LAYERS)
    stretches = np.array_split(np.arange(windows.num_windows), _INTERVALS)
    return deployment, [_instance(deployment, subset(windows, part.tolist())) for part in stretches]


def _deployment(*settings: str) -> Deployment:
    return edited(load(_EXAMPLE), [parse_setting(text) for text in settings])


def _instance(deployment: Deployment, windows: Windows) -> Instance:
    return Instance(deployment.model, deployment.topology, deployment.workload, constants_of(deployment), windows)


def _planned(deployment: Deployment, made: Instance) -> Plan:
    prepared = Prepared(made, tuple("" for _ in deployment.trace_paths), ())
    inputs = plan_inputs(deployment, prepared, Path("plan.json"))
    with Workers() as workers:
        found = solve(made, search_space(deployment), Options(effort=5.0), inputs, workers, NoWatch())
    assert found.plan is not None, "the example fits"
    return found.plan
