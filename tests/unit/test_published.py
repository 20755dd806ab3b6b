"""Published cases: conditions become seconds, bandwidths become times, and no case is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.accuracy import left_out, rankings, skew
from benchmarks.accuracy.exchanges import DRAWN_TOKENS, Exchange, copies_counted, read_exchanges, write_limited
from benchmarks.accuracy.published import CASES, FLAT_CASES, Case, Outcome, one_node, predicted_s
from planner.plan.split import Split


def case_of(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


def test_a_measured_step_gains_what_its_drafts_gain() -> None:
    """128 sequences per GPU with one draft, 60 % right, at 20,480 tokens/s for 8 GPUs: 204.8 tokens in 80 ms."""
    case = case_of("sglang-h100-decode-mtp-4k/tbo")
    published = {case.id: {"measured": {case.figure: 20480.0}}}
    assert case.measured_s(published) == pytest.approx(0.080)


def test_throughput_by_the_gpu_or_by_the_node() -> None:
    by_gpu = next(case for case in FLAT_CASES if case.figure == "input_tok_s_per_gpu")
    assert by_gpu.measured_s({by_gpu.id: {"measured": {by_gpu.figure: 16384.0}}}) == pytest.approx(1.0)
    by_node = case_of("ds-profile-prefill")
    assert by_node.measured_s({by_node.id: {"measured": {by_node.figure: 16384.0}}}) == pytest.approx(8.0)


def test_no_case_has_a_constant_of_its_own() -> None:
    """A case names conditions only: a deployment of public keys, the same engine profile for all of an engine."""
    allowed = {"schema", "model", "topology", "engine", "precision", "workload", "communication"}
    for case in (*CASES, *FLAT_CASES):
        assert case.deployment().keys() <= allowed
        assert case.communication.keys() <= {"kernel", "overlap"}


def test_a_case_says_its_own_machine_and_split() -> None:
    node = one_node("h100-sxm", 2, "nvlink-4")
    spread = Case("made up", node, "prefill", 64, 64, 2, model="qwen1.5-moe-a2.7b", precision={})
    sharded = Case(
        "made up", node, "prefill", 64, 64, 1, model="qwen1.5-moe-a2.7b", precision={}, split=Split(2, 1, 1, 1, 2)
    )
    assert 0 < predicted_s(spread) < 1
    assert predicted_s(spread) != predicted_s(sharded)


# --- exchanges ------------------------------------------------------------------------------------


def test_deepep_counts_a_copy_for_each_rank_of_one_node_and_each_node_of_several() -> None:
    rng = np.random.default_rng(0)
    chosen_TK = rng.permuted(np.tile(np.arange(256), (20000, 1)), axis=1)[:, :8]
    for ep, units in ((8, 8), (16, 2), (32, 4)):
        seen = np.mean([len(set(row)) for row in (chosen_TK // (256 // units)).tolist()])
        assert copies_counted(ep) == pytest.approx(seen, rel=0.01)


def test_limited_tokens_use_four_nodes_and_all_experts_alike(tmp_path: Path) -> None:
    with np.load(write_limited(tmp_path / "limited.npz", 8)) as file:
        expert_TK = file["expert_ids"][:, 0].astype(int)
    assert len(expert_TK) == DRAWN_TOKENS
    nodes = [set(row) for row in (expert_TK // 32).tolist()]
    assert max(map(len, nodes)) == 4
    assert copies_counted(64) == pytest.approx(np.mean([len(each) for each in nodes]), rel=0.01)
    assert all(len(set(row)) == 8 for row in expert_TK[:1000].tolist())
    assert np.bincount(expert_TK.ravel(), minlength=256).std() < 0.05 * DRAWN_TOKENS * 8 / 256


def test_a_bandwidth_becomes_the_time_of_the_bytes_that_it_counts() -> None:
    """EP16 at 50 GB/s: 4096 tokens of 7168 + 224 bytes, two nodes but for one token in 150: 1.21 ms."""
    ways = {"parallelism": {"ep": [16]}, "measured": {"dispatch_GBps": [50], "combine_GBps": [50]}}
    empty: dict[str, Any] = {"parallelism": {"ep": []}, "batch_tokens_per_gpu": 128, "measured": {}}
    nothing = dict.fromkeys(("deepep-v1-ll", "aic-deepep-ll-h100"), empty)
    onesided = {**empty, "measured": {"mxfp8_dispatch_us_ep8_2048": 1.0, "nvfp4_dispatch_us_ep8_2048": 1.0}}
    found = list(read_exchanges({**nothing, "trt-onesided-gb200": onesided, "deepep-v1-normal": ways}))
    assert found[-1].dispatch_us == pytest.approx(4096 * 7392 * 2 / 50e3, rel=0.005)
    assert found[-1].combine_us == pytest.approx(4096 * 14336 * 2 / 50e3, rel=0.005)
    assert [one.combine_us for one in found[:-1]] == [None, None]


def test_a_router_that_keeps_to_four_nodes_sends_less_between_eight() -> None:
    one = Exchange("made up", "deepep-normal", "hgx-h800", 8, 64, 4096, 1.0, 1.0)
    unlimited = Exchange("made up", "deepep-normal", "hgx-h800", 8, 32, 4096, 1.0, 1.0)
    assert (one.limited, unlimited.limited) == (True, False)
    dispatch, combine = one.predicted_us()
    """A visit to each of 3.2 other nodes by 50 GB/s ports at most: 1.9 ms; without the limit 4.6: 2.8 ms."""
    assert 1900 < dispatch < 2800
    assert combine > 1.9 * dispatch


# --- skew and rankings ----------------------------------------------------------------------------


def test_drawn_loads_are_as_unequal_as_the_law_says() -> None:
    """AIConfigurator's sampler, 32 contiguous ranks, exponent 1.01: max/mean 1.97 of 128 tokens, 2.74 of 16,384."""
    rng = np.random.default_rng(1)
    for tokens, told in ((128, 1.97), (16384, 2.74)):
        loads = [skew.power_law(rng, 1.01, tokens) for _ in range(400)]
        assert all(load.sum() == pytest.approx(8 * tokens) for load in loads)
        found = np.mean([skew.most_loaded(load, 256, balance=False) * 32 / load.sum() for load in loads])
        assert found == pytest.approx(told, rel=0.06)


