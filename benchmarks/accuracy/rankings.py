"""Published questions of which is faster: time (or inverse throughput) without over with, measured and predicted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from benchmarks.accuracy.balance import GAIN
from benchmarks.accuracy.published import FP4, IN_TURN, ONE_BATCH, Case, Outcome, Published, one_node, predicted_s
from planner.plan.split import Split


@dataclass(frozen=True)
class Answer:
    """A question with both ratios; above 1 what the question asks for is faster."""

    case: str
    """Id in published_cases.json."""
    question: str
    measured: float | None
    """None: the source gives the sign alone."""
    wins: bool
    """Measured."""
    predicted: tuple[float, ...]
    """Of each machine tried."""

    @property
    def right(self) -> bool:
        """Whether the sign is predicted, on every machine."""
        return all((ratio > 1) == self.wins for ratio in self.predicted)

    def row(self) -> tuple[str, ...]:
        """Case, question, measured, predicted, whether the sign is right."""
        low, high = (f"x {edge:.2f}" for edge in (min(self.predicted), max(self.predicted)))
        found = low if low == high else f"{low} to {high[2:]}"
        measured = f"x {self.measured:.2f}" if self.measured else "faster" if self.wins else "slower"
        return self.case, self.question, measured, found, "right" if self.right else "wrong"


def answers(published: Published, gains: Sequence[Outcome], loads: Path) -> Iterator[Answer]:
    """All questions of the file.

    Args:
        published: the file.
        gains: of EPLB in prefill and decode.
        loads: recorded, for systems without copies and balancer.
    """
    yield from _crossover(published)
    for phase, gain in zip(("prefill", "decode"), gains, strict=True):
        yield _told(GAIN, f"EPLB in {phase}", gain.measured, (gain.predicted,))
    yield from _glm(loads)
    yield _racks(published)
    yield from _training_splits(published)


def _told(case: str, question: str, measured: float, predicted: tuple[float, ...]) -> Answer:
    return Answer(case, question, measured, measured > 1, predicted)


# --- two micro-batches ----------------------------------------------------------------------------


def _crossover(published: Published) -> Iterator[Answer]:
    name = "sglang-tbo-crossover"
    for sequences in (256, 32):
        plain = Case(name, "9 x hgx-h100", "decode", sequences, 2000, 72, 32, ONE_BATCH)
        gain = predicted_s(plain) / predicted_s(replace(plain, communication=IN_TURN))
        measured = published[name]["measured"][f"tbo_gain_b{sequences}"]
        yield _told(name, f"two micro-batches at {sequences} sequences per GPU", measured, (gain,))


# --- splits of GLM-5.2 on B300 --------------------------------------------------------------------

_GLM: Final = "glm52-b300-prefill"
_GLM_TOKENS: Final = 16384


def _glm_s(split: Split, loads: Path) -> float:
    """Of as many tokens per GPU for every split; the batch is not given. GLM-5.2 has the shape of GLM-5.

    No copies and no balancer are told of: experts lie in order, with the recorded loads of DeepSeek-V3, which has as
    many experts and choices. Where tensor parallelism shares every expert, loads do not matter.
    """
    precision = {"weights": "bf16", "experts": "nvfp4", "kv_cache": "fp8"}
    machine = one_node("b300", split.stage_gpus, "nvlink-5")
    given: dict[str, Any] = {"precision": precision, "engine": "vllm", "model": "glm-5", "split": split}
    return predicted_s(Case(_GLM, machine, "prefill", _GLM_TOKENS, 8192, split.ep, **given), loads)


def _glm(loads: Path) -> Iterator[Answer]:
    fours, pairs = _glm_s(Split(1, 4, 1, 4), loads), _glm_s(Split(1, 2, 1, 2), loads)
    yield _told(_GLM, "dp=2 ep=2 rather than dp=4 ep=4, by the GPU", 1.08, (fours / pairs,))
    sharded, spread = _glm_s(Split(2, 1, 1, 1, 2), loads), _glm_s(Split(2, 1, 1, 2), loads)
    yield Answer(_GLM, "tp=2 with ep=2 rather than tp=2 alone", None, False, (sharded / spread,))


# --- one NVLink domain or nodes of eight ----------------------------------------------------------

_RACKS: Final = "inferencex-r1-gb200-vs-b200"
_SPEED: Final = 125.0
"""Tokens per second that each user gets."""
_SEQUENCES: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


def _racks(published: Published) -> Answer:
    """Decode alone. The drafts are not given: three, 70 % accepted, on both machines."""
    measured = published[_RACKS]["measured"]["tok_s_per_gpu_at_125_tok_s_user"]
    wide = [(f"{gpus // 4} x gb200-nvl72", Split(1, gpus, 1, gpus)) for gpus in (8, 16, 32)]
    boxes = [("1 x hgx-b200", split) for split in (Split(1, 8, 1, 8), Split(8, 1, 1, 8), Split(8, 1, 1, 1, 8))]
    rack, box = (max(_most(topology, split) for topology, split in tried) for tried in (wide, boxes))
    question = "GB200 with ep up to 32 rather than B200 with ep up to 8, at 125 tokens/s for each user"
    return _told(_RACKS, question, measured["GB200"] / measured["B200"], (rack / box,))


def _most(topology: str, split: Split) -> float:
    """Tokens per second and GPU of the largest batch that is fast enough."""
    most = 0.0
    for sequences in _SEQUENCES:
        given: dict[str, Any] = {"precision": FP4, "engine": "tensorrt-llm", "split": split}
        drafts: dict[str, Any] = {"draft_tokens": 3, "acceptance": "70%"}
        case = Case(_RACKS, topology, "decode", 4 * sequences, 1536, split.ep, **given, **drafts)
        gained = 1 + 0.7 + 0.7**2 + 0.7**3
        speed = gained / predicted_s(case)
        if speed < _SPEED:
            return most
        most = sequences * speed
    return most


# --- splits in training ---------------------------------------------------------------------------

_SMART: Final = "smartmoe-split-16gpu"
_A100_NODES: Final = ("hgx-a100", "aws-p4d", "gcp-a2-ultra")
"""The source does not name its network: the sign must be right with each."""
_GPT: Final[dict[str, Any]] = {
    "schema": "ep-plan/model/1",
    "name": "GPT, 16 layers of 16 experts",
    "family": "gpt",
    "hidden_size": 2560,
    "vocab_size": 50304,
    "layers": [
        {
            "count": 16,
            "attention": {"kind": "gqa", "num_heads": 32, "num_kv_heads": 32, "head_dim": 80},
            "ffn": {"kind": "moe", "num_experts": 16, "top_k": 2, "intermediate_size": 10240, "gated": False},
        }
    ],
}
_MICRO: Final = 4
"""Sequences of a micro-batch on each data-parallel rank."""
_SEQUENCES_IN_ALL: Final = 256
_SPLITS: Final = {"EP16": (1, 16, 1), "PP2_EP8": (2, 8, 1), "PP4_EP2_DP2": (4, 2, 2)}
"""Stages, ranks of an expert grid, and copies of it."""


def _forward_s(node: str, name: str) -> float:
    """The forward pass of an iteration, balanced experts."""
    stages, ranks, copies = _SPLITS[name]
    micro_batches = _SEQUENCES_IN_ALL // (ranks * copies * _MICRO)
    split = Split(1, ranks * copies, stages, ranks, 1, copies, micro_batches)
    given: dict[str, Any] = {"precision": {"weights": "bf16"}, "engine": "megatron", "model": _GPT, "split": split}
    tokens = _SEQUENCES_IN_ALL * 1024 // 16
    return predicted_s(Case(_SMART, f"2 x {node}", "prefill", tokens, 1024, ranks, 0, {"kernel": "nccl"}, **given))


def _training_splits(published: Published) -> Iterator[Answer]:
    """Iterations with a capacity limit, so that experts are nearly balanced."""
    for limit, other in (("cap1.2", "PP2_EP8"), ("cap2.4", "PP2_EP8"), ("cap4.8", "PP4_EP2_DP2")):
        times = published[_SMART]["measured"]["iteration_ms_median"][limit]
        ratios = tuple(_forward_s(node, "EP16") / _forward_s(node, other) for node in _A100_NODES)
        yield _told(_SMART, f"{other} rather than EP16, capacity {limit[3:]}", times["EP16"] / times[other], ratios)
