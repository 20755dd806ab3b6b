"""Sizes: known least counts, reasons, and that easier never needs more."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from planner.capacity.jobs import job_of, plan_of
from planner.capacity.pair import Requests, kv_transfer, pair
from planner.capacity.size import Answer, Kind, Point, Sizes, Wanted, kinds_of, size
from planner.capacity.transfer import way_out
from planner.cost.prepare import load
from planner.errors import UsageError
from planner.inputs.deployment import Deployment
from planner.inputs.edits import edited, on_machine, parse_setting, with_tokens
from planner.solve.watch import NoWatch
from planner.solve.workers import Workers
from tests import building
from tests.building import EXAMPLES

MOST = 4


def deployment(*settings: str) -> Deployment:
    """Mixtral in decode, nothing pinned but data-parallel attention and whole experts: few splits to look at."""
    fixed = ("solve.split={tp: 1, pp: 1, etp: 1}", "workload.context_length=1024")
    return edited(load(EXAMPLES / "mixtral-4gpu" / "deployment.yaml"), [parse_setting(t) for t in (*fixed, *settings)])


def kind(memory: str = "80 GiB", inner: str = "100 GB/s", outer: str = "20 GB/s", hbm: str = "2 TB/s") -> Kind:
    """Nodes of two GPUs."""
    card = building.gpu(memory=memory, bf16="300 TFLOP/s", hbm=hbm)
    return Kind("pair", building.topology(2, 2, inner=inner, outer=outer, of=card).file)


def sized(wanted: Wanted, of: Kind | None = None, asked: Deployment | None = None) -> Answer:
    return size(asked or deployment(), [of or kind()], wanted, MOST, NoWatch()).answers[0]


def test_the_least_nodes_for_the_weights() -> None:
    """Mixtral's experts in bf16: 32 layers x 8 x 3 x 4096 x 14336 x 2 B = 84 GiB over all GPUs, the rest on each."""
    answer = sized(Wanted(sequences=1), kind(memory="48 GiB"))
    assert answer.point is not None
    assert answer.point.nodes == 2
    assert answer.one_less is not None
    assert "no split of 2 GPUs fits" in answer.one_less.why_not
    assert "needs" in answer.one_less.why_not
    single = sized(Wanted(sequences=1), kind(memory="80 GiB"))
    assert single.point is not None
    assert (single.point.nodes, single.one_less) == (1, None)


