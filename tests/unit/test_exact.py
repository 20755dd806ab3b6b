"""The integer program where its numbers grow large, and where they are rounded."""

from __future__ import annotations

import os
import signal
import threading

import numpy as np
import pytest

from planner.cost.step import split_cost
from planner.inputs.workload import Overlap
from planner.plan.split import Split
from planner.solve.exact import solve_exactly
from planner.solve.interrupts import held_back
from planner.solve.place import linear_start
from planner.solve.problem import LayerProblem
from tests import building
from tests.oracle.plain_cost import all_placements


def layer(windows: int, *, hides: Overlap = "none", overlap: str = "0%", ranks: int = 2) -> LayerProblem:
    """Recorded sets of eight tokens in each window, which travel once to each rank."""
    model = building.model(experts=5, layers=1)
    recorded = building.random_sets(np.random.default_rng(windows), model, windows, 8)
    using = building.constants("gpu", hides=hides, overlap=overlap)
    made = building.instance(model, building.topology(1, ranks), tokens=64, windows=recorded, using=using)
    [stage] = split_cost(made, Split(tp=1, dp=ranks, pp=1, ep=ranks), 1).stages
    return LayerProblem(stage.moe, made.loads[0], stage.slots_R)


def least_s(problem: LayerProblem) -> float:
    """By enumeration."""
    width = int(problem.slots_R.max())
    every = all_placements(problem.num_experts, problem.slots_R.tolist())
    rows = [np.concatenate([np.array([*sorted(h), *[-1] * (width - len(h))]) for h in held]) for held in every]
    return min(problem.seconds(expert_P) for expert_P in rows)


@pytest.mark.parametrize("windows", [3, 200, 600])
def test_as_many_windows_as_a_trace_has_steps(windows: int) -> None:
    """Rows of visits are kept below what CP-SAT can add up; with 600 windows they are left out."""
    problem = layer(windows)
    least, first_P = least_s(problem), linear_start(problem)
    found = solve_exactly(problem, first_P, 4.0 if windows <= 200 else 0.5, 0, 0.0)
    assert least * (1 - 1e-9) <= found.seconds <= problem.seconds(first_P)
    assert found.bound <= least * (1 + 1e-9)
    if windows <= 200:
        assert found.seconds == pytest.approx(least, rel=1e-6)


@pytest.mark.parametrize("hides", ["shared", "two_batch"])
def test_an_overlap_between_thousandths_proves_nothing_too_much(hides: Overlap) -> None:
    problem = layer(3, hides=hides, overlap="63.24%")
    found = solve_exactly(problem, linear_start(problem), 4.0, 0, 0.0)
    assert found.bound <= least_s(problem) * (1 + 1e-12)


def test_ctrl_c_ends_the_program_however_often() -> None:
    """CP-SAT takes the signal for itself unless told not to, ends without a word, and leaves none to Python after."""
    problem = layer(40, ranks=4)
    for _ in range(2):
        timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            solve_exactly(problem, linear_start(problem), 1e6, 0, 0.0)
        timer.join()


def test_ctrl_c_waits_for_what_must_not_be_left_half_done() -> None:
    done = []

    def work() -> None:
        with held_back():
            os.kill(os.getpid(), signal.SIGINT)
            done.append("all")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["all"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
