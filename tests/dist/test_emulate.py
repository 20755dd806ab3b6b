"""Plans run by gloo processes: counts as booked, results as the reference, copies as predicted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.running import Result, example, files_in, plan_of, run, solved
from tests.dist.plans import on_rails, small_plan, two_nodes, unequal_nodes


def emulated(plan: Path, folder: Path, *options: object) -> tuple[Result, dict[str, Any]]:
    """Validate by emulation in an empty folder."""
    result = run("validate", plan, "--emulate", *options, cwd=folder)
    document: dict[str, Any] = json.loads((folder / "validation.json").read_text())
    assert document["schema"] == "ep-plan/validation/1"
    return result, document


def assert_all_agree(plan: Path, result: Result, document: dict[str, Any]) -> None:
    assert result.code == 0, result.out + result.err
    assert document["verdict"] == "pass"
    assert document["reasons"] == []
    assert document["counts"]["judged"] == "pass"
    booked = plan_of(plan).predicted.rank_tokens
    assert document["counts"]["choices"] == sum(map(sum, booked))
    assert document["outputs"]["judged"] == "pass"
    assert 0 < document["outputs"]["worst_error"] < 1e-5
    assert all(level["judged"] == "pass" for level in document["levels"])
    assert all(level["counted"] == level["predicted"] for level in document["levels"])
    assert document["terms"] == []
    assert {run["step_s"] for run in document["placements"]} == {None}


def test_tiny_moe(tiny_plan: Path, tmp_path: Path) -> None:
    result, document = emulated(tiny_plan, tmp_path)
    assert_all_agree(tiny_plan, result, document)
    assert document["run"]["ranks"] == len(document["ranks"]) == 8
    assert document["run"]["windows"] == 16
    assert document["run"]["scale"] == 2
    assert document["counts"]["layers"] == 8
    booked = [window.imbalance for window in plan_of(tiny_plan).predicted.windows]
    assert document["placements"][0]["imbalance"] == pytest.approx(sum(booked) / len(booked), rel=1e-3)
    assert sum(level["counted"] for level in document["levels"]) > 900_000
    assert "no seconds" in result.out
    assert "own" in result.words or "handed to gloo" in result.words
    names = {"validation.json", "validation.passing_nodes.txt", "validation.failing_nodes.txt"}
    assert files_in(tmp_path) == names
    assert (tmp_path / "validation.passing_nodes.txt").read_text().split() == document["nodes"]["passing"]
    assert document["nodes"]["failing"] == []


def test_pipeline_tensor_and_expert_parallel_with_copies(pipeline_plan: Path, tmp_path: Path) -> None:
    plan = plan_of(pipeline_plan)
    assert (plan.split.pp, plan.split.tp, plan.split.ep) == (2, 2, 4)
    assert len({stage.layers[1] - stage.layers[0] for stage in plan.stages}) == 2
    assert plan.placement.redundant_experts == 4
    result, document = emulated(pipeline_plan, tmp_path, "--against", "linear")
    assert_all_agree(pipeline_plan, result, document)
    phases = {phase for rank in document["ranks"] for phase in rank["phases_s"]}
    assert phases >= {"attention", "attention all-reduce", "dispatch", "experts", "combine", "pipeline send"}
    served = {run["name"]: run["imbalance"] for run in document["placements"]}
    assert served["plan"] <= served["linear"]
    assert set(served) == {"plan", "linear"}


def test_stages_in_turn_where_not_all_ranks_may_run_at_once(pipeline_plan: Path, tmp_path: Path) -> None:
    data = json.loads(pipeline_plan.read_text())
    for stage in data["stages"]:  # GPUs may stand in any order; the ranks of a group are numbered otherwise then
        stage["gpus"] = [stage["gpus"][place] for place in (2, 0, 3, 1)]
    plan = pipeline_plan.with_name("turned.json")
    plan.write_text(json.dumps(data))
    result, document = emulated(plan, tmp_path, "--ranks", 4)
    assert_all_agree(plan, result, document)
    assert document["run"]["ranks"] == 8
    refused = run("validate", pipeline_plan, "--emulate", "--ranks", 3, cwd=tmp_path)
    assert refused.code == 2
    assert "at least --ranks 4" in refused.err


def test_experts_sharded_over_two_gpus(tmp_path: Path) -> None:
    plan = solved(example("ep8-tp2", tmp_path))
    result, document = emulated(plan, tmp_path)
    assert result.code == 0, result.out + result.err
    assert plan_of(plan).split.etp == 2
    assert document["run"]["ranks"] == 16
    assert document["outputs"]["judged"] == "pass"
    assert document["counts"]["judged"] == "not judged"  # made without a trace: nothing is booked
    assert document["counts"]["choices"] > 0
    assert all(level["judged"] == "pass" for level in document["levels"])


def test_unequal_ranks(tmp_path: Path) -> None:
    solve = "{redundant_experts: 1, split: {ep: 4, tp: 1, pp: 1}}"
    plan = small_plan(tmp_path / "plan", topology=unequal_nodes(), solve=solve, experts=9)
    assert any(-1 in row for row in plan_of(plan).placement.physical_to_logical)
    result, document = emulated(plan, tmp_path)
    assert_all_agree(plan, result, document)


@pytest.mark.parametrize("fabric", ["rails", "plain"])
def test_copies_that_enter_a_node_once(tmp_path: Path, fabric: str) -> None:
    topology = on_rails() if fabric == "rails" else two_nodes(3)
    solve = "{redundant_experts: 4, split: {ep: 6, tp: 1, pp: 1}}"
    plan = small_plan(tmp_path / "plan", topology=topology, solve=solve, dedup="node")
    result, document = emulated(plan, tmp_path)
    assert_all_agree(plan, result, document)
    counted = {level["level"]: level["counted"] for level in document["levels"]}
    assert counted["cluster"] == 0 if fabric == "rails" else counted["cluster"] > 0
    if fabric == "rails":
        assert counted["rail"] > 0


NEAREST: dict[str, dict[str, Any]] = {
    "ep": {"topology": two_nodes(2), "solve": "{redundant_experts: 4, split: {ep: 4, tp: 1, pp: 1}}"},
    "etp": {"topology": two_nodes(4), "solve": "{redundant_experts: 4, split: {ep: 4, tp: 2, pp: 1, etp: 2}}"},
    "edp": {"topology": two_nodes(4), "solve": "{redundant_experts: 2, split: {ep: 4, tp: 1, pp: 1, edp: 2}}"},
    "node": {
        "topology": two_nodes(3),
        "solve": "{redundant_experts: 4, split: {ep: 6, tp: 1, pp: 1}}",
        "dedup": "node",
    },
    "pipeline": {
        "topology": two_nodes(4),
        "solve": "{redundant_experts: 4, split: {tp: 2, pp: 2, ep: 4}}",
        "dedup": "gpu",
        "layers": 3,
    },
}


@pytest.mark.parametrize("name", NEAREST)
def test_the_nearest_copy_serves_as_booked(tmp_path: Path, name: str) -> None:
    plan = small_plan(tmp_path / "plan", **NEAREST[name], copies="nearest")
    assert plan_of(plan).placement.copy_rule == "nearest"
    result, document = emulated(plan, tmp_path)
    assert_all_agree(plan, result, document)


def test_tiny_moe_where_the_nearest_copy_serves(tmp_path: Path) -> None:
    deployment = example("tiny-moe", tmp_path)
    deployment.write_text(deployment.read_text() + "communication: {copies: nearest}\n")
    plan = solved(deployment)
    assert plan_of(plan).placement.redundant_experts == 8
    result, document = emulated(plan, tmp_path)
    assert_all_agree(plan, result, document)


def test_copies_that_share_otherwise_than_booked(nearest_plan: Path, tmp_path: Path) -> None:
    data = json.loads(nearest_plan.read_text())
    data["placement"]["copy_rule"] = data["inputs"]["cost"]["copy_rule"] = "even"
    for trace in data["inputs"]["traces"]:
        trace["path"] = str(nearest_plan.parent / trace["path"])
    (tmp_path / "plan.json").write_text(json.dumps(data))
    result, document = emulated(tmp_path / "plan.json", tmp_path)
    assert result.code == 6
    assert document["counts"]["judged"] == "fail"
    assert document["outputs"]["judged"] == "pass"


@pytest.mark.parametrize("name", ["four_rank_plan", "nearest_plan"])
def test_tampered_plans_fail_with_layer_and_experts(request: pytest.FixtureRequest, name: str, tmp_path: Path) -> None:
    right: Path = request.getfixturevalue(name)
    data = json.loads(right.read_text())
    slots, placed = data["placement"]["slots_per_rank"], data["placement"]["physical_to_logical"]
    booked = data["predicted"]["rank_tokens"]
    # layer 0: two experts of one copy each swapped; layer 1: one copy taken away
    singles = [slot for slot, expert in enumerate(placed[0]) if placed[0].count(expert) == 1]
    one = singles[0]
    other = next(s for s in singles if s // slots != one // slots)
    swapped = (placed[0][one], placed[0][other])
    placed[0][one], placed[0][other] = placed[0][other], placed[0][one]
    copied = next(expert for expert in placed[1] if placed[1].count(expert) > 1)
    placed[1][placed[1].index(copied)] = -1
    for trace in data["inputs"]["traces"]:
        trace["path"] = str(right.parent / trace["path"])
    (tmp_path / "plan.json").write_text(json.dumps(data))
    result, document = emulated(tmp_path / "plan.json", tmp_path)
    assert result.code == 6
    assert document["verdict"] == "fail"
    first, second = document["counts"]["findings"]
    assert first.startswith("layer 0: ")
    assert f"experts {swapped[0]} " in first or f"and {swapped[0]} " in first
    assert f" {swapped[1]} (rank" in first
    assert second.startswith("layer 1: ")
    assert f"one more copy of expert {copied} on rank" in second
    assert document["outputs"]["judged"] == "pass"  # every token still finds the experts that it chose
    assert [sum(row) for row in booked] == [400, 400]
    assert "layer 0" in result.words
