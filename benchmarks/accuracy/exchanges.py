"""Published dispatches and combines, predicted with the shipped kernel profiles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np

from benchmarks.accuracy.published import Case, Outcome, Published, cost_of
from benchmarks.accuracy.traffic_points import visited

TOP_K: Final = 8
EXPERTS: Final = 256
HIDDEN: Final = 7168
FIRST_MOE_LAYER: Final = 3
NORMAL_TOKENS: Final = 4096
DRAWN_TOKENS: Final = 1 << 15
NODE_LIMIT: Final = 4
"""Nodes that DeepSeek's router lets a token use."""
_WIDER: Final = {"fp8": (1 + 4 / 128) / 2, "bf16": 1.0}
"""Bytes of a format over those of bf16, as DeepEP's tests count them."""


@dataclass(frozen=True)
class Exchange:
    """A dispatch and a combine with their conditions; None: not measured."""

    case: str
    kernel: str
    node: str
    node_gpus: int
    ep: int
    tokens: int
    dispatch_us: float
    combine_us: float | None
    precision: dict[str, Any] = field(default_factory=lambda: {"weights": "fp8_block"})

    @property
    def limited(self) -> bool:
        """Whether tokens may use some nodes only, which uniform choice does not know."""
        return self.kernel == "deepep-normal" and self.ep // self.node_gpus > NODE_LIMIT

    def predicted_us(self) -> tuple[float, float]:
        """Dispatch and combine."""
        given: dict[str, Any] = {"communication": {"kernel": self.kernel}, "precision": self.precision}
        nodes = self.ep // self.node_gpus
        case = Case(self.case, f"{nodes} x {self.node}", "decode", self.tokens, 1024, self.ep, **given)
        if not self.limited:
            return _one_layer_us(case, None)
        with TemporaryDirectory() as folder:
            return _one_layer_us(case, write_limited(Path(folder) / "limited.npz", nodes))


def _one_layer_us(case: Case, trace: Path | None) -> tuple[float, float]:
    cost = cost_of(case, trace)
    stage = cost.stages[0]
    times = stage.moe.layer(cost.instance.loads[0], cost.linear_P(stage))
    return float(times.dispatch_S.mean()) * 1e6, float(times.combine_S.mean()) * 1e6


def write_limited(path: Path, nodes: int) -> Path:
    """A trace of one layer: tokens that choose `NODE_LIMIT` nodes, then experts there, all alike."""
    rng = np.random.default_rng(0)
    held = EXPERTS // nodes
    node_TN = rng.permuted(np.tile(np.arange(nodes), (DRAWN_TOKENS, 1)), axis=1)[:, :NODE_LIMIT]
    there_TK = rng.permuted(np.tile(np.arange(NODE_LIMIT * held), (DRAWN_TOKENS, 1)), axis=1)[:, :TOP_K]
    expert_TK = np.take_along_axis(node_TN, there_TK // held, axis=1) * held + there_TK % held
    np.savez_compressed(
        path,
        allow_pickle=False,
        expert_ids=expert_TK[:, None].astype(np.int16),
        num_experts=np.int32(EXPERTS),
        layer_ids=np.array([FIRST_MOE_LAYER]),
    )
    return path


def read_exchanges(published: Published) -> Iterator[Exchange]:
    """All that the file has."""
    for case, kernel, node, gpus in (
        ("deepep-v1-ll", "deepep-low-latency", "hgx-h800", 8),
        ("aic-deepep-ll-h100", "deepep-low-latency", "hgx-h100", 8),
        ("trt-onesided-gb200", "nvlink-one-sided", "gb200-nvl72", 4),
    ):
        precision = {"weights": "fp8_block"} | ({"dispatch": "bf16"} if gpus == 4 else {})
        of = published[case]
        tokens = of["batch_tokens_per_gpu"]
        counts: Sequence[int] = tokens if isinstance(tokens, list) else [tokens]
        for index, ep in enumerate(of["parallelism"]["ep"]):
            for column, count in enumerate(counts):
                found = [of["measured"][f"{way}_us"] for way in ("dispatch", "combine")]
                times = [table[str(ep)][column] if isinstance(table, dict) else table[index] for table in found]
                yield Exchange(case, kernel, node, gpus, ep, count, times[0], times[1], precision)
    yield from _quantised(published["trt-onesided-gb200"]["measured"])
    yield from _normal(published["deepep-v1-normal"])


def _quantised(measured: dict[str, Any]) -> Iterator[Exchange]:
    for form in ("mxfp8", "nvfp4"):
        precision = {"weights": "fp8_block", "dispatch": form}
        seconds = measured[f"{form}_dispatch_us_ep8_2048"]
        yield Exchange("trt-onesided-gb200", "nvlink-one-sided", "gb200-nvl72", 4, 8, 2048, seconds, None, precision)


def _normal(of: dict[str, Any]) -> Iterator[Exchange]:
    """Times from bandwidths: what DeepEP's tests divide by the time (tests/test_intranode.py and test_internode.py).

    Inside a node that is what a GPU receives, between nodes a copy for each node that a token visits; its own counts.
    """
    for index, ep in enumerate(of["parallelism"]["ep"]):
        num_bytes = NORMAL_TOKENS * 2.0 * HIDDEN * copies_counted(ep)
        dispatch, combine = (
            num_bytes * _WIDER[form] / (of["measured"][f"{way}_GBps"][index] * 1e3)
            for way, form in (("dispatch", "fp8"), ("combine", "bf16"))
        )
        yield Exchange("deepep-v1-normal", "deepep-normal", "hgx-h800", 8, ep, NORMAL_TOKENS, dispatch, combine)


def copies_counted(ep: int) -> float:
    """Copies of a token that DeepEP's bandwidths count: ranks visited in one node, nodes visited by several."""
    nodes = ep // 8
    if nodes == 1:
        return ep * visited(TOP_K, EXPERTS, ep)
    used = min(nodes, NODE_LIMIT)
    return used * visited(TOP_K, EXPERTS * used // nodes, used)


def judged(published: Published) -> Iterator[tuple[Exchange, list[Outcome]]]:
    """Microseconds of dispatch, and of combine where it was measured."""
    for one in read_exchanges(published):
        measured = [one.dispatch_us] + ([] if one.combine_us is None else [one.combine_us])
        pairs = zip(measured, one.predicted_us(), strict=False)
        yield one, [Outcome(one.case, there, here) for there, here in pairs]


def row(one: Exchange, found: Sequence[Outcome]) -> tuple[str, ...]:
    """Library and machine, EP, tokens, and of dispatch and combine: measured, predicted, error."""
    form = one.precision.get("dispatch", "fp8")
    cells = [cell for each in found for cell in (f"{each.measured:,.0f} / {each.predicted:,.0f} us", each.text)]
    cells += ["-"] * (4 - len(cells))
    return f"{one.kernel}, {one.node}", f"{one.ep}", f"{one.tokens:,}", form, *cells
