"""Published end-to-end measurements, predicted by one path with no constant of a single case.

Each case states what its source states; what it leaves out is filled by the planner's own defaults. A step is that of
the layout with balanced ranks (`uniform` routing). `left_out.py` names the cases that state too little.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import yaml

from planner.baselines import place
from planner.cost.instance import Instance
from planner.cost.prepare import from_deployment
from planner.cost.step import Cuts, SplitCost, predict, split_cost
from planner.inputs.deployment import load_deployment
from planner.plan.placement import Placement
from planner.plan.split import Split
from planner.rules.grid import SearchSpace
from planner.solve.request import search_space

MODEL: Final = "deepseek-v3"
NODE_GPUS: Final = 8
"""Of all nodes whose throughput is published by the node."""
Published = dict[str, Any]
"""The file of published cases, by id."""


@dataclass(frozen=True)
class Outcome:
    """One published figure, and what is predicted."""

    case: str
    """Id in published_cases.json."""
    measured: float
    predicted: float

    @property
    def error(self) -> float:
        """Predicted over measured, less one."""
        return self.predicted / self.measured - 1

    @property
    def text(self) -> str:
        """The error in per cent."""
        return f"{self.error:+.0%}"


@dataclass(frozen=True)
class Case:
    """One measurement with its conditions, as a deployment and a number."""

    name: str
    """Id in published_cases.json, and a variant."""
    topology: str | dict[str, Any]
    """Nodes, or what a topology file says."""
    phase: str
    tokens_per_gpu: int
    context_length: int
    ep: int
    redundant: int = 0
    communication: dict[str, Any] = field(default_factory=dict)
    """What the engine would not do unasked."""
    precision: dict[str, Any] = field(default_factory=lambda: {"weights": "fp8_block"})
    draft_tokens: int = 0
    acceptance: str = "0%"
    engine: str | None = "sglang"
    figure: str = ""
    """Key of the throughput that the source gives."""
    model: str | dict[str, Any] = MODEL
    """A shipped model, or what a model file says."""
    split: Split | None = None
    """The degrees, if they are not one data-parallel rank on each GPU."""

    @property
    def id(self) -> str:
        """In published_cases.json."""
        return self.name.partition("/")[0]

    def measured_s(self, published: Published) -> float:
        """Seconds of a step, from the throughput that the source gives."""
        per_gpu = float(published[self.id]["measured"][self.figure])
        if "per_node" in self.figure:
            per_gpu /= NODE_GPUS
        instance = instance_of(self)
        sequences = self.tokens_per_gpu / instance.workload.tokens_per_sequence
        return sequences * instance.workload.tokens_gained / per_gpu

    def deployment(self) -> dict[str, Any]:
        """As the file that a user would write."""
        work: dict[str, Any] = {
            "phase": self.phase,
            "tokens_per_gpu": self.tokens_per_gpu,
            "context_length": self.context_length,
        }
        if self.draft_tokens:
            work |= {"draft_tokens": self.draft_tokens, "acceptance": self.acceptance}
        more: dict[str, Any] = {"communication": self.communication} if self.communication else {}
        if self.engine is not None:
            more["engine"] = self.engine
        return {
            "schema": "ep-plan/deployment/1",
            "model": self.model,
            "topology": self.topology,
            "precision": self.precision,
            "workload": work,
            **more,
        }


def one_node(gpu: str, count: int, fabric: str) -> dict[str, Any]:
    """What a topology file says of some GPUs that one fabric joins."""
    links = [{"level": "node", "fabric": fabric}]
    return {"schema": "ep-plan/topology/1", "gpu": gpu, "nodes": 1, "gpus_per_node": count, "links": links}


PER_NODE_IN, PER_NODE_OUT = "input_tok_s_per_node", "output_tok_s_per_node"
NORMAL: Final = {"kernel": "deepep-normal", "overlap": "two_batch"}
IN_TURN: Final = {"kernel": "deepep-low-latency", "overlap": "two_batch"}
ONE_BATCH: Final = {"kernel": "deepep-low-latency"}
FP4: Final = {"weights": "fp8_block", "experts": "nvfp4", "kv_cache": "fp8"}


def _prefill(name: str, topology: str, context: int) -> Case:
    return Case(name, topology, "prefill", 16384, context, 32, 32, NORMAL, figure=PER_NODE_IN)


def _drafts(variant: str, communication: dict[str, Any], figure: str) -> Case:
    """One draft token, 60 % right, as the source assumes (lmsys.org/blog/2025-05-05-large-scale-ep, "Evaluation")."""
    name, mtp = f"sglang-h100-decode-mtp-4k/{variant}", ("9 x hgx-h100", "decode", 256, 4000, 72, 32)
    return Case(name, *mtp, communication, draft_tokens=1, acceptance="60%", figure=figure)


CASES: Final = (
    _prefill("ds-profile-prefill", "4 x hgx-h800", 4096),
    _prefill("sglang-h100-prefill-1024", "4 x hgx-h100", 1024),
    _prefill("sglang-h100-prefill-4096", "4 x hgx-h100", 4096),
    _prefill("sglang-h100-prefill-4096-perfect-eplb", "4 x hgx-h100", 4096),
    Case("sglang-h100-decode-2k", "9 x hgx-h100", "decode", 256, 2000, 72, 32, IN_TURN, figure=PER_NODE_OUT),
    _drafts("tbo", IN_TURN, f"{PER_NODE_OUT}_tbo"),
    _drafts("no tbo", ONE_BATCH, f"{PER_NODE_OUT}_no_tbo"),
)
BATCHES: Final = (16384, 65536)
"""Tokens per GPU taken where a prefill's batch is not given; vllm-gb200-prefill says that throughput is flat there."""


