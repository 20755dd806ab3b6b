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

import yaml
from rich.console import Console
from rich.table import Table

from benchmarks.accuracy.balance import loads_path
from benchmarks.accuracy.published import (
    IN_TURN,
    NORMAL,
    Case,
    balanced,
    cuts_of,
    instance_of,
    one_node,
    predicted_s,
    prepared,
    read_published,
)
from planner.capacity.size import Wanted, kinds_of, size
from planner.cost.kv_cache import kv_bytes_per_sequence
from planner.cost.step import predict
from planner.inputs.deployment import load_deployment
from planner.inputs.parameters import count_parameters
from planner.inputs.precision import stored_bytes
from planner.inputs.units import format_bytes, format_count
from planner.plan.split import Split
from planner.rules.ruled import all_ruled
from planner.solve.watch import NoWatch

_BATCHES: Final = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
"""Sequences per GPU that are tried; users are served fastest where there are fewer of them than GPUs."""
_ACCEPTED: Final = 0.8
_NARROW: Final = 8
"""EP that 8 B200 can have, too: the fp4 pairs tell where wider ones win, which alone set GB200 and B200 apart."""
_TIE: Final = 0.01
"""Predictions nearer than this tell nothing apart."""


def rate(case: Case, loads: Path | None = None) -> float:
    """Predicted tokens per second and GPU with the stated split, refused drafts left out."""
    work = instance_of(case).workload
    return case.tokens_per_gpu / work.tokens_per_sequence * work.tokens_gained / predicted_s(case, loads)


def best_rate(topologies: Sequence[str], user_tok_s: float, wider_than: int = 0, **given: Any) -> float:
    """Most tokens per second and GPU of any split and batch on these machines, so fast for each user.

    Args:
        topologies: the machines.
        user_tok_s: tokens per second of a user, at least.
        wider_than: splits with an expert parallelism of so much or less are left out.
        given: formats and drafts.
    """
    every = (one for topology in topologies for one in _best_of_batches(topology, tuple(given.items())))
    return max((found for found, user, ep in every if user >= user_tok_s and ep > wider_than), default=0.0)


@cache
def _best_of_batches(topology: str, given: tuple[tuple[str, Any], ...]) -> tuple[tuple[float, float, int], ...]:
    """Rate, tokens per second of a user, and EP of every batch and split that fits, without stages and copies."""
    weights, drafts = (dict(given).get(name, usual) for name, usual in (("weights", "fp8_block"), ("drafts", 0)))
    found = []
    for batch in _BATCHES:
        whole, space = prepared(_decode(topology, max(1, int(batch)), weights, drafts))
        fewer = whole.workload.model_copy(update={"tokens_per_gpu": batch * (1 + drafts)})  # a file has whole numbers
        instance = replace(whole, workload=fewer)
        for one in all_ruled(instance, replace(space, pins={"pp": 1, "edp": 1})):
            if one.is_feasible:
                step_s = predict(one.cost, cuts_of(one.cost), balanced(one.cost)).step_s
                user = instance.workload.tokens_gained / step_s
                found.append((batch * user, user, one.split.ep))
    return tuple(found)


def _decode(topology: str, batch: int, weights: str, drafts: int) -> Case:
    """DeepSeek-R1 with prompts and answers of 1,024 tokens, halfway through."""
    more: dict[str, Any] = {"draft_tokens": drafts, "acceptance": f"{_ACCEPTED:.0%}"} if drafts else {}
    tokens, precision = batch * (1 + drafts), {"weights": weights}
    return Case("", topology, "decode", tokens, 1024 + 512, 1, precision=precision, engine=None, **more)


# --- pairs ------------------------------------------------------------------------------------------

_H100_DECODE: Final = Case("", "9 x hgx-h100", "decode", 256, 2000, 72, 32, IN_TURN, engine=None)
_H100_PREFILL: Final = Case("", "4 x hgx-h100", "prefill", 16384, 4096, 32, 32, NORMAL, engine=None)


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
    yield from _stated(got, loads_path(data))
    yield from _at_a_speed(got)


def _gb200(gpus: int, weights: str) -> Case:
    """Prefill on some GPUs of a rack."""
    machine, kernel = one_node("gb200", gpus, "nvlink-5"), {"kernel": "nvlink-one-sided"}
    return Case("", machine, "prefill", 16384, 2048, gpus, 0, kernel, {"weights": weights}, engine=None)


