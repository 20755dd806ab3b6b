"""Predictions: the fixed set must not move unseen, and what must hold of any of them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.predictions import count_sound
from planner.cost.booking import book
from planner.cost.instance import Instance
from planner.cost.step import SplitCost, split_cost
from planner.inputs import profiles
from planner.inputs.topology import Topology
from planner.inputs.workload import Dedup, Phase
from planner.plan.placement import Placement
from planner.rules.grid import all_splits
from tests import building
from tests.golden import predictions

RENEW = "if it is meant: python -m tests.golden.predictions, and say why in the commit"


@pytest.mark.parametrize("name", predictions.CASES)
def test_no_prediction_moves_unseen(name: str) -> None:
    before = json.loads(predictions.FILE.read_text(encoding="utf-8"))[name]
    moved = predictions.difference(name, before, predictions.predicted(predictions.CASES[name]))
    assert not moved, "\n".join(["predictions have moved:", *moved, RENEW])


def test_a_moved_prediction_is_told_with_its_terms() -> None:
    before = {"step": 1e-3, "experts": 4e-4, "gone": 1e-4}
    lines = predictions.difference("case", before, {"step": 1.1e-3, "experts": 4e-4, "new": 2e-4})
    assert [line.split()[1] for line in lines] == ["step", "gone", "new"]
    assert lines[0].endswith("+10.00%")


# --- any model on any machine ---------------------------------------------------------------------

MODELS, NODES = profiles.names("models"), profiles.names("nodes")


@pytest.mark.parametrize("index", range(max(len(MODELS), len(NODES))))
def test_every_model_and_node_gives_finite_times_no_faster_than_light(index: int) -> None:
    """Each shipped model, and each shipped node, in one pair; every split of the pair that can be laid out.

    All pairs: `python -m benchmarks predictions`.
    """
    model, node = MODELS[index % len(MODELS)], NODES[index % len(NODES)]
    phase: Phase = "decode" if index % 2 else "prefill"
    assert count_sound(model, node, phase) > 0


# --- bandwidth and load ---------------------------------------------------------------------------


def slower_links(on: Topology, level: int) -> Topology:
    """The same with half the bandwidth at one level."""
    table = on.bandwidth_VG.copy()
    table[level] /= 2
    return replace(on, bandwidth_VG=table)


def priced(made: Instance, split_index: int, seed: int) -> tuple[SplitCost, Placement] | None:
    splits = [split for split in all_splits(made, {}) if split.pp == 1]
    split = splits[split_index % len(splits)]
    if split.ep > made.model.moe.num_experts or made.model.moe.num_experts % split.ep:
        return None
    cost = split_cost(made, split, 0)
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(made.model.moe.num_experts) for _ in made.model.moe_layer_ids]
    return cost, Placement(made.model.moe_layer_ids, cost.slots_per_rank, np.stack(rows))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 200),
    st.integers(0, 40),
    st.sampled_from([0, 1]),
    st.sampled_from(["all-to-all", "deepep-normal", "deepep-low-latency", "allgather-reducescatter", "hybrid-ep"]),
    st.sampled_from(["expert", "gpu", "node"]),
)
def test_half_the_bandwidth_never_helps_and_shows_in_what_uses_it(
    seed: int, split_index: int, level: int, kernel: str, dedup: Dedup
) -> None:
    rng = np.random.default_rng(seed)
    of = building.model(experts=8, heads=8)
    windows = building.random_windows(rng, of, 2)
    using = building.constants(dedup, kernel=kernel, hides="shared", overlap="70%")
    made = building.instance(
        of, building.topology(2, 4), windows=windows, using=using, tokens=int(rng.integers(1, 999))
    )
    before = priced(made, split_index, seed)
    if before is None:
        return
    cost, placement = before
    slow = replace(made, topology=slower_links(made.topology, level))
    after = split_cost(slow, cost.split, 0)
    cuts = (range(of.num_layers),)
    one, other = book(cost, cuts, placement), book(after, cuts, placement)
    assert other.step_s >= one.step_s
    seconds = {term.name: term.seconds for term in one.terms}
    work = [term for term in other.terms if term.seconds > 0]  # what is hidden counts less
    grown = [term.name for term in work if term.seconds > seconds[term.name] * (1 + 1e-12)]
    for term in work:
        assert term.seconds >= seconds[term.name] * (1 - 1e-12), term.name
    if level == 1 and cost.split.ep == 8 and cost.split.edp == 1:  # all ranks exchange across the nodes
        assert {"dispatch", "combine"} & set(grown)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 200), st.integers(0, 40), st.sampled_from(["decode", "prefill"]), st.integers(1, 4000))
def test_terms_add_up_and_more_tokens_take_longer(seed: int, split_index: int, phase: Phase, tokens: int) -> None:
    of = building.model(experts=8, heads=8, shared=96)
    windows = building.random_windows(np.random.default_rng(seed), of, 2)
    using = building.constants(hides="two_batch", overlap="70%")
    made = building.instance(of, building.topology(2, 4), phase=phase, windows=windows, using=using, tokens=tokens)
    found = priced(made, split_index, seed)
    if found is None:
        return
    cost, placement = found
    booked = book(cost, (range(of.num_layers),), placement)
    assert sum(term.seconds for term in booked.terms) == pytest.approx(booked.step_s, rel=1e-12)
    assert sum(part.share for part in booked.rests_on) == pytest.approx(1.0)
    work = made.workload.model_copy(update={"tokens_per_gpu": tokens + 17})
    more = split_cost(replace(made, workload=work), cost.split, 0)
    assert book(more, (range(of.num_layers),), placement).step_s > booked.step_s
