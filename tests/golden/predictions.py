"""A small fixed set of predictions: deployments that touch every part of the cost model.

`python -m tests.golden.predictions` writes them anew, after a change that is meant to move them; the commit then shows
by how much.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import yaml

from planner.baselines import place
from planner.cost.prepare import from_deployment
from planner.cost.step import breakdown, predict, split_cost
from planner.inputs.deployment import load_deployment
from planner.plan.placement import Placement
from planner.plan.split import Split

FILE: Final = Path(__file__).with_name("predictions.json")
Terms = dict[str, float]


def _case(model: str, topology: str, work: str, split: tuple[int, ...], **more: Any) -> dict[str, Any]:
    phase, tokens, context = work.split()
    workload = {"phase": phase, "tokens_per_gpu": int(tokens), "context_length": int(context)}
    workload |= more.pop("workload", {})
    return {"model": model, "topology": topology, "workload": workload, "split": split, **more}


WIDE: Final = {"kernel": "deepep-low-latency"}
CASES: Final[dict[str, dict[str, Any]]] = {
    # split: tp, pp, ep, etp, micro-batches
    "DeepSeek-V3, 9 H100 nodes, decode": _case(
        "deepseek-v3", "9 x hgx-h100", "decode 256 2000", (1, 1, 72, 1, 1), engine="sglang", redundant=32
    ),
    "the same, two micro-batches": _case(
        "deepseek-v3",
        "9 x hgx-h100",
        "decode 256 2000",
        (1, 1, 72, 1, 2),
        engine="sglang",
        redundant=32,
        communication={"overlap": "two_batch"},
    ),
    "DeepSeek-V3, 4 H100 nodes, prefill": _case(
        "deepseek-v3", "4 x hgx-h100", "prefill 16384 4096", (1, 1, 32, 1, 1), engine="sglang", redundant=32
    ),
    "DeepSeek-V3, 4 H800 nodes, drafts": _case(
        "deepseek-v3",
        "4 x hgx-h800",
        "decode 64 4096",
        (1, 1, 32, 1, 1),
        workload={"draft_tokens": 1, "acceptance": "80%"},
    ),
    "DeepSeek-V3, NVL72, one-sided": _case(
        "deepseek-v3",
        "18 x gb200-nvl72",
        "decode 128 2048",
        (1, 1, 72, 1, 1),
        communication={"kernel": "nvlink-one-sided"},
    ),
    "Qwen3-235B, H200 node, TP8 EP8": _case(
        "qwen3-235b-a22b", "1 x hgx-h200", "decode 32 4096", (8, 1, 8, 1, 1), engine="vllm"
    ),
    "Qwen3-235B, H200 node, DP8 EP8": _case(
        "qwen3-235b-a22b", "1 x hgx-h200", "decode 32 4096", (1, 1, 8, 1, 1), engine="tensorrt-llm"
    ),
    "Mixtral 8x7B, A100 node, experts sharded": _case(
        "mixtral-8x7b", "1 x hgx-a100", "decode 8 2048", (8, 1, 1, 8, 1), engine="vllm"
    ),
    "Mixtral 8x22B, two A100 nodes, pipeline": _case(
        "mixtral-8x22b", "2 x hgx-a100", "prefill 2048 2048", (2, 2, 4, 2, 4), engine="megatron"
    ),
    "gpt-oss-120b, B200 node": _case("gpt-oss-120b", "1 x hgx-b200", "decode 16 4096", (1, 1, 8, 1, 1)),
    "Jamba, H100 node": _case("jamba-1.5-large", "2 x hgx-h100", "decode 8 8192", (4, 1, 16, 1, 1)),
    "Qwen3-Next, MI300X": _case("qwen3-next-80b-a3b", "1 x mi300x-8", "prefill 4096 8192", (1, 1, 8, 1, 1)),
}


def predicted(case: dict[str, Any]) -> Terms:
    """Seconds of a step and of its terms, experts balanced."""
    file = {key: value for key, value in case.items() if key not in ("split", "redundant")}
    with TemporaryDirectory() as folder:
        path = Path(folder) / "deployment.yaml"
        path.write_text(yaml.safe_dump({"schema": "ep-plan/deployment/1", **file}), encoding="utf-8")
        instance = from_deployment(load_deployment(path)).instance
    tp, pp, ep, etp, micro_batches = case["split"]
    stage = instance.topology.num_gpus // pp
    split = Split(tp, stage // tp, pp, ep, etp, stage // ep // etp, micro_batches)
    cost = split_cost(instance, split, case.get("redundant", 0))
    moe, layer_ids = instance.model.moe, instance.model.moe_layer_ids
    slots_R = cost.stages[0].slots_R
    row = place("eplb", np.ones((1, moe.num_experts)), slots_R, num_groups=1, num_nodes=1)
    expert_LP = np.tile(cost.linear_P(cost.stages[0]) if row is None else row[0], (len(layer_ids), 1))
    placement = Placement(layer_ids, cost.slots_per_rank, expert_LP)
    ends = [instance.model.num_layers * k // pp for k in range(pp + 1)]
    cuts = tuple(range(first, end) for first, end in pairwise(ends))
    prediction = predict(cost, cuts, placement)
    terms = {term.name: term.seconds for term in breakdown(cost, cuts, placement, prediction)}
    return {"step": prediction.step_s, **terms}


def all_predicted() -> dict[str, Terms]:
    """Every case."""
    return {name: predicted(case) for name, case in CASES.items()}


def difference(name: str, before: Terms, after: Terms) -> list[str]:
    """Lines of a table of what moved."""
    lines = []
    for term in dict.fromkeys([*before, *after]):
        old, new = before.get(term, 0.0), after.get(term, 0.0)
        if abs(new - old) > 1e-9 * max(abs(old), abs(new)):
            ratio = f"{new / old - 1:+.2%}" if old else "new"
            lines.append(f"{name:<44} {term:<32} {old * 1e6:>14,.2f} us {new * 1e6:>14,.2f} us {ratio:>9}")
    return lines


if __name__ == "__main__":
    FILE.write_text(json.dumps(all_predicted(), indent=1) + "\n", encoding="utf-8")
