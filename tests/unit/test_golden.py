"""Golden plans: planted regressions are caught, and the message says whose they are and what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from planner.cost.moe import LayerTimes, MoeCost
from planner.inputs import profiles
from planner.review.check_files import check_file, files_to_check
from planner.review.checked import Checked
from planner.review.compare_golden import Compared
from planner.solve import workers
from tests.golden_box import set_deployment, set_topology, write_box

Floats = NDArray[np.float64]


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that what a test patches holds where layers are placed."""
    monkeypatch.setattr(workers, "available_cores", lambda: 1)


@pytest.fixture(scope="module")
def solved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The box with its golden plan; not to be changed."""
    deployment = write_box(tmp_path_factory.mktemp("golden"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "available_cores", lambda: 1)
        created = check_file(deployment, update=True)
    assert compared(created).status == "created"
    return deployment.parent


@pytest.fixture
def box(solved: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(solved, tmp_path / "box")


def checked(box: Path, *, update: bool = False) -> Checked:
    """The box checked."""
    return check_file(box / "deployment.yaml", update=update)


def compared(result: Checked) -> Compared:
    """How it stands against the golden plan."""
    assert result.error is None, result.error
    assert result.compared is not None, result.findings
    return result.compared


def finding(result: Checked) -> str:
    """The only finding."""
    (only,) = result.all_findings
    return only


def rows(result: Checked) -> dict[str, str]:
    """What changed, and by how much."""
    return {row.what: row.change for row in compared(result).rows}


def edit(box: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the golden plan by hand."""
    path = box / "plan.golden.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


# --- nothing happened -----------------------------------------------------------------------------


def test_the_same_again(box: Path) -> None:
    before = (box / "plan.golden.json").read_bytes()
    result = checked(box)
    assert (result.is_good, compared(result).status) == (True, "same")
    assert compared(checked(box, update=True)).status == "unchanged"
    assert (box / "plan.golden.json").read_bytes() == before
    assert b'"rejected"' not in before


def test_folders_hold_one_entry_for_a_deployment_and_its_golden_plan(box: Path) -> None:
    (box / ".hidden").mkdir()
    shutil.copy(box / "deployment.yaml", box / ".hidden")
    shutil.copy(box / "plan.golden.json", box / "plan.json")
    (box / "alone").mkdir()
    shutil.copy(box / "plan.golden.json", box / "alone")
    found = [path.relative_to(box).as_posix() for path in files_to_check([box])]
    assert found == ["alone/plan.golden.json", "deployment.yaml", "plan.json"]


# --- planted in the cost model, in a profile, in the topology, in the trace, in the search ----------


