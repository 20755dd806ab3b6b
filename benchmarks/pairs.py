"""Which of two published systems serves more tokens per GPU: ranked by prediction, and by measurement.

Pairs of `published_cases.json` about capacity: kinds of GPU, numbers of nodes, expert against tensor parallelism, wide
against small expert parallelism. Both systems of a pair are priced by one path: the split that is stated, balanced
ranks, and the planner's defaults for all that the sources leave out. Where a source gives the best of many systems at a
speed per user, the best split and batch within that speed are looked for, in the same way on both machines. No constant
of a case. What a pair takes that no source states stands in its note; cases that lack more are named. Where a source
tells neither of copies nor of a balancer, ranks are as unequal as engines make them unasked: experts in order, with the
recorded loads of DeepSeek-V3 (the same number of experts and of choices), which tensor parallelism does not feel.

Beside it: the least nodes that hold DeepSeek-V3, by `ep-plan size`, with the arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import yaml
from rich.console import Console
from rich.table import Table

from benchmarks.accuracy.published import balanced, read_published
from benchmarks.cases import DEEPSEEK
from planner.capacity.size import Wanted, kinds_of, size
from planner.cost.instance import Instance
from planner.cost.kv_cache import kv_bytes_per_sequence
from planner.cost.prepare import from_deployment
from planner.cost.step import SplitCost, predict, split_cost
from planner.inputs.deployment import load_deployment
from planner.inputs.parameters import count_parameters
from planner.inputs.precision import stored_bytes
from planner.inputs.topology import resolve
from planner.inputs.units import format_bytes, format_count
from planner.plan.placement import Placement
from planner.plan.split import Split
from planner.rules.grid import SearchSpace
from planner.rules.ruled import all_ruled
from planner.solve.request import search_space
from planner.solve.watch import NoWatch

_LOW_LATENCY: Final = (("kernel", "deepep-low-latency"),)
_NORMAL: Final = (("kernel", "deepep-normal"),)
_TURNS: Final = (("overlap", "two_batch"),)
_NVLINK: Final = (("kernel", "nvlink-one-sided"),)
_BATCHES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
"""Sequences per GPU that are tried."""
_ACCEPTED: Final = "80%"
_TIE: Final = 0.01
"""Predictions nearer than this tell nothing apart."""


@dataclass(frozen=True)
class System:
    """A machine, its work, and how the model is split."""

    topology: str
    phase: str
    tokens_per_gpu: int
    context_length: int
    ep: int
    tp: int = 1
    etp: int = 1
    redundant: int = 0
    weights: str = "fp8_block"
    communication: tuple[tuple[str, str], ...] = ()
    model: str = "deepseek-v3"
    gpus: int | None = None
    """Of the topology; None: all."""
    draft_tokens: int = 0
    loads: Path | None = None
    """Recorded loads, of experts in order; None: balanced ranks."""

    def deployment(self) -> dict[str, Any]:
        """As the file that a user would write."""
        work: dict[str, Any] = {
            "phase": self.phase,
            "tokens_per_gpu": self.tokens_per_gpu,
            "context_length": self.context_length,
        }
        if self.draft_tokens:
            work |= {"draft_tokens": self.draft_tokens, "acceptance": _ACCEPTED}
        return {
            "schema": "ep-plan/deployment/1",
            "model": self.model,
            "topology": self.topology,
            "traces": [] if self.loads is None else [str(self.loads)],
            "precision": {"weights": self.weights},
            "communication": dict(self.communication),
            "workload": work,
        }

    @property
    def rate(self) -> float:
        """Predicted tokens per second and GPU with the stated split."""
        instance, _ = _prepared(self)
        gpus = instance.topology.num_gpus
        turns = 2 if instance.constants.communication.overlap == "two_batch" else 1
        split = Split(self.tp, gpus // self.tp, 1, self.ep, self.etp, gpus // self.ep // self.etp, turns)
        return _rate(split_cost(instance, split, self.redundant))

    def best_rate(self, topologies: Sequence[str], user_tok_s: float) -> float:
        """Most tokens per second and GPU of any split and batch on these machines, so fast for each user."""
        every = (one for topology in topologies for one in _best_of_batches(replace(self, topology=topology)))
        return max((rate for rate, user in every if user >= user_tok_s), default=0.0)


@cache
def _best_of_batches(system: System) -> tuple[tuple[float, float], ...]:
    """Rate, and tokens per second of a user, of every batch and split that fits, without stages and without copies."""
    found = []
    for batch in _BATCHES:
        instance, space = _prepared(replace(system, tokens_per_gpu=batch * (1 + system.draft_tokens)))
        for one in all_ruled(instance, replace(space, pins={"pp": 1, "edp": 1})):
            if one.is_feasible:
                rate = _rate(one.cost)
                found.append((rate, rate / batch))
    return tuple(found)


def _prepared(system: System) -> tuple[Instance, SearchSpace]:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "deployment.yaml"
        path.write_text(yaml.safe_dump(system.deployment()), encoding="utf-8")
        deployment = load_deployment(path)
        if system.gpus is not None:
            deployment = replace(deployment, topology=resolve(deployment.topology.file, system.gpus))
        return from_deployment(deployment).instance, search_space(deployment)


def _rate(cost: SplitCost) -> float:
    """Tokens per second and GPU, drafts that are refused left out; with known loads in the linear layout."""
    instance, layer_ids = cost.instance, cost.instance.model.moe_layer_ids
    placement = balanced(cost)
    if instance.windows is not None:
        linear_LP = np.tile(cost.linear_P(cost.stages[0]), (len(layer_ids), 1))
        placement = Placement(layer_ids, cost.slots_per_rank, linear_LP)
    step_s = predict(cost, (range(instance.model.num_layers),), placement).step_s
    work = instance.workload
    return instance.step_tokens / work.tokens_per_sequence * work.tokens_gained / instance.topology.num_gpus / step_s


# --- pairs ------------------------------------------------------------------------------------------

_H100_DECODE: Final = System("9 x hgx-h100", "decode", 256, 2000, 72, redundant=32, communication=_LOW_LATENCY + _TURNS)
_H100_PREFILL: Final = System("4 x hgx-h100", "prefill", 16384, 4096, 32, redundant=32, communication=_NORMAL + _TURNS)
_GB200_FP8: Final = System("1 x gb200-nvl72", "prefill", 16384, 2048, 4, communication=_NVLINK)
_GLM: Final = System("1 x hgx-b300", "prefill", 16384, 8192, 4, weights="nvfp4", model="glm-5", gpus=4)
_R1: Final = System("", "decode", 1, 1024 + 512, 1)


@dataclass(frozen=True)
class Pair:
    """Two systems: what each serves, measured and predicted, in tokens per second and GPU."""

    question: str
    names: tuple[str, str]
    measured: tuple[float, float]
    predicted: tuple[float, float]
    note: str = ""

    @property
    def verdict(self) -> str:
        """Whether the prediction names the system that won."""
        first, second = self.predicted
        if not (first or second):
            return "not ranked"
        if abs(first - second) <= _TIE * max(first, second):
            return "tie"
        return "right" if (first > second) == (self.measured[0] > self.measured[1]) else "wrong"


def pairs(data: Path) -> Iterator[Pair]:
    """Every pair that has enough conditions."""
    got = {name: case["measured"] for name, case in read_published(data).items()}
    yield from _stated(got, data / "traces" / DEEPSEEK.trace)
    yield from _at_a_speed(got)


def _stated(got: dict[str, Any], loads: Path) -> Iterator[Pair]:
    """Pairs of systems whose splits are stated; `loads` for those without copies and balancer."""
    gb200_fp8, glm4 = (replace(one, loads=loads) for one in (_GB200_FP8, _GLM))
    h100 = got["sglang-h100-decode-2k"]["output_tok_s_per_node"] / 8
    h100_prefill = got["sglang-h100-prefill-4096"]["input_tok_s_per_node"] / 8
    even = got["sglang-h100-prefill-4096-perfect-eplb"]["input_tok_s_per_node"] / 8
    gb200 = got["sglang-gb200-p2-prefill"]
    yield Pair(
        "GPU and width, decode",
        ("48 GB200, EP48", "72 H100, EP72"),
        (got["sglang-gb200-p1-decode"]["output_tok_s_per_gpu"], h100),
        (
            replace(_H100_DECODE, topology="12 x gb200-nvl72", ep=48, redundant=0, communication=_NVLINK).rate,
            _H100_DECODE.rate,
        ),
        "batch of the GB200 not stated: that of the other",
    )
    live = replace(_H100_DECODE, topology="18 x hgx-h800", ep=144, tokens_per_gpu=88, context_length=4989)
    yield Pair(
        "GPU and nodes, decode",
        ("144 H800, EP144", "72 H100, EP72"),
        (got["ds-prod-decode"]["output_tok_s_per_node"] / 8, h100),
        (live.rate, _H100_DECODE.rate),
        "live traffic; batch of the H800 as implied by its rates, 88",
    )
    dies = System("20 x cloudmatrix-384", "decode", 48, 4096, 320, weights="int8")
    yield Pair(
        "GPU and width, decode",
        ("160 Ascend 910C, EP320", "72 H100, EP72"),
        (got["cloudmatrix-decode"]["output_tok_s_per_npu"], h100),
        (2 * dies.rate, _H100_DECODE.rate),
        "two dies are one NPU",
    )
    yield Pair(
        "GPU, prefill, balanced",
        ("32 H800, EP32", "32 H100, EP32"),
        (got["ds-profile-prefill"]["input_tok_s_per_node"] / 8, even),
        (replace(_H100_PREFILL, topology="4 x hgx-h800").rate, _H100_PREFILL.rate),
        "two engines",
    )
    h20 = System("1 x hgx-h20", "prefill", 2048, 4096, 1, tp=8, etp=8)
    yield Pair(
        "EP against TP, prefill",
        ("8 H20, TP8", "32 H100, EP32"),
        (got["h20-prefill-tp8"]["input_tok_s_per_node"] / 8, h100_prefill),
        (h20.rate, _H100_PREFILL.rate),
        "batch of the H20 not stated: 16,384 tokens over all GPUs",
    )
    yield Pair(
        "GPU and width, prefill",
        ("4 GB200, EP4, fp8", "32 H100, EP32"),
        (gb200["input_tok_s_per_gpu_fp8"], h100_prefill),
        (gb200_fp8.rate, _H100_PREFILL.rate),
        "batch of the GB200 not stated: that of the other",
    )
    yield Pair(
        "format and width, prefill",
        ("2 GB200, EP2, nvfp4", "4 GB200, EP4, fp8"),
        (gb200["input_tok_s_per_gpu_nvfp4"], gb200["input_tok_s_per_gpu_fp8"]),
        (replace(gb200_fp8, ep=2, weights="nvfp4", gpus=2).rate, gb200_fp8.rate),
        "batch not stated: 16,384 tokens per GPU",
    )
    glm = got["glm52-b300-prefill"]["input_tok_s_instance"] / 4
    yield Pair(
        "width, prefill of GLM-5",
        ("2 B300, EP2", "4 B300, EP4"),
        (1.08 * glm, glm),
        (replace(glm4, ep=2, gpus=2).rate, glm4.rate),
        "batch not stated: 16,384 tokens per GPU",
    )
    tensor = replace(glm4, tp=2, gpus=2)
    yield Pair(
        "EP against TP, prefill of GLM-5",
        ("2 B300, TP2 attention, TP2 experts", "2 B300, TP2 attention, EP2"),
        (1.0, 0.0),
        (replace(tensor, ep=1, etp=2).rate, replace(tensor, ep=2).rate),
        "only that the first is better is told",
    )


def _at_a_speed(got: dict[str, Any]) -> Iterator[Pair]:
    """Pairs of the best systems that give each user so many tokens per second."""
    fp8 = got["inferencex-r1-h100-b200"]
    for index, speed in enumerate(fp8["tok_s_user"]):
        yield Pair(
            f"GPU, {speed} tok/s for each user, fp8",
            ("B200", "H100"),
            (fp8["tok_s_per_gpu"]["B200"][index], fp8["tok_s_per_gpu"]["H100"][index]),
            (_R1.best_rate(["1 x hgx-b200"], speed), _R1.best_rate(["2 x hgx-h100"], speed)),
            "measured: prompts included; predicted: decode alone",
        )
    fp4 = got["inferencex-r1-gb200-vs-b200"]
    drafted = replace(_R1, weights="nvfp4", draft_tokens=1)
    above = fp4["b200_wins_above_tok_s_user"]
    at_125 = fp4["tok_s_per_gpu_at_125_tok_s_user"]
    for speed, measured in (
        (0, (fp4["peak"]["GB200"], fp4["peak"]["B200"])),
        (125, (at_125["GB200"], at_125["B200"])),
        (above + 1, (0.0, 1.0)),
    ):
        racks = [f"{trays} x gb200-nvl72" for trays in (2, 4, 8)]
        yield Pair(
            f"GPU and width, {speed or 'any'} tok/s for each user, fp4"
            if speed <= above
            else f"the same above {above}",
            ("GB200, up to 32 GPUs", "8 B200"),
            measured,
            (drafted.best_rate(racks, speed), drafted.best_rate(["1 x hgx-b200"], speed)),
            f"drafts not stated: one, {_ACCEPTED} accepted",
        )


LEFT_OUT: Final = {
    "llmd-b200-decode": "neither batch nor context",
    "vllm-gb200-prefill": "as sglang-gb200-p2-prefill; no rival",
    "smartmoe-split-16gpu": "training; the cluster's links are not told",
    "laer-e2e": "training, frameworks against each other",
    "disaggregated against aggregated": "no pair of the file has both",
}


# --- least nodes ------------------------------------------------------------------------------------

_LEAST: Final = (("fp8_block", 128, 4096), ("fp8_block", 128, 32_768), ("bf16", 128, 4096))


def least_nodes() -> Iterator[tuple[str, ...]]:
    """Weights, work, kind of node, least nodes, and the arithmetic of one node less."""
    for weights, sequences, context in _LEAST:
        system = System("1 x hgx-h100", "decode", 16, context, 1, weights=weights)
        with TemporaryDirectory() as folder:
            path = Path(folder) / "deployment.yaml"
            path.write_text(yaml.safe_dump(system.deployment()), encoding="utf-8")
            deployment = load_deployment(path)
        model, cache = deployment.model, deployment.precision.kv_cache
        weight_bytes = stored_bytes(count_parameters(model).total, deployment.precision.experts)
        kept = sum(kv_bytes_per_sequence(run.attention, 1, cache, context) for run in model.layer_list)
        kinds = kinds_of(deployment, ["hgx-h100", "hgx-h200"])
        for answer in size(deployment, kinds, Wanted(sequences=sequences), 6, NoWatch()).answers:
            why = ""
            if answer.one_less is not None:
                gpus = answer.one_less.gpus
                parts = (format_bytes(weight_bytes // gpus), format_bytes(sequences * kept // gpus))
                why = f"{parts[0]} of weights and {parts[1]} of KV for each of {gpus} GPUs; {answer.one_less.why_not}"
            nodes = "-" if answer.point is None else str(answer.point.nodes)
            yield weights, f"{sequences} x {context:,}", answer.kind, nodes, why


def run(data: Path | None, console: Console) -> None:
    """Print pairs, and least nodes."""
    needed = ("published_cases.json", f"traces/{DEEPSEEK.trace}")
    if data is None or not all((data / name).is_file() for name in needed):
        console.print(f"pairs: needs {' and '.join(needed)}; give --data")
        return
    columns = ("question", "first", "second", "measured tok/s per GPU", "predicted", "winner", "note")
    table, counts = Table(*columns, box=None), dict.fromkeys(("right", "wrong", "tie", "not ranked"), 0)
    for pair in pairs(data):
        counts[pair.verdict] += 1
        measured, predicted = (" : ".join(map(format_count, values)) for values in (pair.measured, pair.predicted))
        if max(pair.measured) <= 1:
            measured = "first" if pair.measured[0] else "second"
        table.add_row(pair.question, *pair.names, measured, predicted, pair.verdict, pair.note)
    console.print(table)
    console.print(", ".join(f"{count} {name}" for name, count in counts.items()))
    for name, why in LEFT_OUT.items():
        console.print(f"left out: {name}: {why}")
    console.print()
    least = Table("weights", "sequences x context", "node of 8", "least nodes", "one node less", box=None)
    for row in least_nodes():
        least.add_row(*row)
    console.print(least)
