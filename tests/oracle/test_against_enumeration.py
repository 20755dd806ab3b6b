"""Random small instances: the solver's optimum equals that of an enumerator that shares no code."""

from __future__ import annotations

import numpy as np
import pytest

from planner.cost.instance import Instance
from planner.inputs.constants import Constants
from planner.inputs.workload import CopyRule, Dedup
from planner.rules.grid import SearchSpace
from planner.rules.ruled import all_ruled
from planner.solve.solution import Options
from planner.solve.solver import solve
from planner.solve.watch import NoWatch
from planner.solve.workers import Workers
from tests import building
from tests.oracle.plain_cost import best_step

INSTANCES = 300
UNEQUAL = 60
RECORDED = 140
NEAREST = 80
PER_TEST = 10


def small_instance(seed: int) -> tuple[Instance, SearchSpace]:
    """A random machine of 2-4 GPUs, a random model of 1-3 layers, random routing."""
    rng = np.random.default_rng(seed)
    nodes, per_node = ((1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (3, 1))[rng.integers(6)]
    experts = int(rng.integers(2, 6))
    made = building.model(
        experts=experts,
        top_k=int(rng.integers(1, min(3, experts) + 1)),
        layers=int(rng.integers(1, 4)),
        dense_layers=int(rng.integers(0, 2)),
        hidden=int(64 * rng.integers(1, 4)),
        width=int(48 * rng.integers(1, 5)),
        shared=int(rng.choice([0, 96])),
    )
    machine = building.topology(
        nodes, per_node, inner=f"{rng.integers(1, 40)} GB/s", outer=f"{rng.integers(1, 10)} GB/s"
    )
    windows = building.random_windows(rng, made, int(rng.integers(1, 4)), int(rng.integers(5, 400)))
    using = random_constants(rng)
    phase = "decode" if rng.random() < 0.5 else "prefill"
    tokens = int(rng.integers(1, 3000))
    whole = building.instance(made, machine, phase=phase, tokens=tokens, windows=windows, using=using)  # type: ignore[arg-type]
    # So small a model would be copied whole to every GPU; pins spread it.
    return whole, building.space(int(rng.integers(0, 3)), **_pins(rng, machine.num_gpus, experts, made.num_layers))


def _pins(rng: np.random.Generator, gpus: int, experts: int, layers: int) -> dict[str, int]:
    """Degrees that some legal split has."""

    def pick(least: int, total: int, most: int) -> int:
        return int(rng.choice([d for d in range(least, total + 1) if total % d == 0 and d <= most] or [1]))

    pp = pick(2, gpus, layers) if rng.random() < 0.25 else 1
    kind = rng.random()
    if kind < 0.15:
        return {"pp": pp, "etp": pick(2, gpus // pp, 4)}
    if kind < 0.3 and gpus // pp % 2 == 0:
        return {"pp": pp, "tp": 2}
    return {"pp": pp, "ep": pick(2, gpus // pp, experts)}


def random_constants(rng: np.random.Generator, dedup: Dedup = "expert", copies: CopyRule = "even") -> Constants:
    """Any way of sending tokens, and of hiding it."""
    return building.constants(
        dedup,
        copies=copies,
        hides=rng.choice(["none", "shared", "two_batch"]),
        overlap=str(rng.choice(["50%", "70%"])),
        kernel=str(rng.choice(["all-to-all", "deepep-normal", "allgather-reducescatter"], p=[0.6, 0.25, 0.15])),
        several=bool(rng.spawn(1)[0].integers(2)),
    )


def recorded_instance(seed: int) -> tuple[Instance, SearchSpace]:
    """Tokens travel once to a GPU or node, and which experts they chose together was recorded."""
    rng = np.random.default_rng(2000 + seed)
    nodes, per_node = ((1, 2), (1, 3), (2, 1), (2, 2), (3, 1), (1, 4))[rng.integers(6)]
    experts = int(rng.integers(3, 6))
    made = building.model(
        experts=experts,
        top_k=int(rng.integers(1, min(3, experts) + 1)),
        layers=1,
        hidden=int(64 * rng.integers(1, 4)),
        width=int(48 * rng.integers(1, 5)),
    )
    machine = building.topology(
        nodes, per_node, inner=f"{rng.integers(1, 40)} GB/s", outer=f"{rng.integers(1, 10)} GB/s"
    )
    windows = building.random_sets(rng, made, int(rng.integers(1, 3)), int(rng.integers(5, 40)))
    using = random_constants(rng, str(rng.choice(["gpu", "node"])))  # type: ignore[arg-type]
    phase = "decode" if rng.random() < 0.5 else "prefill"
    tokens = int(rng.integers(1, 3000))
    whole = building.instance(made, machine, phase=phase, tokens=tokens, windows=windows, using=using)  # type: ignore[arg-type]
    return whole, building.space(int(rng.integers(0, 2)), **_pins(rng, machine.num_gpus, experts, made.num_layers))


def nearest_instance(seed: int) -> tuple[Instance, SearchSpace]:
    """The nearest copy serves; sometimes GPUs and links are unequal."""
    rng = np.random.default_rng(3000 + seed)
    nodes, per_node = ((2, 1), (2, 2), (3, 1), (1, 3))[rng.integers(4)]
    machine = building.topology(
        nodes, per_node, inner=f"{rng.integers(1, 40)} GB/s", outer=f"{rng.integers(1, 10)} GB/s"
    )
    if rng.random() < 0.3:
        machine = building.unequal_topology(seed)
    experts = int(rng.integers(3, 6))
    made = building.model(
        experts=experts,
        top_k=int(rng.integers(1, min(3, experts) + 1)),
        layers=int(rng.integers(1, 3)),
        hidden=int(64 * rng.integers(1, 4)),
        width=int(48 * rng.integers(1, 5)),
    )
    windows = building.random_windows(rng, made, int(rng.integers(1, 4)), int(rng.integers(5, 400)))
    using = random_constants(rng, copies="nearest")
    tokens = int(rng.integers(1, 3000))
    whole = building.instance(made, machine, tokens=tokens, windows=windows, using=using)
    return whole, building.space(int(rng.integers(1, 4)), **_pins(rng, machine.num_gpus, experts, made.num_layers))


def unequal_instance(seed: int) -> tuple[Instance, SearchSpace]:
    """As `small_instance`, on unequal GPUs and links, with fewer layers."""
    rng = np.random.default_rng(1000 + seed)
    machine = building.unequal_topology(seed)
    experts = int(rng.integers(2, 5))
    made = building.model(
        experts=experts,
        top_k=int(rng.integers(1, min(2, experts) + 1)),
        layers=int(rng.integers(1, 3)),
        hidden=int(64 * rng.integers(1, 4)),
        width=int(48 * rng.integers(1, 5)),
    )
    windows = building.random_windows(rng, made, int(rng.integers(1, 3)), int(rng.integers(5, 400)))
    using = random_constants(rng)
    phase = "decode" if rng.random() < 0.5 else "prefill"
    tokens = int(rng.integers(1, 3000))
    whole = building.instance(made, machine, phase=phase, tokens=tokens, windows=windows, using=using)  # type: ignore[arg-type]
    return whole, building.space(int(rng.integers(0, 2)), **_pins(rng, machine.num_gpus, experts, made.num_layers))


def compare_with_enumeration(whole: Instance, space: SearchSpace, seed: int) -> None:
    """Solve and enumerate; both must agree, and the solver's bound must hold."""
    legal = [candidate for candidate in all_ruled(whole, space) if candidate.is_feasible]
    expected = np.inf
    for candidate in legal:
        stages = candidate.cost.stages
        gpus, slots = [s.grid.gpus for s in stages], [s.slots_R.tolist() for s in stages]
        expected = min(expected, best_step(whole, candidate.split, gpus, slots))
    with Workers(cores=1) as workers:
        options = Options(gap=0.0, effort=1e6)
        solved = solve(whole, space, options, building.inputs_of(whole, space, gap=0.0), workers, NoWatch())
    assert solved.plan is not None
    assert solved.plan.predicted.step_s == pytest.approx(expected, rel=1e-6), seed
    assert solved.plan.solver.status == "optimal", (seed, solved.plan.solver)
    assert solved.plan.solver.bound_s <= expected * (1 + 1e-9), seed


@pytest.mark.parametrize("first", range(0, INSTANCES, PER_TEST))
def test_optimum_equals_enumeration(first: int) -> None:
    for seed in range(first, first + PER_TEST):
        compare_with_enumeration(*small_instance(seed), seed)


@pytest.mark.parametrize("first", range(0, RECORDED, PER_TEST))
def test_optimum_with_recorded_sets_equals_enumeration(first: int) -> None:
    for seed in range(first, first + PER_TEST):
        compare_with_enumeration(*recorded_instance(seed), seed)


@pytest.mark.parametrize("first", range(0, NEAREST, PER_TEST))
def test_optimum_where_the_nearest_copy_serves_equals_enumeration(first: int) -> None:
    for seed in range(first, first + PER_TEST):
        compare_with_enumeration(*nearest_instance(seed), seed)


@pytest.mark.parametrize("first", range(0, UNEQUAL, PER_TEST))
def test_optimum_on_unequal_machines_equals_enumeration(first: int) -> None:
    for seed in range(first, first + PER_TEST):
        compare_with_enumeration(*unequal_instance(seed), seed)
