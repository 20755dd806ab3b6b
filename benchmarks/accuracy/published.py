"""Published end-to-end measurements, predicted by one path with no constant of a single case.

Each case states what its source states; what it leaves out is filled by the planner's own defaults. A step is that of
the layout with balanced ranks (`uniform` routing), or of a plan for recorded routing where the source served real
traffic and a recording of the same model is at hand.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import yaml

from planner.baselines import place
from planner.cost.prepare import from_deployment
from planner.cost.step import SplitCost, predict, split_cost
from planner.inputs.deployment import load_deployment
from planner.plan.placement import Placement
from planner.plan.split import Split

MODEL: Final = "deepseek-v3"
WIDE: Final = {"prefill": "deepep-normal", "decode": "deepep-low-latency"}


@dataclass(frozen=True)
class Case:
    """One measurement with its conditions, as a deployment and a number."""

    name: str
    """Id in published_cases.json, and a variant."""
    topology: str
    phase: str
    tokens_per_gpu: int
    context_length: int
    ep: int
    redundant: int = 0
    communication: dict[str, Any] = field(default_factory=dict)
    precision: dict[str, Any] = field(default_factory=lambda: {"weights": "fp8_block"})
    draft_tokens: int = 0
    engine: str = "sglang"

    def measured_s(self, published: dict[str, Any]) -> float:
        """Seconds of a step, from the throughput that the source gives."""
        return _step_s(self, published[self.name.partition("/")[0]]["measured"], self.name.partition("/")[2])

    def deployment(self) -> dict[str, Any]:
        """As the file that a user would write."""
        work: dict[str, Any] = {
            "phase": self.phase,
            "tokens_per_gpu": self.tokens_per_gpu,
            "context_length": self.context_length,
        }
        if self.draft_tokens:
            work |= {"draft_tokens": self.draft_tokens, "acceptance": "100%"}
        return {
            "schema": "ep-plan/deployment/1",
            "model": MODEL,
            "topology": self.topology,
            "engine": self.engine,
            "precision": self.precision,
            "communication": {"kernel": WIDE[self.phase], **self.communication},
            "workload": work,
        }


def _step_s(case: Case, measured: dict[str, Any], variant: str) -> float:
    keys = {"tbo": "output_tok_s_per_node_tbo", "no tbo": "output_tok_s_per_node_no_tbo"}
    key = keys.get(variant) or next(k for k in ("input_tok_s_per_node", "output_tok_s_per_node") if k in measured)
    return float(8 * case.tokens_per_gpu / measured[key])


TWO_BATCH: Final = {"overlap": "two_batch"}
CASES: Final = (
    Case("ds-profile-prefill", "4 x hgx-h800", "prefill", 16384, 4096, 32, 32, TWO_BATCH),
    Case("sglang-h100-prefill-1024", "4 x hgx-h100", "prefill", 16384, 1024, 32, 32, TWO_BATCH),
    Case("sglang-h100-prefill-4096", "4 x hgx-h100", "prefill", 16384, 4096, 32, 32, TWO_BATCH),
    Case("sglang-h100-prefill-4096-perfect-eplb", "4 x hgx-h100", "prefill", 16384, 4096, 32, 32, TWO_BATCH),
    Case("sglang-h100-decode-2k", "9 x hgx-h100", "decode", 256, 2000, 72, 32, TWO_BATCH),
    Case("sglang-h100-decode-mtp-4k/tbo", "9 x hgx-h100", "decode", 256, 4000, 72, 32, TWO_BATCH, draft_tokens=1),
    Case("sglang-h100-decode-mtp-4k/no tbo", "9 x hgx-h100", "decode", 256, 4000, 72, 32, draft_tokens=1),
)
EXCHANGES: Final = (
    ("deepep-v1-ll", 8, "hgx-h800", "deepep-low-latency", {"weights": "fp8_block"}),
    ("aic-deepep-ll-h100", 8, "hgx-h100", "deepep-low-latency", {"weights": "fp8_block"}),
    ("trt-onesided-gb200", 4, "gb200-nvl72", "nvlink-one-sided", {"weights": "fp8_block", "dispatch": "bf16"}),
)
"""Id, GPUs of a node, node, library, formats."""
CROSSOVER: Final = {"tbo_gain_b256": 256, "tbo_gain_b32": 32}
"""Of `sglang-tbo-crossover`: gains of two micro-batches by sequences per GPU."""


def predicted_s(case: Case) -> float:
    """Seconds of a step with balanced ranks."""
    cost = cost_of(case)
    return predict(cost, (range(cost.instance.model.num_layers),), balanced(cost)).step_s


def cost_of(case: Case) -> SplitCost:
    """The case under its split."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "deployment.yaml"
        path.write_text(yaml.safe_dump(case.deployment()), encoding="utf-8")
        instance = from_deployment(load_deployment(path)).instance
    gpus = instance.topology.num_gpus
    overlaps = instance.constants.communication.overlap == "two_batch"
    split = Split(1, gpus, 1, case.ep, 1, gpus // case.ep, 2 if overlaps else 1)
    return split_cost(instance, split, case.redundant)


def balanced(cost: SplitCost) -> Placement:
    """Copies dealt so that ranks are as equal as can be; equal experts, so one layer stands for all."""
    moe, layer_ids = cost.instance.model.moe, cost.instance.model.moe_layer_ids
    expert_LP = place("eplb", np.ones((1, moe.num_experts)), cost.stages[0].slots_R, num_groups=1, num_nodes=1)
    if expert_LP is None:  # EPLB deals equal numbers of slots only
        expert_LP = cost.linear_P(cost.stages[0])[None]
    return Placement(layer_ids, cost.slots_per_rank, np.tile(expert_LP, (len(layer_ids), 1)))


def read_published(data: Path) -> dict[str, Any]:
    """The file of published cases, by id."""
    cases = json.loads((data / "published_cases.json").read_text(encoding="utf-8"))
    return {case["id"]: case for case in cases}


def rows(data: Path) -> Iterator[tuple[str, ...]]:
    """Case, measured, predicted, error."""
    published = read_published(data)
    for case in CASES:
        measured, predicted = case.measured_s(published), predicted_s(case)
        yield case.name, f"{measured * 1e3:,.1f} ms", f"{predicted * 1e3:,.1f} ms", f"{predicted / measured - 1:+.0%}"


def exchange_rows(data: Path) -> Iterator[tuple[str, ...]]:
    """Library and machine, EP, tokens, and of dispatch and combine: measured, predicted, error."""
    published = read_published(data)
    for name, size, topology, kernel, precision in EXCHANGES:
        measured = published[name]["measured"]
        tokens = published[name]["batch_tokens_per_gpu"]
        for index, ep in enumerate(published[name]["parallelism"]["ep"]):
            for column, count in enumerate(tokens if isinstance(tokens, list) else [tokens]):
                case = Case(
                    name, f"{ep // size} x {topology}", "decode", count, 1024, ep, 0, {"kernel": kernel}, precision
                )
                found = [measured[f"{way}_us"] for way in ("dispatch", "combine")]
                times = [table[str(ep)][column] if isinstance(table, dict) else table[index] for table in found]
                yield f"{kernel}, {topology}", f"{ep}", f"{count:,}", *_compared(times, _exchange_us(case))


def _exchange_us(case: Case) -> tuple[float, float]:
    cost = cost_of(case)
    row_P = balanced(cost).expert_LP[0]
    times = cost.stages[0].moe.layer(cost.instance.loads[0], row_P)
    return float(times.dispatch_S[0]) * 1e6, float(times.combine_S[0]) * 1e6


def _compared(measured: Sequence[float], predicted: Sequence[float]) -> Iterator[str]:
    for one, other in zip(measured, predicted, strict=True):
        yield f"{one:,.0f} / {other:,.0f} us"
        yield f"{other / one - 1:+.0%}"


def ranking_rows(data: Path) -> Iterator[tuple[str, ...]]:
    """Question, measured, predicted, whether the sign is right."""
    measured = read_published(data)["sglang-tbo-crossover"]["measured"]
    for key, tokens in CROSSOVER.items():
        plain = Case(key, "9 x hgx-h100", "decode", tokens, 2000, 72, 32)
        turned = Case(key, "9 x hgx-h100", "decode", tokens, 2000, 72, 32, TWO_BATCH)
        gain = predicted_s(plain) / predicted_s(turned)
        right = "right" if (gain > 1) == (measured[key] > 1) else "wrong"
        yield f"two micro-batches at {tokens} sequences per GPU", f"x {measured[key]:.2f}", f"x {gain:.2f}", right