def _stated(got: dict[str, Any], loads: Path) -> Iterator[Pair]:
    """Pairs of systems whose splits are stated; `loads` for those without copies and balancer."""
    h100 = got["sglang-h100-decode-2k"]["output_tok_s_per_node"] / 8
    h100_prefill = got["sglang-h100-prefill-4096"]["input_tok_s_per_node"] / 8
    even = got["sglang-h100-prefill-4096-perfect-eplb"]["input_tok_s_per_node"] / 8
    gb200 = got["sglang-gb200-p2-prefill"]
    decoded, prefilled = rate(_H100_DECODE), rate(_H100_PREFILL)
    rack = replace(_H100_DECODE, topology="12 x gb200-nvl72", ep=48, communication={"kernel": "nvlink-one-sided"})
    yield Pair(
        "GPU and width, decode",
        ("48 GB200, EP48", "72 H100, EP72"),
        (got["sglang-gb200-p1-decode"]["output_tok_s_per_gpu"], h100),
        (rate(rack), decoded),
        "batch of the GB200 not stated: that of the other; copies: as many as 48 equal ranks need",
    )
    live = replace(_H100_DECODE, topology="18 x hgx-h800", ep=144, tokens_per_gpu=88, context_length=4989)
    yield Pair(
        "GPU and nodes, decode",
        ("144 H800, EP144", "72 H100, EP72"),
        (got["ds-prod-decode"]["output_tok_s_per_node"] / 8, h100),
        (rate(live), decoded),
        "live traffic; batch of the H800 as implied by its rates, 88",
    )
    dies = Case("", "20 x cloudmatrix-384", "decode", 48, 4096, 320, 64, precision={"weights": "int8"}, engine=None)
    yield Pair(
        "GPU and width, decode",
        ("160 Ascend 910C, EP320", "72 H100, EP72"),
        (got["cloudmatrix-decode"]["output_tok_s_per_npu"], h100),
        (2 * rate(dies), decoded),
        "two dies are one NPU; copies: as many as 320 ranks need",
    )
    yield Pair(
        "GPU, prefill, balanced",
        ("32 H800, EP32", "32 H100, EP32"),
        (got["ds-profile-prefill"]["input_tok_s_per_node"] / 8, even),
        (rate(replace(_H100_PREFILL, topology="4 x hgx-h800")), prefilled),
        "two engines",
    )
    h20 = replace(_H100_PREFILL, topology="1 x hgx-h20", tokens_per_gpu=2048, ep=1, redundant=0, communication={})
    yield Pair(
        "EP against TP, prefill",
        ("8 H20, TP8", "32 H100, EP32"),
        (got["h20-prefill-tp8"]["input_tok_s_per_node"] / 8, h100_prefill),
        (rate(replace(h20, split=Split(8, 1, 1, 1, 8))), prefilled),
        "batch of the H20 not stated: 16,384 tokens over all GPUs",
    )
    four = rate(_gb200(4, "fp8_block"), loads)
    yield Pair(
        "GPU and width, prefill",
        ("4 GB200, EP4, fp8", "32 H100, EP32"),
        (gb200["input_tok_s_per_gpu_fp8"], h100_prefill),
        (four, prefilled),
        "batch of the GB200 not stated: that of the other",
    )
    yield Pair(
        "format and width, prefill",
        ("2 GB200, EP2, nvfp4", "4 GB200, EP4, fp8"),
        (gb200["input_tok_s_per_gpu_nvfp4"], gb200["input_tok_s_per_gpu_fp8"]),
        (rate(_gb200(2, "nvfp4"), loads), four),
        "batch not stated: 16,384 tokens per GPU",
    )


def _at_a_speed(got: dict[str, Any]) -> Iterator[Pair]:
    """Pairs of the best systems that give each user so many tokens per second."""
    fp8 = got["inferencex-r1-h100-b200"]
    for index, speed in enumerate(fp8["tok_s_user"]):
        yield Pair(
            f"GPU, {speed} tok/s for each user, fp8",
            ("B200", "H100"),
            (fp8["tok_s_per_gpu"]["B200"][index], fp8["tok_s_per_gpu"]["H100"][index]),
            (best_rate(["1 x hgx-b200"], speed), best_rate(["2 x hgx-h100"], speed)),
            "measured: prompts included; predicted: decode alone",
        )
    fp4 = got["inferencex-r1-gb200-vs-b200"]
    given: dict[str, Any] = {"weights": "nvfp4", "drafts": 1}
    above = fp4["b200_wins_above_tok_s_user"]
    for speed, measured in ((0, (fp4["peak"]["GB200"], fp4["peak"]["B200"])), (above + 1, (0.0, 1.0))):
        racks = [f"{trays} x gb200-nvl72" for trays in (4, 8)]
        yield Pair(
            f"GPU and width, {f'above {above}' if speed else 'any'} tok/s for each user, fp4",
            ("GB200, EP above 8, up to 32", "8 B200, EP up to 8"),
            measured,
            (best_rate(racks, speed, _NARROW, **given), best_rate(["1 x hgx-b200"], speed, **given)),
            f"drafts not stated: one, {_ACCEPTED:.0%} accepted",
        )


LEFT_OUT: Final = {
    "glm52-b300-prefill": "ranked by `accuracy`",
    "inferencex-r1-gb200-vs-b200 at 125 tok/s": "ranked by `accuracy`",
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
        case = Case("", "1 x hgx-h100", "decode", 16, context, 1, precision={"weights": weights}, engine=None)
        with TemporaryDirectory() as folder:
            path = Path(folder) / "deployment.yaml"
            path.write_text(yaml.safe_dump(case.deployment()), encoding="utf-8")
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
    if data is None or not (data / "published_cases.json").is_file() or not loads_path(data).is_file():
        console.print("pairs: needs published_cases.json and the recorded loads of DeepSeek-V3; give --data")
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
