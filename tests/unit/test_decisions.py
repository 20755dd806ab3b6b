"""Decisions that engineers know, each with the reason: the term of the step that turns it.

Routing is uniform, so that a split's bound is its step and only the split is in question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from planner.cost.moe import LayerTimes
from planner.cost.prepare import from_deployment
from planner.inputs.deployment import Overrides, load_deployment
from planner.plan.placement import linear
from planner.plan.split import Split
from planner.solve.candidates import Bounder, Candidate, all_candidates
from planner.solve.request import search_space
from planner.solve.solution import Options
from planner.solve.solver import solve
from planner.solve.watch import NoWatch
from planner.solve.workers import Workers
from tests import building

_BOXES = """\
schema: ep-plan/topology/1
gpu: {gpu}
nodes: {nodes}
gpus_per_node: 8
links:
  - {{level: node, bandwidth: 450 GB/s, latency: 3 us}}
  - {{level: cluster, bandwidth: {fabric}, latency: 10 us}}
"""
_DEPLOYMENT = """\
schema: ep-plan/deployment/1
model: {model}
topology: {topology}
workload: {{phase: {phase}, tokens_per_gpu: {tokens}, context_length: {context}}}
solve: {{redundant_experts: 0, split: {{{pins}}}}}
"""


@dataclass(frozen=True)
class Choice:
    """All splits that fit, the fastest first."""

    candidates: list[Candidate]

    @property
    def split(self) -> Split:
        return self.candidates[0].split

    def best(self, **degrees: int) -> Candidate:
        """The fastest with these degrees."""
        return next(c for c in self.candidates if all(getattr(c.split, d) == value for d, value in degrees.items()))


def chosen(
    folder: Path,
    model: str,
    topology: str,
    tokens: int,
    *,
    pins: str = "",
    phase: str = "decode",
    context: int = 4096,
) -> Choice:
    values = {"model": model, "topology": topology, "phase": phase, "tokens": tokens, "context": context, "pins": pins}
    (folder / "deployment.yaml").write_text(_DEPLOYMENT.format(**values), encoding="utf-8")
    loaded = load_deployment(folder / "deployment.yaml", Overrides())
    instance = from_deployment(loaded).instance
    every = all_candidates(instance, search_space(loaded), Bounder(instance))
    return Choice(sorted((c for c in every if c.is_feasible), key=lambda c: c.bound_s))


def boxes(folder: Path, nodes: int, fabric: str, gpu: str = "h100-sxm") -> str:
    """Nodes of 8 GPUs; the topology's file name."""
    text = _BOXES.format(gpu=gpu, nodes=nodes, fabric=fabric)
    (folder / "topology.yaml").write_text(text, encoding="utf-8")
    return "topology.yaml"


def moe_times(candidate: Candidate) -> LayerTimes:
    stage = candidate.cost.stages[0]
    experts = candidate.cost.instance.model.moe.num_experts
    return stage.moe.layer(candidate.cost.instance.loads[0], linear(experts, stage.slots_R))


def traffic_s(candidate: Candidate) -> float:
    times = moe_times(candidate)
    return float((times.dispatch_S + times.combine_S).mean())


def expert_s(candidate: Candidate) -> float:
    return float(moe_times(candidate).expert_S.mean())


