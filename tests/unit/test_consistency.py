"""A trace against the model that it is said to come from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from planner.errors import Problem
from planner.trace.consistency import against_model, not_routed, suspicions
from planner.trace.native import read_trace
from planner.trace.trace import CountTrace
from planner.trace.windows import cut
from tests import building

MODEL = building.model(experts=8, top_k=2, layers=4, dense_layers=2)  # MoE layers 2..5


def problems(layer_ids: list[int], *, experts: int = 8, top_k: int = 2) -> list[Problem]:
    """What a trace of these layers has against the model."""
    counts = np.ones((1, len(layer_ids), experts), dtype=np.int64)
    made = CountTrace(Path("trace.npz"), experts, top_k, np.array(layer_ids, dtype=np.int64), counts, ("all",))
    return against_model(made, MODEL)


@pytest.mark.parametrize("layer_ids", [[2, 3, 4, 5], [3], [2, 5]])
def test_some_or_all_moe_layers_fit(layer_ids: list[int]) -> None:
    assert problems(layer_ids) == []


@pytest.mark.parametrize(
    ("layer_ids", "shown", "hint"),
    [
        ([0, 1, 2, 3], "layers 0, 1 are not MoE layers", "numbered by MoE layer?"),
        ([0, 1, 2, 3, 4, 5], "layers 0, 1 are not MoE layers", "rows of dense layers are filler"),
        ([4, 5, 6], "layer 6 is not a MoE layer", "layer_ids are hidden-layer indices"),
        (list(range(6, 20)), "layers 6, 7, 8, 9, 10, 11, ... are not", "layer_ids are hidden-layer indices"),
    ],
)
def test_layers_that_are_not_moe(layer_ids: list[int], shown: str, hint: str) -> None:
    (only,) = problems(layer_ids)
    assert only.message.startswith(shown)
    assert only.message.endswith("of small (MoE: 2..5)")
    assert only.hint.startswith(hint)
    assert str(only.where) == "trace.npz: layer_ids"


def test_more_experts_point_to_redundant_ones() -> None:
    (only,) = problems([2], experts=10)
    assert only.message == "10 experts, but small has 8"
    assert "redundant experts?" in only.hint
    (fewer,) = problems([2], experts=6)
    assert (fewer.message, fewer.hint) == ("6 experts, but small has 8", "")


def test_everything_that_disagrees_is_told() -> None:
    found = problems([0], experts=4, top_k=1)
    assert [str(problem.where) for problem in found] == [
        "trace.npz: num_experts",
        "trace.npz: expert_ids",
        "trace.npz: layer_ids",
    ]
    assert found[1].message == "top-1 routing, but small chooses 2 experts per token"


def counts(layers: int = 4, tokens: int = 4000) -> CountTrace:
    """Two windows in which every layer sees the same tokens, two choices each."""
    share = np.random.default_rng(0).dirichlet(np.ones(8), size=(2, layers))
    made = np.random.default_rng(1).multinomial(2 * tokens, share)
    return CountTrace(Path("trace.npz"), 8, 2, np.arange(2, 2 + layers), made, ("one", "two"))


def test_good_counts_raise_no_suspicion() -> None:
    assert suspicions(counts()) == ()
    slight = counts(tokens=400_000)
    slight.counts_SLE[0, 1, 3] += 7
    assert suspicions(slight) == ()  # 7 of 800,000


def test_suspicions() -> None:
    often, dropped, shared = counts(), counts(), counts()
    often.counts_SLE[:] *= 4
    assert "multiples of 4 [double-count]" in suspicions(often)[0]
    dropped.counts_SLE[1, 2] //= 2
    assert "two: " in suspicions(dropped)[0]
    assert "choices in layer 4, but 8,000 in others (1 such rows) [token-sum]" in suspicions(dropped)[0]
    shared.counts_SLE[:, :, 0] += 1
    assert "8,001 choices in layer 2 are not a multiple of top-2 (8 such rows) [token-sum]" in suspicions(shared)[0]


@pytest.mark.parametrize("per_token", [False, True])
def test_a_dense_layer_refuses_a_deployment(tmp_path: Path, per_token: bool) -> None:
    """Zeros of an unwritten layer, once as ids and once as counts: 100 tokens that chose expert 0 twice."""
    good = counts()
    path = tmp_path / "trace.npz"
    if per_token:
        ids = np.tile([[1, 2], [0, 0]], (100, 1, 1))
        np.savez(path, expert_ids=ids, layer_ids=[2, 4], num_experts=8)
    else:
        good.counts_SLE[:, 1] = [200, 0, 0, 0, 0, 0, 0, 0]
        np.savez(path, counts=good.counts_SLE, layer_ids=[2, 4, 5, 6], num_experts=8, topk=2)
    trace = read_trace(path).trace
    (problem,) = not_routed(cut([trace], "decode", 16), [trace])
    assert "layers 4: every token chose expert 0 only, 2 times each [dense-layer]" in problem.message
    assert "ep-plan trace import" in problem.hint
