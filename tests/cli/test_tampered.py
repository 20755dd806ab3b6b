"""`check` finds what was changed in a plan and names the rule or the figure."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.running import run

Plan = dict[str, Any]


def rows(plan: Plan) -> list[list[int]]:
    """Slots of every layer: 4 ranks of 2."""
    placed: list[list[int]] = plan["placement"]["physical_to_logical"]
    return placed


def expert_twice_on_a_rank(plan: Plan) -> None:
    rows(plan)[0][1] = rows(plan)[0][0]


def expert_missing(plan: Plan) -> None:
    rows(plan)[3][7] = -1


def expert_that_does_not_exist(plan: Plan) -> None:
    rows(plan)[2][7] = 8


def wrong_order(plan: Plan) -> None:
    rows(plan)[1][:2] = rows(plan)[1][1::-1]


def short_row(plan: Plan) -> None:
    rows(plan)[5].pop()


def gpu_twice(plan: Plan) -> None:
    plan["stages"][0]["gpus"][1] = 0


def layer_left_out(plan: Plan) -> None:
    plan["stages"][0]["layers"][1] -= 1


def other_split(plan: Plan) -> None:
    plan["split"]["tp"] *= 2


def faster(plan: Plan) -> None:
    plan["predicted"]["step_s"] *= 0.9
    plan["solver"]["objective_s"] *= 0.9
    plan["solver"]["bound_s"] *= 0.9


def less_memory(plan: Plan) -> None:
    plan["predicted"]["memory_bytes"][2] -= 1


def slower_baseline(plan: Plan) -> None:
    plan["baselines"]["linear"]["step_s"] *= 2


def bound_above_objective(plan: Plan) -> None:
    plan["solver"]["bound_s"] = plan["solver"]["objective_s"] * 1.1


def optimal_with_a_gap(plan: Plan) -> None:
    plan["solver"]["bound_s"] = plan["solver"]["objective_s"] * 0.5
    plan["solver"]["gap"] = 0.5


def smaller_gpu(plan: Plan) -> None:
    plan["inputs"]["topology"]["gpu"]["memory"]["value"] = "40 GiB"


def slower_links(plan: Plan) -> None:
    plan["inputs"]["topology"]["links"][0]["bandwidth"]["value"] = "1 GB/s"


def longer_context(plan: Plan) -> None:
    plan["inputs"]["workload"]["context_length"] += 1


def other_candidate_time(plan: Plan) -> None:
    (chosen,) = [record for record in plan["candidates"] if record["outcome"] == "chosen"]
    chosen["step_s"] *= 0.9


def note_dropped(plan: Plan) -> None:
    plan["notes"] = []


CHANGES: dict[Callable[[Plan], None], str] = {
    expert_twice_on_a_rank: "twice",
    expert_missing: "layer 3",
    expert_that_does_not_exist: "expert",
    wrong_order: "order",
    short_row: "slots",
    gpu_twice: "GPUs",
    layer_left_out: "layers",
    other_split: "split",
    faster: "predicted.step_s",
    less_memory: "predicted.memory_bytes[2]",
    slower_baseline: "baselines.linear.step_s",
    bound_above_objective: "solver.bound_s",
    optimal_with_a_gap: "solver.status",
    smaller_gpu: "memory",
    slower_links: "predicted.step_s",
    longer_context: "predicted.memory",
    other_candidate_time: "step_s",
    note_dropped: "notes",
}


@pytest.fixture(scope="module")
def found(mixtral_plan: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What one check of all the changed plans found, by name of the change."""
    folder = tmp_path_factory.mktemp("tampered")
    for change in CHANGES:
        plan = json.loads(mixtral_plan.read_text())
        change(plan)
        (folder / f"plan-{change.__name__}.json").write_text(json.dumps(plan))
    result = run("check", folder, "--json", cwd=folder)
    assert result.code == 6, result.out + result.err
    files = result.json()["files"]
    assert not any(file["good"] for file in files)
    return {Path(file["path"]).stem.removeprefix("plan-"): file["findings"] for file in files}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_is_found_and_named(change: Callable[[Plan], None], found: dict[str, list[str]]) -> None:
    assert any(CHANGES[change] in finding for finding in found[change.__name__]), found[change.__name__]


