"""The shipped examples hold their golden plans; the first four also solve, show, and say what they are there to say."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.building import EXAMPLES
from tests.cli.running import Result, example, files_in, plan_of, run

NAMES = ["deepseek-v3-32gpu", "ep8-tp2", "mixtral-4gpu", "tiny-moe"]
CHECK_TIMEOUT_S = 600
"""Far more than it takes: the machine may be busy with other tests."""
Solved = dict[str, tuple[Path, Result]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Solved:
    """These examples solved with the default output: the plans and what was printed."""
    folder = tmp_path_factory.mktemp("examples")
    found = {}
    for name in NAMES:
        deployment = example(name, folder)
        result = run("solve", "deployment.yaml", cwd=deployment.parent)
        found[name] = (deployment.parent / "plan.json", result)
    return found


def test_every_example_is_as_good_as_its_golden_plan(tmp_path: Path) -> None:
    # What CI of a user would run; a change of the cost model, of a profile or of the search shows here.
    deployments = list(EXAMPLES.rglob("deployment.yaml"))
    assert len(deployments) >= 16
    result = run("check", EXAMPLES, "--junit", tmp_path / "check.xml", cwd=tmp_path, timeout_s=CHECK_TIMEOUT_S)
    assert result.code == 0, f"{result.out}{result.err}\nto renew golden plans: ep-plan check --update examples"
    assert f"{len(deployments)} of {len(deployments)} good" in result.out
    assert (tmp_path / "check.xml").read_text().count("<testcase ") == len(deployments)


def test_golden_plans_are_small() -> None:
    sizes = {path: path.stat().st_size for path in EXAMPLES.rglob("plan.golden.json")}
    assert max(sizes.values()) < 200_000, sizes
    assert sum(path.stat().st_size for path in EXAMPLES.rglob("*") if path.is_file()) < 3_500_000


@pytest.mark.parametrize("name", NAMES)
def test_solves(runs: Solved, name: str) -> None:
    plan, result = runs[name]
    assert result.code == 0, result.err
    assert plan.is_file()
    assert "wrote plan.json" in result.err
    assert "wrote" not in result.out
    assert plan_of(plan).inputs.name in result.out


def test_plans_can_be_checked_from_another_folder(runs: Solved, tmp_path: Path) -> None:
    result = run("check", *[plan for plan, _ in runs.values()], cwd=tmp_path)
    assert result.code == 0, result.out + result.err
    assert f"{len(NAMES)} of {len(NAMES)} good" in result.out
    assert files_in(tmp_path) == set()


@pytest.mark.parametrize("name", NAMES)
def test_show_prints_what_solve_printed(runs: Solved, name: str, tmp_path: Path) -> None:
    plan, solve = runs[name]
    shown = run("show", plan, cwd=tmp_path)
    assert (shown.code, shown.out, shown.err) == (0, solve.out, "")


def test_tiny_moe_beats_the_linear_layout(runs: Solved, tmp_path: Path) -> None:
    plan = runs["tiny-moe"][0]
    trace = plan.parent / "trace.npz"
    result = run("compare", plan, "--trace", trace, "--json", cwd=tmp_path)
    assert result.code == 0, result.err
    (comparison,) = result.json()["plans"]
    scores = {score["name"]: score for score in comparison["scores"]}
    assert set(scores) >= {"plan", "linear", "round_robin", "eplb", "eplb_hierarchical"}
    assert scores["plan"]["step_s"] < scores["linear"]["step_s"]
    assert scores["plan"]["step_s"] <= min(score["step_s"] for score in scores.values())
    predicted = plan_of(plan).predicted
    assert scores["plan"]["step_s"] == pytest.approx(predicted.step_s, rel=1e-9)
    assert scores["plan"]["balancedness"] == pytest.approx(predicted.balancedness, rel=1e-9)
    assert len(scores["plan"]["step_S"]) == len(comparison["windows"]) == len(predicted.windows)


def test_without_a_trace_the_balance_is_unknown(runs: Solved) -> None:
    plan, result = runs["deepseek-v3-32gpu"]
    assert "balance" in result.out
    assert "unknown" in result.out
    assert "no trace" in result.out
    read = plan_of(plan)
    assert read.predicted.balancedness is None
    assert any("no trace" in note for note in read.notes)


def test_deepseek_uses_all_32_gpus(runs: Solved) -> None:
    read = plan_of(runs["deepseek-v3-32gpu"][0])
    assert sorted(gpu for stage in read.stages for gpu in stage.gpus) == list(range(32))
    assert len(read.placement.layer_ids) == 58
    assert read.placement.layer_ids[0] == 3


def test_ep8_tp2_puts_one_expert_on_each_pair_of_gpus(runs: Solved) -> None:
    read = plan_of(runs["ep8-tp2"][0])
    split = read.split
    assert (split.ep, split.etp, split.edp, split.pp) == (8, 2, 1, 1)
    assert read.inputs.gpus == len(read.stages[0].gpus) == 16
    assert read.inputs.model.moe.num_experts == 8
    assert read.placement.slots_per_rank == 1
    for row in read.placement.physical_to_logical:
        assert sorted(row) == list(range(8))


def test_mixtral_puts_two_experts_on_each_gpu(runs: Solved) -> None:
    read = plan_of(runs["mixtral-4gpu"][0])
    assert (read.split.ep, read.inputs.gpus, read.placement.slots_per_rank) == (4, 4, 2)
    for row in read.placement.physical_to_logical:
        assert len(row) == 8
        assert sorted(row) == list(range(8))
