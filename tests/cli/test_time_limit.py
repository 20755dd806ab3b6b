"""A time limit ends the search and never the plan."""

from __future__ import annotations

from pathlib import Path

from tests.cli.running import example, plan_of, run


def test_a_tiny_limit_still_gives_a_plan(tmp_path: Path) -> None:
    deployment = example("tiny-moe", tmp_path)
    result = run("solve", deployment, "--time-limit", "0 s", "-o", "plan.json", cwd=tmp_path)
    assert result.code == 0, result.err
    assert "stopped by the time limit" in result.words
    plan = plan_of(tmp_path / "plan.json")
    assert (plan.solver.status, plan.solver.stopped_by) == ("feasible", "time_limit")
    (note,) = [note for note in plan.notes if "time limit" in note]
    solver = plan.solver
    assert f"at most {100 * (1 - solver.bound_s / solver.objective_s):.2f} % of its step time" in note
    assert plan.held_out is None
    assert plan.predicted.step_s <= plan.baselines["linear"].step_s
    checked = run("check", "plan.json", cwd=tmp_path)
    assert checked.code == 0, checked.out


def test_a_limit_while_workers_place_layers(large: Path, tmp_path: Path) -> None:
    result = run("solve", large, "--split", "tp=1,pp=1,ep=32", "--time-limit", "3 s", cwd=tmp_path)
    assert result.code == 0, result.err
    assert plan_of(tmp_path / "plan.json").solver.stopped_by == "time_limit"


def test_a_limit_that_cuts_off_the_held_out_figures_is_told(large: Path, tmp_path: Path) -> None:
    options = ["--split", "tp=1,pp=1,ep=32", "--gap", "90%", "--time-limit", "100 ms"]
    result = run("solve", large, *options, cwd=tmp_path)
    assert result.code == 0, result.err
    plan = plan_of(tmp_path / "plan.json")
    assert plan.held_out is None
    assert plan.solver.stopped_by == "time_limit"


def test_a_limit_in_the_file(tmp_path: Path) -> None:
    deployment = example("tiny-moe", tmp_path)
    deployment.write_text(deployment.read_text() + "  time_limit: 1 us\n")
    plan = run("solve", deployment, "--json", cwd=tmp_path).json()
    assert plan["solver"]["stopped_by"] == "time_limit"


def test_a_proved_plan_is_optimal_whatever_the_limit(tmp_path: Path) -> None:
    plan = run("solve", example("mixtral-4gpu", tmp_path), "--time-limit", "1 us", "--json", cwd=tmp_path).json()
    assert (plan["solver"]["status"], plan["solver"]["stopped_by"]) == ("optimal", "proof")
