"""Maps from slots to experts, in every form that engines load or print."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from planner.errors import InputError
from planner.trace.importers.physical_map import read_physical_map

ROWS = [[0, 1, 2, 0], [2, 1, 0, 1]]
DEVICES = [{"layer_id": 0, "device_list": [{"device_expert": row[:2]}, {"device_expert": row[2:]}]} for row in ROWS]
ASSIGNMENTS = {"record_type": "eplb_initial_mapping", "initial_global_assignments": {"0": ROWS[0], "1": ROWS[1]}}


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"physical_to_logical_map": ROWS}),
        json.dumps(ROWS),
        json.dumps({"moe_layer_count": 2, "layer_list": DEVICES}),
        json.dumps(ASSIGNMENTS) + "\n" + json.dumps({"another": "record"}),
        "num_slots: 4\ninitial_global_assignments:\n  0: [0, 1, 2, 0]\n  1: [2, 1, 0, 1]\n",
    ],
    ids=["SGLang", "lists", "vllm-ascend", "vLLM 41141", "TensorRT-LLM"],
)
def test_forms(tmp_path: Path, text: str) -> None:
    (tmp_path / "map").write_text(text)
    read = read_physical_map(tmp_path / "map")
    assert [read.of(layer).tolist() for layer in (0, 1)] == ROWS
    with pytest.raises(InputError, match="no layer 2 in the map"):
        read.of(2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no map of experts"),
        ("{", "Expecting property name"),
        ("[" * 100_000, "recursion"),
        ("{}", "no map of experts"),
        ("[]", "no layers in the map"),
        ("[[0, 1], []]", "not a list of experts"),
        ("[[0, 1.5]]", "not a list of experts"),
        ("[[0, -2]]", "not a list of experts"),
        ("[[0, 99999999999]]", "not a list of experts"),
        ('{"initial_global_assignments": {"x": [0]}}', "'x' is not a layer"),
        ('{"layer_list": [{"device_list": [{"device_id": 0}]}]}', "device_expert is missing"),
    ],
)
def test_broken_maps(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "map").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_physical_map(tmp_path / "map")
    assert str(tmp_path / "map") in str(caught.value)
