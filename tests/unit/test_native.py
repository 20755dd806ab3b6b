"""A readable .npz that is not a good trace: every fault named with its array and rule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from planner.errors import InputError
from planner.trace.native import read_trace
from planner.trace.trace import CountTrace, TokenTrace
from planner.trace.windows import cut

Array = np.ndarray[Any, Any]
IDS = np.random.default_rng(1).random((30, 2, 8)).argsort(axis=2)[:, :, :2]  # two different experts each
COUNTS = np.ones((3, 2, 8), dtype=np.int64)


def write(tmp_path: Path, **arrays: Any) -> Path:
    """An .npz of those arrays that are not None."""
    path = tmp_path / "trace.npz"
    held: dict[str, Any] = {name: value for name, value in arrays.items() if value is not None}
    np.savez(path, **held)
    return path


def faults(path: Path) -> list[str]:
    """What reading and cutting reports, the path left out."""
    with pytest.raises(InputError) as caught:
        cut([read_trace(path).trace], "decode", 8)
    return [str(problem).removeprefix(f"error: {path}: ") for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_experts": None}, "num_experts: num_experts is missing"),
        ({"num_experts": 8.0}, "num_experts: () of float64 found\n  expected one whole number"),
        ({"num_experts": [8, 8]}, "num_experts: (2,) of int64 found\n  expected one whole number"),
        ({"num_experts": 0}, "num_experts: 0 is not allowed\n  expected 1..65536"),
        ({"num_experts": 2**63 - 1}, "num_experts: 9223372036854775807 is not allowed"),
        (
            {"num_experts": 4, "expert_ids": [[[1, 4]]]},
            "expert_ids: expert id 4 in layer 0 of token 0, but there are 4 experts (0..3)",
        ),
        ({"expert_ids": [[[0, 1], [2, -2]]]}, "expert_ids: expert id -2 in layer 1 of token 0, but there"),
        ({"expert_ids": [[[0, 1], [2, 2]]]}, "expert_ids: expert 2 is chosen twice in layer 1 of token 0\n"),
        ({"expert_ids": [[[0, 1], [-1, -1]]]}, "expert_ids: no expert is chosen in layer 1 by any token of window 0"),
        ({"expert_ids": IDS.astype(float)}, "expert_ids: (30, 2, 2) of float64 found"),
        ({"expert_ids": IDS.astype(bool)}, "expert_ids: (30, 2, 2) of bool found"),
        ({"expert_ids": IDS[0]}, "expert_ids: (2, 2) of int64 found"),
        ({"expert_ids": IDS[:0]}, "expert_ids: (0, 2, 2) of int64 found"),
        ({"layer_ids": [1]}, "layer_ids: (1,) of int64 found"),
        ({"layer_ids": [3, 1]}, "layer_ids: must rise, from 0 or more"),
        ({"layer_ids": [1, 1]}, "layer_ids: must rise, from 0 or more"),
        ({"layer_ids": [-1, 1]}, "layer_ids: must rise, from 0 or more"),
        ({"layer_ids": [0.0, 1.0]}, "layer_ids: (2,) of float64 found"),
        ({"seq_id": np.arange(29)}, "seq_id: (29,) of int64 found\n  expected whole numbers [30]"),
        ({"seq_id": np.array(["a"] * 30)}, "seq_id: (30,) of <U1 found"),
        ({"pos": np.arange(30)}, "pos: pos without seq_id\n  add seq_id [tokens]"),
        ({"step_id": np.zeros((30, 1), int)}, "step_id: (30, 1) of int64 found"),
    ],
)
def test_faults_of_token_traces(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    (only,) = faults(write(tmp_path, **{"expert_ids": IDS, "num_experts": 8, **changes}))
    assert only.startswith(message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"topk": None}, "topk: topk is missing"),
        ({"num_experts": 9}, "counts: 8 columns, but num_experts is 9"),
        ({"counts": COUNTS * 0.5}, "counts: counts must be whole numbers"),
        ({"counts": COUNTS * np.nan}, "counts: counts must be whole numbers"),
        ({"counts": COUNTS * np.inf}, "counts: counts must be whole numbers"),
        ({"counts": COUNTS * 1e300}, "counts: counts must be whole numbers"),
        ({"counts": COUNTS * 2**62}, "counts: counts must be whole numbers"),  # eight of them overflow
        ({"counts": -COUNTS}, "counts: counts must be whole numbers"),
        ({"counts": COUNTS.astype(complex)}, "counts: (3, 2, 8) of complex128 found"),
        ({"counts": COUNTS[0, 0]}, "counts: (8,) of int64 found"),
        ({"counts": COUNTS * [[[1], [0]]]}, "counts: 3 window-layer rows are all zero, first window 0 of layer 1"),
        ({"scenario_names": ["a", "b"]}, "scenario_names: (2,) of <U1 found\n  expected 3 texts"),
        ({"scenario_names": [b"a", b"b", b"c"]}, "scenario_names: (3,) of |S1 found"),
        ({"layer_ids": [0, 1, 2]}, "layer_ids: (3,) of int64 found"),
    ],
)
def test_faults_of_count_traces(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    (only,) = faults(write(tmp_path, **{"counts": COUNTS, "num_experts": 8, "topk": 2, **changes}))
    assert only.startswith(message)


def test_all_faults_of_a_trace_at_once(tmp_path: Path) -> None:
    found = faults(write(tmp_path, expert_ids=IDS, seq_id=np.arange(3), layer_ids=[5, 4], step_id=np.zeros(30)))
    assert [text.split(":")[0] for text in found] == ["seq_id", "step_id", "num_experts", "layer_ids"]


def test_a_file_that_holds_something_else(tmp_path: Path) -> None:
    (only,) = faults(write(tmp_path, weights=IDS, biases=IDS))
    assert only.startswith("not a trace: it holds weights, biases\n  expected expert_ids [tokens, layers, topk]")


def test_unknown_arrays_are_named_in_a_warning(tmp_path: Path) -> None:
    path = write(tmp_path, expert_ids=IDS, num_experts=8, router="x", logits=[1.0])
    assert read_trace(path).warnings == (f"{path}: arrays not known and ignored: logits, router",)


def test_control_characters_of_names_are_read_as_escapes(tmp_path: Path) -> None:
    path = write(tmp_path, expert_ids=IDS, num_experts=8, **{"a\x1b[2J\nb": 1})
    assert read_trace(path).warnings == (f"{path}: arrays not known and ignored: a\\x1b[2J\\nb",)
    (only,) = faults(write(tmp_path, **{"\x1b[2J": 1}))
    assert only.startswith("not a trace: it holds \\x1b[2J\n")
    (only,) = faults(write(tmp_path, **{"\x1b[2J": np.array([None])}))
    assert only.startswith("\\x1b[2J: holds Python objects")
    names = ["a\nb", "\x1b[31mc", "d\u202ee"]
    trace = read_trace(write(tmp_path, counts=COUNTS, num_experts=8, topk=2, scenario_names=names)).trace
    assert isinstance(trace, CountTrace)
    assert trace.names_S == ("a\\nb", "\\x1b[31mc", "d\\u202ee")


def test_known_optional_arrays_bring_no_warning(tmp_path: Path) -> None:
    path = write(
        tmp_path, expert_ids=IDS, num_experts=8, weights=IDS * 0.5, domain_id=np.zeros(30, int), domain_names=["a"]
    )
    assert read_trace(path).warnings == ()


@pytest.mark.parametrize("kind", ["int8", "uint8", "<i2", ">i4", "uint64"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_any_integer_type_and_order_gives_the_same_counts(tmp_path: Path, kind: str, order: Any) -> None:
    expected = np.bincount(IDS[:, 1].reshape(-1), minlength=8)
    path = write(tmp_path, expert_ids=np.array(IDS, dtype=kind, order=order), num_experts=8)
    trace = read_trace(path).trace
    assert isinstance(trace, TokenTrace)
    assert cut([trace], "decode", 8).counts_SLE[:, 1].sum(axis=0).tolist() == expected.tolist()


def test_counts_without_windows_are_one_window(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path, counts=COUNTS[0], num_experts=8, topk=2, layer_ids=[3, 7])).trace
    assert isinstance(trace, CountTrace)
    assert (trace.counts_SLE.shape, trace.names_S, trace.layer_ids_L.tolist()) == ((1, 2, 8), ("window 0",), [3, 7])