def _flat(case: str, gpus: int, precision: dict[str, Any], engine: str, figure: str) -> tuple[Case, ...]:
    name, topology = f"{case}/{{}}", one_node("gb200", gpus, "nvlink-5")
    given: dict[str, Any] = {"precision": precision, "engine": engine, "figure": figure}
    return tuple(
        Case(name.format(f"EP{gpus}, {tokens:,}"), topology, "prefill", tokens, 2048, gpus, **given)
        for tokens in BATCHES
    )


_ALL_TENSOR: Final = Split(8, 1, 1, 1, 8)
FLAT_CASES: Final = (
    *_flat("vllm-gb200-prefill", 2, FP4, "vllm", "input_tok_s_per_gpu"),
    *_flat("sglang-gb200-p2-prefill", 2, FP4, "sglang", "input_tok_s_per_gpu_nvfp4"),
    *_flat("sglang-gb200-p2-prefill", 4, {"weights": "fp8_block"}, "sglang", "input_tok_s_per_gpu_fp8"),
    *(
        Case(
            f"h20-prefill-tp8/TP8, {tokens:,}",
            "1 x hgx-h20",
            "prefill",
            tokens,
            4096,
            1,
            figure=PER_NODE_IN,
            split=_ALL_TENSOR,
        )
        for tokens in BATCHES
    ),
)
"""Prefill cases that give everything but the batch, with a variant for each batch."""


def predicted_s(case: Case, trace: Path | None = None) -> float:
    """Seconds of a step: with balanced ranks; with recorded loads, of experts in order."""
    cost = cost_of(case, trace)
    return predict(cost, cuts_of(cost), balanced(cost) if trace is None else unasked(cost)).step_s


def cuts_of(cost: SplitCost) -> Cuts:
    """Equally many layers on every stage."""
    layers, stages = cost.instance.model.num_layers, cost.split.pp
    ends = [layers * stage // stages for stage in range(stages + 1)]
    return tuple(range(first, end) for first, end in pairwise(ends))


def cost_of(case: Case, trace: Path | None = None) -> SplitCost:
    """The case under its split."""
    instance = instance_of(case, trace)
    gpus = instance.topology.num_gpus
    overlaps = instance.constants.communication.overlap == "two_batch"
    split = case.split or Split(1, gpus, 1, case.ep, 1, gpus // case.ep, 2 if overlaps else 1)
    return split_cost(instance, split, case.redundant)


def instance_of(case: Case, trace: Path | None = None) -> Instance:
    """The case with the planner's defaults, and recorded routing if there is any."""
    return prepared(case, trace)[0]


def prepared(case: Case, trace: Path | None = None) -> tuple[Instance, SearchSpace]:
    """The same with the splits that there are."""
    with TemporaryDirectory() as name:
        folder, given = Path(name), case.deployment()
        for key in ("topology", "model"):
            if isinstance(given[key], dict):
                (folder / f"{key}.yaml").write_text(yaml.safe_dump(given[key]), encoding="utf-8")
                given[key] = f"{key}.yaml"
        if trace is not None:
            given["traces"] = [str(trace.resolve())]
        path = folder / "deployment.yaml"
        path.write_text(yaml.safe_dump(given), encoding="utf-8")
        deployment = load_deployment(path)
        return from_deployment(deployment).instance, search_space(deployment)


def balanced(cost: SplitCost) -> Placement:
    """Copies dealt so that ranks are as equal as can be; equal experts, so one layer stands for all."""
    moe, layer_ids = cost.instance.model.moe, cost.instance.model.moe_layer_ids
    expert_LP = place("eplb", np.ones((1, moe.num_experts)), cost.stages[0].slots_R, num_groups=1, num_nodes=1)
    if expert_LP is None:  # EPLB deals equal numbers of slots only
        expert_LP = cost.linear_P(cost.stages[0])[None]
    return Placement(layer_ids, cost.slots_per_rank, np.tile(expert_LP, (len(layer_ids), 1)))


def unasked(cost: SplitCost) -> Placement:
    """What engines do unasked: experts in order, no copies."""
    layer_ids = cost.instance.model.moe_layer_ids
    return Placement(layer_ids, cost.slots_per_rank, np.tile(cost.linear_P(cost.stages[0]), (len(layer_ids), 1)))


def read_published(data: Path) -> Published:
    """The file of published cases, by id."""
    cases = json.loads((data / "published_cases.json").read_text(encoding="utf-8"))
    return {case["id"]: case for case in cases}


def outcomes(cases: Iterable[Case], published: Published) -> Iterator[tuple[Case, Outcome]]:
    """Seconds of steps."""
    for case in cases:
        yield case, Outcome(case.id, case.measured_s(published), predicted_s(case))


def step_row(case: Case, outcome: Outcome) -> tuple[str, ...]:
    """Case, measured, predicted, error."""
    return case.name, *(f"{seconds * 1e3:,.1f} ms" for seconds in (outcome.measured, outcome.predicted)), outcome.text


def flat_row(case: Case, outcome: Outcome) -> tuple[str, ...]:
    """Case, split and tokens per GPU, tokens per second and GPU measured and predicted, error of the time."""
    variant, _, tokens = case.name.partition("/")[2].partition(", ")
    rates = (f"{case.tokens_per_gpu / seconds:,.0f}" for seconds in (outcome.measured, outcome.predicted))
    return case.id, variant, tokens, *rates, outcome.text
