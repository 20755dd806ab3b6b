"""A time limit ends the search, and never a plan that was found."""

from __future__ import annotations

from pathlib import Path

import pytest

from planner.cost.prepare import from_deployment
from planner.inputs.deployment import load_deployment
from planner.solve.request import solve_deployment
from planner.solve.watch import NoWatch
from planner.solve.workers import Workers
from tests.cli.running import example, files_in, plan_of, run


def test_a_limit_before_the_first_plan_is_5(large: Path, tmp_path: Path) -> None:
    """It passes while inputs are read and the 546 splits are bounded; nothing is claimed about them."""
    (tmp_path / "plan.json").write_text("older")
    result = run("solve", large, "--time-limit", "1 us", "--json", cwd=tmp_path)
    assert result.code == 5
    (problem,) = result.problems()
    assert "0 of 546 splits" in problem["message"]
    assert "infeasible" not in result.err
    assert "--time-limit" in problem["hint"]
    assert "--split" in problem["hint"]
    assert (tmp_path / "plan.json").read_text() == "older"
    assert files_in(tmp_path) == {"plan.json"}


def test_a_limit_in_the_file_before_the_first_plan_is_5(tmp_path: Path) -> None:
    deployment = example("tiny-moe", tmp_path)
    deployment.write_text(deployment.read_text() + "  time_limit: 1 us\n")
    result = run("solve", deployment, cwd=tmp_path)
    assert (result.code, result.out) == (5, "")
    assert files_in(tmp_path) == {"tiny-moe"}


class LimitAt(NoWatch):
    """Lets the time limit pass when a certain piece of work begins."""

    def __init__(self, workers: Workers, words: str) -> None:
        self.workers, self.words = workers, words

    def begin(self, what: str, total: int) -> None:
        """The work begins."""
        if self.words in what:
            self.workers.deadline = 0.0


@pytest.mark.parametrize("words", ["placing experts", "held-out"])
def test_a_limit_later_keeps_the_plan_and_says_so(words: str, tmp_path: Path) -> None:
    loaded = load_deployment(example("tiny-moe", tmp_path))
    prepared = from_deployment(loaded)
    with Workers(cores=1) as workers:
        plan = solve_deployment(loaded, prepared, tmp_path / "plan.json", workers, LimitAt(workers, words)).plan
    assert plan is not None
    solver = plan.solver
    assert (solver.status, solver.stopped_by) == ("feasible", "time_limit")
    (note,) = [note for note in plan.notes if "time limit" in note]
    assert f"at most {100 * (1 - solver.bound_s / solver.objective_s):.2f} % of its step time" in note
    assert plan.held_out is None
    assert plan.predicted.step_s <= plan.baselines["linear"].step_s


def test_a_limit_while_workers_place_layers(large: Path, tmp_path: Path) -> None:
    result = run("solve", large, "--split", "tp=1,pp=1,ep=32", "--time-limit", "8 s", cwd=tmp_path)
    assert result.code == 0, result.err
    assert plan_of(tmp_path / "plan.json").solver.stopped_by == "time_limit"
    assert "stopped by the time limit" in result.words
    checked = run("check", "plan.json", cwd=tmp_path)
    assert checked.code == 0, checked.out


def test_a_proved_plan_is_optimal_whatever_the_limit(tmp_path: Path) -> None:
    """Of mixtral-4gpu the first plan meets the bound; the limit passes right then."""
    loaded = load_deployment(example("mixtral-4gpu", tmp_path))
    prepared = from_deployment(loaded)

    class AtFirstPlan(NoWatch):
        """Lets the limit pass when there is a plan."""

        def status(self, best_s: float | None, bound_s: float) -> None:
            """The first plan is there."""
            workers.deadline = 0.0

    with Workers(cores=1) as workers:
        plan = solve_deployment(loaded, prepared, tmp_path / "plan.json", workers, AtFirstPlan()).plan
    assert plan is not None
    assert (plan.solver.status, plan.solver.stopped_by) == ("optimal", "proof")