def test_a_constant_of_the_cost_model(box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = MoeCost.times

    def slower(self: MoeCost, expert_S: Floats, per_byte_S: Floats) -> LayerTimes:
        return times(self, expert_S * 1.1, per_byte_S)

    monkeypatch.setattr(MoeCost, "times", slower)
    set_deployment(box, solve="{split: {ep: 4}, gap: 30%}")  # proving costs effort, and nothing is to be proved
    result = checked(box)
    told = [text for text in result.all_findings if text.startswith("the cost model has changed")]
    assert len(told) == 1
    assert "experts +10.00 %" in told[0]
    assert "(golden" not in told[0]
    assert rows(result)["experts"].startswith("+")
    assert compared(result).to_do.startswith("if ")


def test_a_faster_cost_model_is_caught_as_well(box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fixed = MoeCost.times

    def faster(self: MoeCost, expert_S: Floats, per_byte_S: Floats) -> LayerTimes:
        return fixed(self, expert_S, per_byte_S * 0.5)

    monkeypatch.setattr(MoeCost, "times", faster)
    told = finding(checked(box))
    assert told.startswith("the cost model has changed")
    assert "dispatch -" in told
    assert "experts" not in told.partition(": ")[2].partition("; step")[2]


def test_a_bandwidth_of_the_topology(box: Path) -> None:
    set_topology(box, between="20 GB/s")
    result = checked(box)
    assert finding(result).startswith("the topology (topology.yaml) changed (golden ")
    assert "links[1].bandwidth.value: 25.00 GB/s -> 20.00 GB/s" in finding(result)
    assert rows(result)["step"].startswith("+")
    assert rows(result)["dispatch"].startswith("+")
    assert "experts" not in rows(result)
    (cause,) = compared(result).causes
    assert len(cause.before) == len(cause.after) == 12
    assert cause.before != cause.after
    assert "ep-plan check --update" in compared(result).to_do
    renewed = checked(box, update=True)
    assert (renewed.is_good, compared(renewed).status) == (True, "renewed")
    assert finding(result) in renewed.all_notes
    assert compared(checked(box)).status == "same"


def test_a_gpu_profile(box: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = shutil.copytree(profiles.folder(), tmp_path / "profiles")
    profile = shipped / "gpus" / "a100-sxm-80.yaml"
    profile.write_text(profile.read_text().replace("312 TFLOP/s", "290 TFLOP/s"))
    monkeypatch.setattr(profiles, "folder", lambda: shipped)
    result = checked(box)
    assert finding(result).startswith("the GPU (a100-sxm-80) changed (golden ")
    assert "compute.bf16.value: 312.0 TFLOP/s -> 290.0 TFLOP/s" in finding(result)
    assert "if the GPU (a100-sxm-80) was meant to change" in compared(result).to_do


def test_a_trace(box: Path) -> None:
    counts_SLE = np.load(box / "trace.npz")["counts"]
    np.savez(box / "trace.npz", counts=counts_SLE[:, :, ::-1], num_experts=8, topk=2)
    result = checked(box)
    assert finding(result).startswith("the trace (trace.npz) changed (golden ")
    assert "traffic, node" not in rows(result)  # the golden plan's own routing is gone
    assert "experts moved" in rows(result)


def test_the_work(box: Path) -> None:
    set_deployment(box, tokens=4000)
    result = checked(box)
    assert finding(result).startswith("the deployment changed")
    assert "workload.tokens_per_gpu: 4096 -> 4000" in finding(result)
    assert {"step", "memory, most", "traffic, cluster"} <= set(rows(result))


def test_the_model_no_longer_fits_the_plan(box: Path) -> None:
    config = json.loads((box / "config.json").read_text())
    (box / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    result = checked(box)
    assert any(text.startswith("the model (config.json) changed") for text in result.all_findings)
    assert any("cannot run any more" in text and "layer" in text for text in result.all_findings)


def test_words_and_inputs_that_change_no_figure_are_notes(box: Path) -> None:
    set_deployment(box, solve="{split: {ep: 4}, gap: 0%, seed: 7}")
    result = checked(box)
    assert result.is_good
    assert compared(result).status == "as good"
    (note,) = [note for note in result.all_notes if "search.seed: 0 -> 7" in note]
    assert "no figure depends on it" in note


def test_a_worse_search(box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from planner.solve import master

    real = master.Master._place

    def linear_only(self: master.Master, work: Any, keys: Any, exact: float) -> None:
        real(self, work, keys, exact)
        for key, result in work.results.items():
            expert_P = np.arange(8)
            stage = work.candidate.cost.stages[0]
            seconds = self.layers.problem(stage, self.instance.loads[key[1]]).seconds(expert_P)
            object.__setattr__(result, "expert_P", expert_P)
            object.__setattr__(result, "seconds", seconds)

    monkeypatch.setattr(master.Master, "_place", linear_only)
    result = checked(box)
    assert finding(result).startswith("the search found a worse plan: ")
    assert "look at the search" in compared(result).to_do
    assert "experts moved" in rows(result)


# --- planted in the golden plan -------------------------------------------------------------------


def swap(plan: dict[str, Any]) -> None:
    row = plan["placement"]["physical_to_logical"][0]
    row[0], row[2] = row[2], row[0]
    row[:2], row[2:4] = sorted(row[:2]), sorted(row[2:4])


def test_swapped_experts(box: Path) -> None:
    edit(box, swap)
    result = checked(box)
    assert finding(result).startswith("plan.golden.json was edited: ")
    assert rows(result)["experts moved"] == "most in layers 0 (2)"
    assert "restore plan.golden.json" in compared(result).to_do


def one_byte(plan: dict[str, Any]) -> None:
    plan["predicted"]["memory_bytes"][1] += 1


def faster(plan: dict[str, Any]) -> None:
    plan["predicted"]["step_s"] *= 0.99
    plan["solver"]["objective_s"] *= 0.99


def expert_twice(plan: dict[str, Any]) -> None:
    row = plan["placement"]["physical_to_logical"][1]
    row[1] = row[0]


def rejected_miscounted(plan: dict[str, Any]) -> None:
    plan["rejected_left_out"] = 3


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (one_byte, "predicted.memory_bytes[1]"),
        (faster, "predicted.step_s"),
        (expert_twice, "twice"),
        (rejected_miscounted, "rejected_left_out"),
    ],
)
def test_an_edited_golden_plan(box: Path, change: Callable[[dict[str, Any]], None], named: str) -> None:
    edit(box, change)
    result = checked(box)
    assert "plan.golden.json was edited" in finding(result)
    assert named in finding(result)
    assert compared(checked(box, update=True)).status == "renewed"
    assert compared(checked(box)).status == "same"


def write_linear_golden(box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A golden plan of a search that finds nothing better than the linear layout, and is content with it."""
    set_deployment(box, solve="{split: {ep: 4}, gap: 50%}")
    with monkeypatch.context() as patch:
        patch.setattr("planner.solve.place.searched", lambda problem, known_P, known: (known_P, known, 0.0))
        assert checked(box, update=True).is_good
    set_deployment(box)


def test_a_golden_plan_that_was_too_good_to_be_true(box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A bound above what is reached is found whoever is wrong.
    def bound(plan: dict[str, Any]) -> None:
        for one in (plan["solver"], *plan["candidates"]):
            one["bound_s"] = plan["solver"]["objective_s"]
        plan["solver"]["history"][-1]["bound_s"] = plan["solver"]["objective_s"]

    write_linear_golden(box, monkeypatch)
    edit(box, bound)
    edit(box, lambda plan: plan["solver"].update(gap=0.0, status="optimal", stopped_by="proof"))
    result = checked(box)
    assert any("beats the bound proved for the golden plan" in text for text in result.all_findings), result


def test_a_golden_plan_that_cannot_be_read(box: Path) -> None:
    (box / "plan.golden.json").write_text('{"schema": "ep-plan/plan/1", "inputs": {}}')
    result = checked(box)
    assert result.error is not None
    assert result.error.exit_code == 3
    assert "ep-plan check --update" in str(result.error)
    assert compared(checked(box, update=True)).status == "renewed"
    assert compared(checked(box)).status == "same"


def test_a_better_plan_is_no_regression(box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_linear_golden(box, monkeypatch)
    result = checked(box)
    assert result.is_good
    assert compared(result).status == "better"
    assert "faster than the golden plan" in result.all_notes[0]
    assert compared(result).to_do.startswith("to keep it: ep-plan check --update")


# --- thresholds and deployments that must fail ----------------------------------------------------


@pytest.mark.parametrize(
    ("checks", "told"),
    [
        ("{min_memory_headroom: 95%}", "min_memory_headroom: "),
        ("{min_balancedness: 0.9}", "min_balancedness: "),
        ("{max_held_out_imbalance: 1.05}", "max_held_out_imbalance: "),
        ("{max_step: 1 ms}", "max_step: "),
    ],
)
def test_a_plan_that_misses_a_threshold_is_no_golden_plan(box: Path, checks: str, told: str) -> None:
    set_deployment(box, checks=checks)
    before = (box / "plan.golden.json").read_bytes()
    result = checked(box, update=True)
    assert result.findings[0].startswith(told)
    assert "was not written" in result.findings[1]
    assert (box / "plan.golden.json").read_bytes() == before


def test_the_gap_is_a_threshold(box: Path) -> None:
    set_deployment(box, solve="{split: {ep: 4}, gap: 50%}", checks="{max_gap: 0.01%}")
    assert any(text.startswith("max_gap: ") for text in checked(box).findings)
    set_deployment(box, checks="{max_gap: 0.01%, max_held_out_imbalance: 2, max_step: 1 s, min_balancedness: 0.5}")
    assert checked(box).is_good


def test_what_cannot_be_judged_is_not_passed(box: Path) -> None:
    deployment = set_deployment(box, checks="{min_balancedness: 0.1, max_held_out_imbalance: 9}")
    deployment.write_text(deployment.read_text().replace("traces: [trace.npz]\n", ""))
    (box / "plan.golden.json").unlink()
    first, second = checked(box).findings
    assert first.startswith("min_balancedness: unknown")
    assert second.startswith("max_held_out_imbalance: unknown")


def test_expected_to_be_infeasible(box: Path) -> None:
    set_deployment(box, tokens=4_000_000, checks="{expect: infeasible}")
    assert "remove one of them" in finding(checked(box))
    (box / "plan.golden.json").unlink()
    assert checked(box).is_good
    assert checked(box, update=True).is_good
    assert not (box / "plan.golden.json").exists()
    set_deployment(box, checks="{expect: infeasible}")
    assert finding(checked(box)).startswith("expect: should be infeasible, but tp=1 dp=4 ep=4 fits")


def test_infeasible_without_a_word_of_it(box: Path) -> None:
    set_deployment(box, tokens=4_000_000)
    result = checked(box)
    assert finding(result).startswith("infeasible: no split of 4 GPUs fits")
    assert any("memory of GPU" in note for note in result.notes)


def test_a_plan_cut_short_by_the_clock_is_no_golden_plan(box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers.Workers, "place", _time_is_up)
    result = checked(box, update=True)
    assert result.error is not None
    assert "the time limit stopped the search" in str(result.error)


def _time_is_up(self: workers.Workers, jobs: Any) -> Any:
    raise workers.TimeIsUpError


# --- names ------------------------------------------------------------------------------------------


def test_deployments_of_other_names_have_golden_plans_of_their_own(box: Path) -> None:
    other = (box / "deployment.yaml").rename(box / "eu-west.yaml")
    assert compared(check_file(other)).path.name == "plan.golden.json"  # there is no other it could belong to
    shutil.copy(other, box / "deployment.yaml")
    assert compared(check_file(other, update=True)).path.name == "eu-west.plan.golden.json"
    assert compared(check_file(other)).status == "same"
    (box / "plan-16.json").write_text("{}", encoding="utf-8")
    assert [path.name for path in files_to_check([box], update=True)] == ["deployment.yaml"]
    (box / "plan-16.json").unlink()
    found = [path.name for path in files_to_check([box])]
    assert found == ["deployment.yaml", "eu-west.plan.golden.json"]
