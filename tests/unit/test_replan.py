"""When to move experts: on loads whose truth is known."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

from planner.capacity.replan import Asked, Deck, Replan, replanned_from
from planner.check import check
from planner.cost.booking import memory_G
from planner.cost.instance import Instance
from planner.plan.plan import Plan
from planner.plan.split import Split
from planner.report.replan_report import render_replan
from planner.solve.solution import Options
from planner.solve.solver import GivenPlacement, booked_placement, solve
from planner.solve.watch import NoWatch
from planner.solve.workers import Workers
from planner.trace.windows import subset
from tests import building

Floats = NDArray[np.float64]
MODEL = building.model(experts=16, top_k=2, layers=3)
MACHINE = building.topology(2, 2)
SPACE = building.space(4, ep=4, tp=1)


def skew(seed: int) -> Floats:
    """Shares of 16 experts in 3 layers."""
    return np.random.default_rng(seed).dirichlet(np.full(16, 0.8), 3)


def drawn(share_LE: Floats, seed: int, windows: int = 8, tokens: int = 4000) -> Instance:
    """An instance whose windows are drawn from these shares."""
    counts = np.random.default_rng(seed).multinomial(tokens * 2, np.tile(share_LE, (windows, 1, 1)))
    return building.instance(MODEL, MACHINE, tokens=1000, windows=building.counted(counts, [0, 1, 2], 2))


@pytest.fixture(scope="module")
def in_force() -> Plan:
    made = drawn(skew(0), 0)
    found = solve(made, SPACE, Options(effort=1.0), building.inputs_of(made, SPACE), Workers(cores=1), NoWatch()).plan
    assert found is not None
    return found


def asked(plan: Plan, now: Instance, interval_s: float = 60.0, budget: int | None = None) -> Replan:
    return replanned_from(Deck.of(plan, now, Path("plan.json")), Asked(interval_s, budget), NoWatch())


def test_an_unchanged_load_moves_nothing(in_force: Plan) -> None:
    assert asked(in_force, drawn(skew(0), 0)).best == 0


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_another_sample_of_the_same_load_moves_nothing(seed: int, in_force: Plan) -> None:
    found = asked(in_force, drawn(skew(0), seed))
    assert found.best == 0
    assert found.answers[0].why == "nothing"
    assert {answer.why for answer in found.answers[1:]} <= {"chance", "small"}


def test_a_changed_load_moves_as_few_as_pay(in_force: Plan) -> None:
    found = asked(in_force, drawn(skew(9), 1))
    steps = [answer.step_s for answer in found.answers]
    assert found.answers[0].moves == 0
    assert found.answers[found.best].moves > 0
    assert steps == sorted(steps, reverse=True)
    best = max(answer.net_s for answer in found.answers)
    assert found.answers[found.best].net_s == best
    for answer, moved in zip(found.answers, found.migrations, strict=True):
        assert answer.net_s == answer.gained_per_interval_s - answer.migration_s
        assert answer.moves == moved.moves
        assert answer.migration_s == pytest.approx(moved.seconds)
        slot = 3 * 64 * 96 * 2
        assert sum(moved.bytes_by_level.values()) == answer.moves * slot


@pytest.mark.parametrize("budget", [0, 1, 3, 7])
def test_a_budget_is_kept(budget: int, in_force: Plan) -> None:
    found = asked(in_force, drawn(skew(9), 1), budget=budget)
    assert max(answer.moves for answer in found.answers) <= budget
    whole = asked(in_force, drawn(skew(9), 1))
    assert found.answers[-1].step_s >= whole.answers[-1].step_s


@pytest.mark.parametrize(
    ("budget", "reason"),
    [
        (0, "no move is allowed (--budget 0)"),
        (5, "no placement within 5 moves is faster on this trace"),
        (None, "no placement is faster on this trace"),
    ],
)
def test_a_budget_that_leaves_nothing_to_do_is_named(budget: int | None, reason: str, in_force: Plan) -> None:
    """No answer moves anything; which limit that was under is what the reason tells."""
    found = replace(asked(in_force, drawn(skew(9), 1), budget=0), budget=budget)
    console = Console(file=io.StringIO(), width=100)
    with console.capture() as printed:
        render_replan(found, console)
    assert printed.get().splitlines()[:2] == ["do nothing", reason]


def test_what_does_not_pay_in_time_is_left(in_force: Plan) -> None:
    """The same load for a moment only: moving would take longer than it gains."""
    found = asked(in_force, drawn(skew(9), 1), interval_s=1e-6)
    assert found.best == 0
    assert {answer.why for answer in found.answers[1:]} == {"costs_more"}


def test_without_room_for_an_expert_only_copies_give_way(in_force: Plan) -> None:
    """One byte less than an expert is free: slots of copies are overwritten, and what needs more is not to be done."""
    now = drawn(skew(9), 1)
    deck = Deck.of(in_force, now, Path("plan.json"))
    used = int(memory_G(deck.cost, deck.cuts, deck.before).max())
    card = building.gpu(memory=f"{used + 3 * 64 * 96 * 2 - 1} B")
    found = asked(in_force, replace(now, topology=building.topology(2, 2, of=card)))
    told = list(zip(found.answers, found.migrations, strict=True))[1:]
    assert {answer.why for answer, _ in told} >= {"gains"}
    assert all(answer.why != "gains" for answer, moved in told if moved.lacking_bytes)
    assert {moved.received_bytes for _, moved in told if not moved.lacking_bytes} == {0}
    assert {moved.lacking_bytes for _, moved in told} <= {0, 1}
    assert found.answers[found.best].why == "gains"


def test_a_single_window_is_no_evidence(in_force: Plan) -> None:
    now = drawn(skew(9), 1)
    assert now.windows is not None
    found = asked(in_force, replace(now, windows=subset(now.windows, [0])))
    assert found.best == 0
    assert {answer.why for answer in found.answers[1:]} == {"too_few_windows"}


def test_the_new_plan_passes_the_check(in_force: Plan) -> None:
    now = drawn(skew(9), 1)
    found = asked(in_force, now, budget=6)
    placement = found.placements[found.best]
    given = GivenPlacement(
        split=Split(**in_force.split.model_dump()),
        cuts=tuple(range(*stage.layers) for stage in in_force.stages),
        gpus=tuple(stage.gpus for stage in in_force.stages),
        placement=placement,
    )
    inputs = building.inputs_of(now, SPACE)
    made = booked_placement(now, SPACE, Options(), inputs, given, Workers(cores=1), NoWatch())
    assert check(made, now) == []
    assert made.predicted.step_s == found.answers[found.best].step_s
    assert made.solver.bound_s <= made.predicted.step_s