def changed(plan: Path, folder: Path, change: Callable[[Plan], None]) -> Path:
    """A changed copy of a plan."""
    data = json.loads(plan.read_text())
    change(data)
    path = folder / "plan.json"
    path.write_text(json.dumps(data))
    return path


def test_findings_are_printed_with_the_file(mixtral_plan: Path, tmp_path: Path) -> None:
    path = changed(mixtral_plan, tmp_path, less_memory)
    result = run("check", mixtral_plan, path, cwd=tmp_path)
    assert result.code == 6
    assert result.words.count("predicted.memory_bytes[2]") == 1
    assert "1 of 2 good" in result.out


def test_a_plan_that_cannot_be_priced_is_not_compared(tiny_plan: Path, tmp_path: Path) -> None:
    path = changed(tiny_plan, tmp_path, gpu_twice)
    result = run("compare", path, "--trace", tiny_plan.parent / "trace.npz", "--json", cwd=tmp_path)
    assert result.code == 6
    assert "GPU" in result.problems()[0]["message"]


def without_linear(plan: Plan) -> None:
    del plan["baselines"]["linear"]


def named_gpu(plan: Plan) -> None:
    plan["inputs"]["topology"]["gpu"] = "h100-sxm"


def huge_expert(plan: Plan) -> None:
    rows(plan)[0][0] = 10**30


@pytest.mark.parametrize("change", [without_linear, named_gpu, huge_expert])
def test_a_plan_that_lacks_what_readers_need_is_invalid(
    change: Callable[[Plan], None], mixtral_plan: Path, tmp_path: Path
) -> None:
    path = changed(mixtral_plan, tmp_path, change)
    for command in ("check", "show"):
        result = run(command, path, cwd=tmp_path)
        assert result.code == 3, result.out + result.err
        assert "plan.json" in result.out + result.err


def none_chosen(plan: Plan) -> None:
    plan["candidates"] = [record for record in plan["candidates"] if record["outcome"] != "chosen"]


def another_chosen(plan: Plan) -> None:
    plan["candidates"] += [record for record in plan["candidates"] if record["outcome"] == "chosen"]


def other_ranks(plan: Plan) -> None:
    plan["split"]["ep"] += 1


def memory_of_another_stage(plan: Plan) -> None:
    plan["predicted"]["memory"] *= 2


def memory_left_out(plan: Plan) -> None:
    plan["predicted"]["memory"] = []


def no_time(plan: Plan) -> None:
    plan["predicted"]["step_s"] = 0.0


UNTELLABLE: dict[Callable[[Plan], None], str] = {
    none_chosen: "candidates: 0 are chosen",
    another_chosen: "candidates: 2 are chosen",
    short_row: "slots: ",
    other_ranks: "split: ",
    memory_of_another_stage: "predicted.memory: 2 lists of lines",
    memory_left_out: "predicted.memory: 0 lists of lines",
    no_time: "predicted.step_s: 0.0 is not above 0",
}


@pytest.mark.parametrize("change", UNTELLABLE, ids=lambda change: change.__name__)
def test_a_plan_that_no_report_can_tell_is_sent_to_check(
    change: Callable[[Plan], None], mixtral_plan: Path, tmp_path: Path
) -> None:
    path = changed(mixtral_plan, tmp_path, change)
    result = run("show", path, "-v", cwd=tmp_path)
    assert result.code == 6, result.out + result.err
    assert f"plan.json: {UNTELLABLE[change]}" in " ".join(result.err.split())
    assert "see: ep-plan check" in result.err
    assert run("check", path, cwd=tmp_path).code == 6