def test_copies_are_needed_where_one_expert_is_hot() -> None:
    load = np.full(256, 1.0)
    load[0] = 64.0
    assert skew.most_loaded(load, 256, balance=False) == 71.0
    assert skew.most_loaded(load, 256, balance=True) == 71.0
    assert skew.most_loaded(load, 288, balance=True) < 14


def test_skew_by_itself_takes_the_kernel_out() -> None:
    def drawn(alpha: float | None, measured: float, predicted: float) -> tuple[skew.Drawn, Outcome]:
        return skew.Drawn("made up", "h100-sxm", None, 64, alpha, 256, False, measured), Outcome(
            "made up", measured, predicted
        )

    [(one, ratio)] = skew.over_uniform([drawn(None, 1.0, 3.0), drawn(1.2, 2.0, 6.0)])
    assert (one.alpha, ratio.error) == (1.2, 0.0)


def test_an_answer_is_right_if_its_sign_is_right_on_every_machine() -> None:
    assert rankings.Answer("case", "question", 1.5, True, (1.1, 4.0)).right
    wrong = rankings.Answer("case", "question", None, False, (0.9, 1.1))
    assert not wrong.right
    assert wrong.row() == ("case", "question", "slower", "x 0.90 to 1.10", "wrong")


def test_every_case_is_predicted_or_left_out() -> None:
    rest = set(left_out.LEFT_OUT)
    left_out.check({"one", *rest}, {"one"})
    for known, predicted, told in (
        ({"one", "two", *rest}, {"one"}, "neither predicted nor left out: two"),
        ({"one", *rest}, {"one", "llmd-b200-decode"}, "both: llmd-b200-decode"),
        (rest, {"one"}, "not in the file: one"),
    ):
        with pytest.raises(left_out.UnaccountedError, match=told):
            left_out.check(known, predicted)