def even(layers: int, stages: int) -> list[range]:
    """Stages of equal length, the first ones one layer longer where they must."""
    ends = [-(-layers * number // stages) for number in range(stages + 1)]
    return [range(*pair) for pair in pairwise(ends)]


def stage_s(candidate: Candidate, cuts: Sequence[range]) -> list[float]:
    """Seconds that each stage needs for a micro-batch."""
    moe_layers = set(candidate.cost.instance.model.moe_layer_ids)
    moe_s = float(moe_times(candidate).total_S.mean())
    stages = candidate.cost.stages
    return [
        sum(float(stage.fixed_L[layer]) + (moe_s if layer in moe_layers else 0.0) for layer in layers)
        + stage.extra_s[stage is stages[-1]]
        for stage, layers in zip(stages, cuts, strict=True)
    ]


def test_as_the_fabric_slows_experts_stay_inside_the_node_and_stages_cross_it(tmp_path: Path) -> None:
    fast = chosen(tmp_path, "deepseek-v3", boxes(tmp_path, 8, "400 GB/s"), 64, pins="tp: 1, etp: 1")
    slow = chosen(tmp_path, "deepseek-v3", boxes(tmp_path, 8, "2 GB/s"), 64, pins="tp: 1, etp: 1")
    assert fast.split.ep == 64
    assert slow.split.ep <= 8
    assert slow.split.pp * slow.split.edp == 8
    # Why: wide, a layer's exchange passes the slow fabric; narrow, it does not, whatever the fabric.
    assert traffic_s(slow.best(ep=64, pp=1)) > 20 * traffic_s(fast.best(ep=64, pp=1))
    assert traffic_s(slow.best(ep=8)) == pytest.approx(traffic_s(fast.best(ep=8)))


def test_tensor_parallel_experts_for_few_tokens_wide_then_narrow_expert_parallel_for_many(tmp_path: Path) -> None:
    machine = boxes(tmp_path, 4, "50 GB/s", "h200-sxm")
    few, some, many = (
        chosen(tmp_path, "qwen3-235b-a22b", machine, tokens, context=1024, pins="pp: 1") for tokens in (1, 16, 256)
    )
    assert (few.split.ep, few.split.etp) == (1, 8)
    assert (some.split.ep, some.split.etp) == (32, 1)
    assert (many.split.ep, many.split.etp, many.split.tp) == (8, 1, 1)
    # For few tokens an exchange is all constants. Tensor-parallel experts need none: each GPU has all tokens anyway.
    assert traffic_s(few.best(ep=1, etp=8)) < 0.5 * traffic_s(few.best(ep=8, etp=1))
    # Some touch them all, and wide ranks have the fewest weights to read.
    assert expert_s(some.best(ep=32)) < 0.5 * expert_s(some.best(ep=8, etp=1))
    # Many make traffic count, and attention without tensor parallelism has no all-reduce.
    assert traffic_s(many.best(ep=32)) - traffic_s(many.best(ep=8)) > expert_s(many.best(ep=8)) - expert_s(
        many.best(ep=32)
    )
    assert many.best(ep=8, tp=1).bound_s < many.best(ep=8, tp=8).bound_s


def test_a_domain_of_72_is_flat_for_expert_parallelism_up_to_72(tmp_path: Path) -> None:
    rack = chosen(tmp_path, "deepseek-v3", "18 x gb200-nvl72", 128, pins="tp: 1, pp: 1")
    nodes = chosen(tmp_path, "deepseek-v3", "9 x hgx-h200", 128, pins="tp: 1, pp: 1")
    assert rack.split.ep == 72
    assert nodes.split.ep == 8
    # A rank receives nearly the same, from near or far: 7/8 of its rows at ep=8, 71/72 at ep=72.
    assert traffic_s(rack.best(ep=72)) < 1.3 * traffic_s(rack.best(ep=8, etp=1))
    assert traffic_s(nodes.best(ep=72)) > 2 * traffic_s(nodes.best(ep=8, etp=1))


def test_the_heaviest_stage_decides_the_cuts(tmp_path: Path) -> None:
    machine = boxes(tmp_path, 4, "50 GB/s")
    best = chosen(tmp_path, "deepseek-v3", machine, 64, pins="pp: 4, tp: 1, ep: 8").candidates[0]
    sizes = [len(layers) for layers in best.cuts]
    assert sizes[0] > sizes[1], "the first stage has the dense layers, which cost less"
    assert sizes[-1] < sizes[1], "the last stage has the LM head"
    seconds = stage_s(best, best.cuts)
    assert max(seconds) < max(stage_s(best, even(61, 4)))
    assert max(seconds) - min(seconds) < best.layer_bound[best.cost.stages[0].kind][0] * 2, "no layer is left to move"


@pytest.mark.parametrize(("spread", "copies"), [(0.05, False), (1.2, True)])
def test_skew_makes_copies_worth_their_reads(spread: float, copies: bool) -> None:
    """In decode a copy is read, too: only where one rank would wait for a hot expert does it pay."""
    rng = np.random.default_rng(5)
    made = building.model(experts=16, top_k=2, layers=1, hidden=512, width=512)
    share_E = np.exp(spread * rng.standard_normal(16))
    counts = np.stack([[rng.multinomial(4000, share_E / share_E.sum())] for _ in range(3)])
    windows = building.counted(counts, [0], 2)
    whole = building.instance(made, building.topology(1, 4), phase="decode", tokens=256, windows=windows)
    space = building.space(None, ep=4, pp=1, tp=1)
    with Workers(cores=1) as workers:
        plan = solve(whole, space, Options(effort=1.0), building.inputs_of(whole, space), workers, NoWatch()).plan
    assert plan is not None
    assert (plan.placement.redundant_experts > 0) == copies
