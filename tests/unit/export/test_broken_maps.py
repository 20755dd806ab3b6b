"""Broken maps: each fault is an input error that names the file and the place, never a traceback."""

from __future__ import annotations

import contextlib
import io
import json
import random
from typing import Any

import numpy as np
import pytest

from planner.errors import InputError
from planner.export.fits import check_fits
from planner.export.table import MAPS
from planner.export.write import map_bytes, read_map
from tests.unit.export.layouts import SEEDS, random_layout

TEXT = ["sglang", "tensorrt-llm", "vllm-ascend", "vllm-pr41141", "vllm-pr49572", "vllm-pr34811", "megatron", "csv"]
BINARY = ["omni-infer", "eplb"]


def good(name: str) -> bytes:
    """A file of a format that is in order."""
    for seed in SEEDS:
        layout = random_layout(seed)
        try:
            check_fits(layout, name, MAPS[name], "plan.json")
        except InputError:
            continue
        return map_bytes(layout, name)
    raise AssertionError(name)


def wrong(name: str, data: Any) -> str:
    """The problems of a file."""
    raw = data if isinstance(data, bytes) else json.dumps(data).encode()
    with pytest.raises(InputError) as error:
        read_map(raw, name, "map")
    assert all(problem.where is not None and problem.where.file == "map" for problem in error.value.problems)
    return str(error.value)


@pytest.mark.parametrize("name", [*TEXT, *BINARY])
def test_flipped_and_truncated_files_never_crash(name: str) -> None:
    raw, chance = good(name), random.Random(name)
    for _ in range(300):
        data = bytearray(raw)
        for _ in range(chance.randint(1, 3)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        if chance.random() < 0.3:
            data = data[: chance.randrange(len(data))]
        with contextlib.suppress(InputError):  # anything else is a bug; often the file is still in order
            read_map(bytes(data), name, "map")


@pytest.mark.parametrize("name", [*TEXT, *BINARY])
@pytest.mark.parametrize(
    "raw", [b"", b"\xff\xfe", b"{}", b"[]", b"null", b"[[[[[[", b"a: b: c", b"[1e999]", b"\x00" * 64]
)
def test_rubbish_is_refused(name: str, raw: bytes) -> None:
    wrong(name, raw)


def test_sglang_takes_one_key_alone() -> None:
    told = wrong("sglang", {"physical_to_logical_map": [[0, 1]], "ep_size": 2})
    assert "ep_size" in told
    assert "TypeError" in told
    assert "not a list of experts" in wrong("sglang", {"physical_to_logical_map": [[]]})
    assert "'0' is not an expert" in wrong("sglang", {"physical_to_logical_map": [["0"]]})
    assert "-1 is not an expert" in wrong("sglang", {"physical_to_logical_map": [[0, -1]]})


def test_tensorrt_llm_is_strict() -> None:
    head = b"num_slots: 2\nlayer_updates_per_iter: 0\ninitial_global_assignments:\n"
    assert "'ep_size' is not allowed" in wrong("tensorrt-llm", head + b"  3: [0, 1]\nep_size: 2\n")
    assert "3 slots, but num_slots is 2" in wrong("tensorrt-llm", head + b"  3: [0, 1, 1]\n")
    assert "'x' is not a layer" in wrong("tensorrt-llm", head + b"  x: [0, 1]\n")
    assert "num_slots is missing" in wrong("tensorrt-llm", b"initial_global_assignments: {3: [0, 1]}\n")


def test_vllm_ascend_counts_its_layers() -> None:
    layer = {"layer_id": 0, "device_count": 1, "device_list": [{"device_id": 0, "device_expert": [0]}]}
    assert "but layer_list has 1 layers" in wrong("vllm-ascend", {"moe_layer_count": 2, "layer_list": [layer]})
    assert "device_list is missing" in wrong("vllm-ascend", {"moe_layer_count": 1, "layer_list": [{}]})
    other = {**layer, "device_list": layer["device_list"] * 2}  # type: ignore[operator]
    assert "[1, 2] devices" in wrong("vllm-ascend", {"moe_layer_count": 2, "layer_list": [layer, other]})


def test_vllm_offline_mapping_has_one_record() -> None:
    record = {
        "record_type": "eplb_initial_mapping",
        "version": 1,
        "num_redundant_experts": 0,
        "num_slots": 2,
        "initial_global_assignments": {"0": [1, 0]},
    }
    line = json.dumps(record).encode() + b"\n"
    other = b'{"record_type": "session_metadata"}\n'
    assert read_map(other + line, "vllm-pr41141", "map").rows[0].expert_P.tolist() == [1, 0]
    assert "2 records" in wrong("vllm-pr41141", line + line)
    assert "version 2" in wrong("vllm-pr41141", {**record, "version": 2})
    assert "redundant experts" in wrong("vllm-pr41141", {**record, "num_redundant_experts": 2})


def test_vllm_slots_may_be_one_row_for_all_layers() -> None:
    assert read_map(b"[0, 1, 2, 0]", "vllm-pr49572", "map").numbering == "all"


def test_eplb_arrays_must_agree() -> None:
    def npz(**arrays: Any) -> bytes:
        stream = io.BytesIO()
        np.savez(stream, **arrays)
        return stream.getvalue()

    phy = np.array([[0, 1, 1]])
    log = np.array([[[0, -1], [1, 2]]])
    count = np.array([[1, 2]])
    assert read_map(npz(phy2log=phy, log2phy=log, logcnt=count), "eplb", "map").num_experts == 2
    padded = np.pad(log, ((0, 0), (0, 0), (0, 2)), constant_values=-1)  # EPLB pads to the most of all layers
    assert read_map(npz(phy2log=phy, log2phy=padded, logcnt=count), "eplb", "map").num_experts == 2
    assert "logcnt" in wrong("eplb", npz(phy2log=phy, log2phy=log, logcnt=count + 1))
    assert "log2phy" in wrong("eplb", npz(phy2log=phy, log2phy=log[:, ::-1], logcnt=count))
    assert "missing" in wrong("eplb", npz(phy2log=phy))
    assert "expected integers" in wrong("eplb", npz(phy2log=phy * 1.0, log2phy=log, logcnt=count))


def test_omni_infer_holds_zeros_and_ones() -> None:
    def npy(array: Any) -> bytes:
        stream = io.BytesIO()
        np.save(stream, array)
        return stream.getvalue()

    assert "other numbers" in wrong("omni-infer", npy(np.full((2, 1, 3), 2, dtype=np.int32)))
    assert "expected integers" in wrong("omni-infer", npy(np.ones((2, 3), dtype=np.int32)))
    assert "Python objects" in wrong("omni-infer", npy(np.array([None])))


def test_megatron_groups_must_be_those_of_the_order() -> None:
    data = json.loads(good("megatron"))
    assert "not the groups" in wrong("megatron", {**data, "groups": {**data["groups"], "ep": [[0]]}})
    assert "do not go together" in wrong("megatron", {**data, "world_size": data["world_size"] + 1})
    assert "one GPU for each rank" in wrong("megatron", {**data, "gpus": data["gpus"][1:]})


def test_table_lines_are_in_order() -> None:
    head = b"layer,stage,rank,slot,expert,copies,gpus\n"
    assert "expected 0" in wrong("csv", head + b"0,0,0,1,5,1,0\n")
    assert "not a line" in wrong("csv", head + b"0,0,0,0,x,1,0\n")
    assert "columns" in wrong("csv", b"layer;rank\n")
