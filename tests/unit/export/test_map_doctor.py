"""Anybody's maps: each kind of fault is found by name, a map in order passes, balance is what the trace says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from planner.errors import InputError, UsageError
from planner.export.fits import check_fits
from planner.export.table import MAPS
from planner.export.write import map_bytes
from planner.inputs.model import Model
from planner.review.map_doctor import About, Examined, examine
from tests import building
from tests.unit.export.layouts import SEEDS, random_layout

MODEL = building.model(experts=4, top_k=1, layers=2, dense_layers=1)


def examined(
    folder: Path, name: str, data: Any, model: Model | None = MODEL, ep: int | None = 2, **more: Any
) -> Examined:
    path = folder / f"map{MAPS[name].suffix}"
    path.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    return examine(path, name, About(model, ep, **more))


def sglang(*rows: list[int]) -> dict[str, Any]:
    return {"physical_to_logical_map": list(rows)}


FILLER, GOOD = [0, 1, 2, 3, 0, 1], [0, 1, 2, 3, 0, 1]


@pytest.mark.parametrize("name", [name for name in MAPS if name != "parquet"])
def test_what_we_write_is_in_order(name: str, tmp_path: Path) -> None:
    seen = 0
    for seed in SEEDS:
        layout = random_layout(seed)
        if MAPS[name].family:
            layout = replace(layout, model=layout.model.model_copy(update={"family": MAPS[name].family}))
        try:
            check_fits(layout, name, MAPS[name], "plan.json")
        except InputError:
            continue
        found = examined(tmp_path, name, map_bytes(layout, name), layout.model, layout.split.ep)
        assert found.findings == ()
        seen += 1
        if seen == 8:
            return
    assert seen >= 3


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ((FILLER, GOOD, [0, 0, 1, 2, 3, 1]), "twice on a rank: layer 2, rank 0: expert 0; a copy is wasted"),
        ((FILLER, GOOD, [0, 1, 2, 0, 1, 2]), "missing experts: layer 2: 3 placed nowhere"),
        ((FILLER, GOOD, [0, 1, 2, 3, 4, 0]), "expert ids: layer 2: expert 4, but there are 4 (0..3)"),
        ((GOOD, GOOD), "layer indexing: layers are counted by MoE layer, 0..1; sglang reads one row for each of the 3"),
        ((FILLER, GOOD, GOOD, GOOD), "layers: 3 are no layers of small"),
        ((FILLER, GOOD, [0, 1, 2, 3]), "length: rows of 4, 6 slots"),
        (
            (FILLER[:5], GOOD[:5], GOOD[:5]),
            "length: layer 0: 5 slots mod 2 ranks = 1; slots must divide by the EP size",
        ),
        ((FILLER[:3], GOOD[:3], GOOD[:3]), "length: layer 0 has 3 slots for 4 experts"),
    ],
)
def test_faults_are_named(rows: tuple[list[int], ...], expected: str, tmp_path: Path) -> None:
    findings = examined(tmp_path, "sglang", sglang(*rows)).findings
    assert any(finding.startswith(expected) for finding in findings), findings


def test_rows_of_dense_layers_mean_nothing(tmp_path: Path) -> None:
    assert examined(tmp_path, "sglang", sglang([0] * 6, GOOD, GOOD)).findings == ()


def test_maps_counted_by_hidden_layer_where_moe_layers_are_meant(tmp_path: Path) -> None:
    layers = [{"device_list": [{"device_expert": [0, 1]}, {"device_expert": [2, 3]}]}] * 3
    found = examined(tmp_path, "vllm-ascend", {"moe_layer_count": 3, "layer_list": layers})
    assert "layer indexing: 3 rows, one for each layer of small; vllm-ascend counts its 2 MoE layers" in found.findings
    rows = b"num_slots: 4\ninitial_global_assignments:\n  0: [0, 1, 2, 3]\n  1: [0, 1, 2, 3]\n"
    found = examined(tmp_path, "tensorrt-llm", rows)
    assert (
        "layer indexing: layers are counted by MoE layer, 0..1; tensorrt-llm reads hidden-layer indices 1, 2"
        in found.findings
    )


def test_the_case_of_eplb_22(tmp_path: Path) -> None:
    """deepseek-ai/EPLB#22: the balancer's own map holds an expert twice on a rank."""
    layers = [{"device_list": [{"device_expert": [0, 0, 1]}, {"device_expert": [1, 2, 3]}]}]
    model = building.model(experts=4, layers=1)
    found = examined(tmp_path, "vllm-ascend", {"moe_layer_count": 1, "layer_list": layers}, model)
    (finding,) = found.findings
    assert finding.startswith("twice on a rank: layer 0, rank 0: expert 0; the device loses a slot")


