"""A trace against the model that it is said to come from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from planner.errors import Problem
from planner.trace.consistency import against_model
from planner.trace.trace import CountTrace
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
        ([4, 5, 6], "layers 6 are not MoE layers", "layer_ids are hidden-layer indices"),
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
