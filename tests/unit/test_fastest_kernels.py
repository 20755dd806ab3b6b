"""Where several kernels do the same work, predictions are by the one that is done first."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import yaml
from pydantic import TypeAdapter

from planner.cost.dense import DenseCost
from planner.cost.grid import Grid
from planner.cost.instance import Instance, LayerLoad
from planner.cost.stage_moe import moe_cost
from planner.cost.term import Term
from planner.errors import InputError
from planner.inputs import documents
from planner.inputs.efficiency import Curve, Curves, Efficiency
from planner.plan.split import Split
from planner.solve.place import LayerJob, place_layer
from planner.solve.problem import LayerProblem
from tests import building

SPLIT = Split(tp=1, dp=4, pp=1, ep=4)
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536)


KEEPS = (slice(None), slice(1), slice(1, None))


def made(tokens: int, *, keep: slice = slice(None)) -> Instance:
    """Two kernels for everything: the first is strong, the second begins sooner; or only some of them."""
    using = building.constants(several=True)
    works = ("experts", "gemm", "attention_prefill", "attention_decode")
    kept = {work: {name: of[keep] for name, of in getattr(using.efficiency, work).items()} for work in works}
    using = using.model_copy(update={"efficiency": using.efficiency.model_copy(update=kept)})
    return building.instance(on=building.topology(2, 2), tokens=tokens, using=using)


GRID = Grid(SPLIT, building.topology(2, 2), (0, 1, 2, 3))


def dense_terms(instance: Instance) -> dict[str, Term]:
    cost = DenseCost(instance, GRID, 0)
    runs = [term for terms in cost.run_terms.values() for term in terms]
    return {term.name: term for term in (*runs, *cost.head)}


def test_each_term_takes_the_least_time_of_the_kernels() -> None:
    winners = set()
    for tokens in TOKENS:
        every, strong, soon = (dense_terms(made(tokens, keep=keep)) for keep in KEEPS)
        for name in ("attention projections", "attention", "router", "LM head"):
            assert every[name].seconds == min(strong[name].seconds, soon[name].seconds)
            winners.add(strong[name].seconds < soon[name].seconds)
    assert winners == {True, False}  # or else nothing was tried


HOT = LayerLoad(np.array([[0.4, 0.2, 0.05, 0.05, 0.05, 0.05, 0.1, 0.1]]), np.array([2.0]), None)
"""The first of four ranks has 2.4 times the mean rows, if experts lie in order."""
LAYOUTS = {"in order": [0, 1, 2, 3, 4, 5, 6, 7], "balanced": [0, 2, 1, 3, 6, 4, 7, 5]}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layer_runs_the_one_kernel_that_is_done_first_as_it_is_placed(layout: str) -> None:
    winners = []
    for tokens in TOKENS:
        every, *single = (moe_cost(made(tokens, keep=keep), GRID) for keep in KEEPS)
        seconds = [float(one.layer(HOT, np.array(LAYOUTS[layout])).total_S[0]) for one in single]
        found = every.layer(HOT, np.array(LAYOUTS[layout]))
        assert found.total_S[0] == min(seconds)
        winners.append(int(np.argmin(seconds)))
        assert found.kernel == single[winners[-1]].kernels_C[0]
    assert set(winners) == {0, 1}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_more_tokens_never_take_less(layout: str) -> None:
    """Also where another kernel becomes the fastest, and a rank has far more than the mean."""
    layout_P, sizes = np.array(LAYOUTS[layout]), sorted({*TOKENS, *range(1, 3000, 7)})
    experts = [float(moe_cost(made(tokens), GRID).layer(HOT, layout_P).expert_S[0]) for tokens in sizes]
    assert np.all(np.diff(experts) > 0)


@pytest.mark.parametrize("tokens", [4, 256, 400, 600, 1024])
def test_a_layer_is_placed_for_the_kernel_that_is_fastest_so(tokens: int) -> None:
    """As enumeration finds it, and no kernel's bound is above that."""
    made_of = [LayerProblem(moe_cost(made(tokens, keep=keep), GRID), HOT, np.full(4, 2)) for keep in KEEPS]
    orders = (np.array(order) for order in permutations(range(8)) if all(order[i] < order[i + 1] for i in (0, 2, 4, 6)))
    least = min(made_of[0].seconds(order_P) for order_P in orders)
    every, *single = (place_layer(LayerJob(problem, 4.0, 0, 0.0)) for problem in made_of)
    assert every.seconds == pytest.approx(least, rel=1e-9)
    assert every.is_optimal
    assert every.seconds == min(one.seconds for one in single)
    assert every.bound <= min(one.bound for one in single)


CURVE = {"value": {"base": "1 us", "compute": "50%", "memory": "50%"}}


def test_one_curve_may_be_written_without_a_list() -> None:
    """It is also written so, that plans of before read as they did; a list of several stays one."""
    of = TypeAdapter(Curves)
    single, two = of.validate_python(CURVE), of.validate_python([CURVE, CURVE])
    assert (len(single), len(two)) == (1, 2)
    assert of.validate_json(json.dumps([CURVE])) == single
    assert isinstance(of.dump_python(single, mode="json"), dict)
    for curves in (single, two):
        assert of.validate_json(of.dump_json(curves)) == curves
    assert isinstance(single[0], Curve)


@pytest.mark.parametrize("listed", [True, False])
def test_a_wrong_value_is_told_with_its_place(tmp_path: Path, listed: bool) -> None:
    wrong = {"value": {"base": "1 us", "compute": "50%", "memory": "50%", "exponent": 9}}
    path = tmp_path / "efficiency.yaml"
    data = {"schema": "ep-plan/efficiency/1", "gemm": {"bf16": [CURVE, wrong] if listed else wrong}}
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    with pytest.raises(
        InputError, match=r"efficiency\.yaml:\d+:\d+: gemm\.bf16\S*exponent: 9: .*less than or equal to 8"
    ) as caught:
        documents.load(path, Efficiency, "efficiency")
    assert len(caught.value.problems) == 1


def test_a_list_of_no_curves_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "efficiency.yaml"
    path.write_text("schema: ep-plan/efficiency/1\ngemm: {bf16: []}\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"2:14: gemm\.bf16: .*at least 1"):
        documents.load(path, Efficiency, "efficiency")