def test_the_smallest_batch_that_reaches_a_rate() -> None:
    """One token less per GPU does not reach it; and where steps may not be so long, that is the reason told."""
    found = size(deployment(), [kind()], Wanted(tokens_per_s=2000.0), MOST, NoWatch())
    point = found.answers[0].point
    assert point is not None and point.figures is not None  # noqa: PT018
    assert point.figures.tokens_per_s >= 2000
    smaller = [one for one in found.points if one.nodes == point.nodes and one.tokens_per_gpu < point.tokens_per_gpu]
    assert all(one.figures is None or one.figures.tokens_per_s < 2000 for one in smaller)
    exact = on_machine(deployment(), kind().of(point.nodes), "pair")
    least = point.tokens_per_gpu - max(1, point.tokens_per_gpu // 16)
    less = plan_of(job_of(with_tokens(exact, max(1, least)), Path("p.json")), Workers(cores=1), NoWatch())
    assert less.predicted.tokens_per_s < 2000 or point.tokens_per_gpu == 1


def test_a_rate_out_of_reach_is_told_after_two_batches_of_each_count() -> None:
    found = size(deployment(), [kind()], Wanted(tokens_per_s=1e30), MOST, NoWatch())
    assert found.answers[0].point is None
    assert found.answers[0].looked_at == MOST
    assert len(found.points) == 2 * MOST
    assert "out of reach" in found.points[-1].why_not


def test_a_rate_that_more_nodes_reach_keeps_all_batches_of_fewer() -> None:
    reached = sized(Wanted(tokens_per_s=2000.0)).point
    assert reached is not None and reached.figures is not None  # noqa: PT018
    found = size(deployment(), [kind()], Wanted(tokens_per_s=1.5 * reached.figures.tokens_per_s), MOST, NoWatch())
    assert not any("out of reach" in point.why_not for point in found.points)


def test_why_one_node_less_does_not_do() -> None:
    slow = sized(Wanted(sequences=64, max_step_s=1e-6))
    assert slow.point is None
    assert slow.one_less is not None
    assert "per output token, 1.00 us allowed" in slow.one_less.why_not
    assert slow.looked_at == MOST


def nodes(answer: Answer) -> int:
    return MOST + 1 if answer.point is None else answer.point.nodes


@pytest.mark.parametrize("seed", range(5))
def test_easier_never_needs_more(seed: int) -> None:
    """More memory, faster links, faster memory, or less to do."""
    rng = np.random.default_rng(seed)
    memory, inner, outer = int(rng.integers(26, 90)), int(rng.integers(20, 200)), int(rng.integers(2, 50))
    wanted = Wanted(sequences=int(rng.integers(1, 200)), max_step_s=float(rng.uniform(0.02, 0.2)))
    base: dict[str, Any] = {"memory": f"{memory} GiB", "inner": f"{inner} GB/s", "outer": f"{outer} GB/s"}
    least = sized(wanted, kind(**base))
    easier = [
        {**base, "memory": f"{memory + 20} GiB"},
        {**base, "inner": f"{2 * inner} GB/s", "outer": f"{2 * outer} GB/s"},
        {**base, "hbm": "4 TB/s"},
    ]
    for change in easier:
        assert nodes(sized(wanted, kind(**change))) <= nodes(least)
    assert wanted.sequences is not None
    assert nodes(sized(replace(wanted, sequences=max(1, wanted.sequences // 2)), kind(**base))) <= nodes(least)
    if least.point is not None and least.point.nodes > 1:
        assert least.one_less is not None
        assert least.one_less.nodes == least.point.nodes - 1
        assert not least.one_less.does
        assert least.one_less.why_not


def test_the_front_by_hand() -> None:
    def point(rate: float, time_s: float) -> Point:
        base = sized_point.figures
        assert base is not None
        figures = replace(base, tokens_per_s_per_gpu=rate)
        return replace(sized_point, figures=figures, time_s=time_s)

    answer = sized(Wanted(sequences=1))
    assert answer.point is not None
    sized_point = answer.point
    points = (point(3, 1.0), point(2, 2.0), point(5, 2.0), point(5, 3.0), point(9, 9.0), point(1, 0.5))
    front = Sizes(Wanted(sequences=1), "decode", (), points).front
    assert [(one.time_s, one.figures.tokens_per_s_per_gpu) for one in front if one.figures] == [
        (0.5, 1),
        (1.0, 3),
        (2.0, 5),
        (9.0, 9),
    ]


def test_catalogues(tmp_path: Path) -> None:
    found = kinds_of(deployment(), ["hgx-h100", "gb200-nvl72"])
    assert [one.of(2).num_gpus for one in found] == [16, 8]
    assert found[0].of(3).num_nodes == 3
    (own,) = kinds_of(deployment(), [])
    assert own.of(1).num_gpus == 4
    mixed = tmp_path / "mixed.yaml"
    mixed.write_text(
        "schema: ep-plan/topology/1\n"
        "groups: [{gpu: h100-sxm, nodes: 1, gpus_per_node: 8}, {gpu: h200-sxm, nodes: 1, gpus_per_node: 8}]\n"
        "links: [{level: node, bandwidth: 450 GB/s, latency: 3 us}, {level: c, bandwidth: 50 GB/s, latency: 9 us}]\n"
    )
    with pytest.raises(UsageError, match="nodes that differ"):
        kinds_of(deployment(), [str(mixed)])


def test_a_pair_by_hand() -> None:
    """KV of a request: 32 layers x 2 x 8 heads x 128 x 2 B a token, over one port between nodes."""
    requests = Requests(1000, 100, 2.0)
    (one,) = pair(deployment("workload.phase=prefill"), deployment(), [kind()], requests, MOST, NoWatch())
    assert one.prefill.point is not None and one.decode.point is not None  # noqa: PT018
    assert one.prefill.point.figures is not None and one.decode.point.figures is not None  # noqa: PT018
    assert one.prefill.point.figures.tokens_per_s >= 2000
    assert one.decode.point.figures.tokens_per_s >= 200
    assert one.transfer is not None
    assert one.transfer.bytes == 1000 * 32 * 2 * 8 * 128 * 2
    made = deployment("workload.phase=prefill")
    reach = made.collectives.collective_reach.scale_out
    assert one.transfer.seconds == pytest.approx(one.transfer.bytes / (20e9 * reach) + 10e-6)
    sent = 2.0 * one.transfer.bytes / (20e9 * reach * one.prefill.point.gpus)
    assert one.transfer.link_share == pytest.approx(sent)
    assert kv_transfer(made, kind(), one.prefill.point, requests) == one.transfer
    first, split = one.prefill.point.figures, re.search(r"dp=(\d+)", one.prefill.point.figures.split)
    assert split is not None
    steps = -(-1000 * int(split[1]) // (one.prefill.point.tokens_per_gpu * one.prefill.point.gpus))
    assert steps > 1  # a rank has less than a prompt in a step
    assert first.time_to_first_token_s == pytest.approx(first.step_s * steps)
    assert one.ttft_s == pytest.approx(first.step_s * steps + one.transfer.seconds)
    together = one.aggregated
    assert together.point is not None and together.point.figures is not None  # noqa: PT018
    assert 0 < together.prefill_share < 1
    assert together.point.figures.tokens_per_s * (1 - together.prefill_share) >= 200 * (1 - 1e-9)


def test_what_all_can_send_passes_the_uplinks() -> None:
    """A port of 20 GB/s for each of 2 GPUs, 4:1 into the fabric: 5 GB/s each where all send, 10 for one alone."""
    made, free = deployment("workload.phase=prefill"), kind().one
    inside, outside = free.links
    narrow = free.model_copy(update={"links": (inside, outside.model_copy(update={"oversubscription": 4.0}))})
    reach = made.collectives.collective_reach.scale_out
    found = [way_out(made, Kind("pair", file).of(2), 10**9) for file in (free, narrow)]
    assert [one.bytes_per_s_per_gpu for one in found] == pytest.approx([20e9 * reach, 5e9 * reach])
    assert [one.seconds for one in found] == pytest.approx([1 / (20 * reach) + 10e-6, 1 / (10 * reach) + 10e-6])


def test_in_turn_prefill_takes_the_batch_that_puts_most_through() -> None:
    """Not the smallest that would do by itself: what is left of the time is decode's."""
    made, requests = deployment("workload.phase=prefill"), Requests(1000, 100, 2.0)
    (one,) = pair(made, deployment(), [kind()], requests, MOST, NoWatch())
    assert one.prefill.point is not None and one.prefill.point.figures is not None  # noqa: PT018
    assert one.aggregated.point is not None
    machine = on_machine(made, kind().of(one.aggregated.point.nodes), "pair")
    rates = []
    for tokens in (500, 1000, 2000, 4000, 8000):
        asked = edited(with_tokens(machine, tokens), [parse_setting("workload.context_length=1000")])
        rates.append(plan_of(job_of(asked, Path("p.json")), Workers(cores=1), NoWatch()).predicted.tokens_per_s)
    assert one.aggregated.prefill_share == pytest.approx(2000 / max(rates), rel=0.05)
    assert one.aggregated.prefill_share < 0.9 * 2000 / one.prefill.point.figures.tokens_per_s


def test_the_first_token_waits_for_the_cache_to_move() -> None:
    """The transfer alone takes longer than is allowed, so that no batch and no machine does."""
    made = deployment("workload.phase=prefill")
    free = pair(made, deployment(), [kind()], Requests(1000, 100, 2.0), MOST, NoWatch())[0]
    assert free.transfer is not None
    short = Requests(1000, 100, 2.0, max_ttft_s=free.transfer.seconds)
    (one,) = pair(made, deployment(), [kind()], short, 2, NoWatch())
    assert one.prefill.point is None
    assert one.ttft_s is None
    assert one.prefill.one_less is not None
    assert "first token after" in one.prefill.one_less.why_not


@pytest.mark.parametrize("limit", [0.05, 0.2, 1.0])
def test_prompts_are_through_in_time(limit: float) -> None:
    """A larger batch takes a prompt in fewer steps: a small one that is too slow is not the last word."""
    made = deployment("workload.phase=prefill")
    answer = sized(Wanted(tokens_per_s=200.0, max_ttft_s=limit), kind(), made)
    if answer.point is None:
        assert answer.one_less is not None
        assert "first token after" in answer.one_less.why_not
        return
    assert answer.point.ttft_s is not None
    assert answer.point.ttft_s <= limit
