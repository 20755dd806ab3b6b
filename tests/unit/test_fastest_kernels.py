"""Where several kernels do the same work, predictions are by the one that is done first."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from pydantic import TypeAdapter

from planner.cost.dense import DenseCost
from planner.cost.grid import Grid
from planner.cost.instance import Instance
from planner.cost.moe import moe_cost
from planner.cost.step import split_cost
from planner.cost.term import Term
from planner.errors import InputError
from planner.inputs import documents
from planner.inputs.efficiency import Curve, Curves, Efficiency
from planner.plan.split import Split
from tests import building

SPLIT = Split(tp=1, dp=4, pp=1, ep=4)
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536)


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


KEEPS = (slice(None), slice(1), slice(1, None))


def test_experts_run_one_kernel_the_fastest_where_ranks_are_balanced() -> None:
    winners = set()
    for tokens in TOKENS:
        every, *single = (moe_cost(made(tokens, keep=keep), GRID) for keep in KEEPS)
        experts, choices = 8, every.tokens * 2
        rows, slots = np.array([[choices / 4]]), np.array([experts / 4])
        touched = experts / 4 * (1 - (1 - 1 / experts) ** np.array([[choices]]))
        at_balance = [float(one.class_s(0, rows, touched, slots)[0, 0]) for one in single]
        winner = int(np.argmin(at_balance))
        assert every.kernels_C == single[winner].kernels_C
        winners.add(winner)
    assert winners == {0, 1}


def test_more_tokens_on_balanced_ranks_never_take_less() -> None:
    steps = []
    for tokens in sorted({*TOKENS, *range(1, 3000, 37)}):
        cost = split_cost(made(tokens), SPLIT, 0)
        [stage] = cost.stages
        rows = np.full((1, 4), stage.moe.tokens * 2 / 4)
        steps.append(float(stage.moe.expert_s(rows, np.full((1, 4), 2.0), np.full(4, 2.0)).max()))
    assert np.all(np.diff(steps) >= -1e-12 * np.array(steps[1:]))


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