def test_unequal_devices(tmp_path: Path) -> None:
    layers = [{"device_list": [{"device_expert": [0, 1, 2]}, {"device_expert": [3]}]}]
    found = examined(
        tmp_path, "vllm-ascend", {"moe_layer_count": 1, "layer_list": layers}, building.model(experts=4, layers=1)
    )
    assert any("ranks hold 1 to 3 experts" in finding for finding in found.findings)


def test_what_is_not_known_is_said(tmp_path: Path) -> None:
    found = examined(tmp_path, "sglang", sglang([0, 0, 1, 2]), None, None)
    assert found.findings == ()
    assert any("give --ep" in note for note in found.notes)
    assert any("taken as 3, the highest id + 1" in note for note in found.notes)
    found = examined(tmp_path, "sglang", sglang([0, 0, 1, 2]), None, 2)
    assert any("twice on a rank" in finding for finding in found.findings)


def test_ranks_that_disagree_with_the_file(tmp_path: Path) -> None:
    layers = [{"device_list": [{"device_expert": [0, 1]}, {"device_expert": [2, 3]}]}] * 2
    with pytest.raises(InputError, match="the file is for 2 ranks, not 4"):
        examined(tmp_path, "vllm-ascend", {"moe_layer_count": 2, "layer_list": layers}, MODEL, 4)


def test_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown format"):
        examine(tmp_path / "x", "slang", About())
    with pytest.raises(UsageError, match="no such file"):
        examine(tmp_path / "x", "sglang", About())
    with pytest.raises(UsageError, match="needs --model or --plan"):
        examined(tmp_path, "sglang", sglang(GOOD), None, None, traces=(tmp_path / "t.npz",))


def test_balance_on_a_trace(tmp_path: Path) -> None:
    """Two windows; expert 0 has half of all choices, and a copy on each rank makes the ranks equal."""
    counts = np.array([[[6, 2, 2, 2], [6, 2, 2, 2]], [[6, 2, 2, 2], [6, 2, 2, 2]]])
    trace = tmp_path / "trace.npz"
    np.savez(trace, counts=counts, num_experts=4, topk=1, layer_ids=np.array([1, 2]))
    shared = [0, 1, 2, 0, 3, 1]
    found = examined(tmp_path, "sglang", sglang(FILLER, shared, GOOD), traces=(trace,))
    assert found.findings == ()
    balance = found.balance
    assert balance is not None
    # layer 1: copies of 0 and 1 on both ranks: 3+1+2 and 3+2+1; layer 2: 3+1+2 on rank 0, 2+3+1 on rank 1
    assert balance.max_mean == pytest.approx(1.0)
    assert balance.balancedness == pytest.approx(1.0)
    assert balance.linear_max_mean == pytest.approx(8 / 6)
    skewed = [0, 1, 2, 3]
    balance = examined(tmp_path, "sglang", sglang(skewed, skewed, skewed), traces=(trace,)).balance
    assert balance is not None
    assert balance.max_mean == pytest.approx(8 / 6)
    assert (balance.worst_layer, balance.windows) == (1, 2)
    broken = examined(tmp_path, "sglang", sglang(FILLER, shared, [0, 0, 1, 2, 3, 1]), traces=(trace,))
    assert broken.balance is None
    assert any("balance: not computed" in note for note in broken.notes)


def test_windows_weigh_the_same_however_long_they_were(tmp_path: Path) -> None:
    """A long even window, and a short one with half as much again on the first rank: (1 + 1) / (1 + 1.5)."""
    counts = np.array([[[3000] * 4] * 2, [[6, 3, 2, 1]] * 2])
    trace = tmp_path / "trace.npz"
    np.savez(trace, counts=counts, num_experts=4, topk=1, layer_ids=[1, 2])
    found = examined(tmp_path, "sglang", sglang(*[[0, 1, 2, 3]] * 3), traces=(trace,))
    assert found.balance is not None
    assert found.balance.balancedness == pytest.approx(2 / 2.5)
