"""Whether some split fits, told by sums and in another order, against every split in every layout."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from planner.cost.instance import Instance
from planner.inputs.documents import validated
from planner.inputs.engines import EngineRules
from planner.inputs.kernels import FixedBuffer
from planner.inputs.topology import Topology, resolve
from planner.inputs.topology_file import TopologyFile
from planner.inputs.workload import Phase
from planner.rules import Limits
from planner.rules.grid import SearchSpace
from planner.rules.least import LeastMemory
from planner.rules.ruled import all_ruled, laid_out
from planner.solve import candidates
from planner.solve.candidates import feasible_split
from planner.solve.workers import TimeIsUpError
from tests import building

SEEDS = range(40)


def machine(nodes: int, per_node: int, memory: tuple[int, int]) -> Topology:
    """Nodes of GPUs with so many bytes; the GPUs of the first node may have others."""
    if len(set(memory)) == 1:
        return building.topology(nodes, per_node, of=building.gpu(memory=f"{memory[0]} B"))
    cards = [building.gpu(memory=f"{size} B").model_dump(mode="json") for size in memory]
    groups = [{"gpu": card, "gpus_per_node": per_node, "nodes": 1} for card in cards]
    links: list[dict[str, Any]] = [
        {"level": "node", "bandwidth": "10 GB/s", "latency": "3 us"},
        {"level": "cluster", "bandwidth": "1 GB/s", "latency": "10 us"},
    ]
    return resolve(validated(TopologyFile, {"groups": groups, "links": links}))


def random_case(seed: int) -> tuple[Instance, SearchSpace]:
    """A model, work, an engine and a machine of two, four or six GPUs, equal or not, on which some splits just fit."""
    rng = np.random.default_rng(seed)
    experts = int(rng.choice([4, 6, 8]))
    of = building.model(
        experts=experts,
        layers=int(rng.integers(1, 4)),
        dense_layers=int(rng.integers(0, 2)),
        width=32 * int(rng.integers(1, 5)),
        kv_heads=int(rng.choice([1, 2, 4])),
        groups=int(rng.choice([1, 2])),
        shared=int(rng.choice([0, 64])),
    )
    nodes, per_node = ((1, 2), (2, 2), (2, 1), (2, 3))[rng.integers(4)]
    mixed = nodes == 2 and bool(rng.random() < 0.4)
    phase: Phase = rng.choice(["decode", "prefill"])
    rules = EngineRules(
        expert_grid=rng.choice(["free", "all_or_none", "no_copies"]),
        attention=rng.choice(["any", "all_or_none"]),
        uneven_experts=rng.choice(["never", "always", "without_copies"]),
        redundant_experts=bool(rng.random() < 0.8),
        even_cuts=bool(rng.random() < 0.2),
    )
    limits = Limits(rules, "engine", keep_groups=bool(rng.random() < 0.3))
    redundant = (None, 0, int(rng.integers(0, 5)))[rng.integers(3)]
    using = building.constants(reserve=f"{rng.integers(0, 40)} KiB")
    if rng.random() < 0.8:  # else the buffers are most of what a small model needs
        none = {"buffer": FixedBuffer.model_validate({"size": {"value": "0 B"}})}
        using = using.model_copy(
            update={
                "kernel": using.kernel.model_copy(update=none),
                "collectives": using.collectives.model_copy(update=none),
            }
        )
    large = building.instance(
        of,
        machine(nodes, per_node, (1 << 33, (1 << 33) + mixed)),
        phase=phase,
        tokens=int(rng.integers(1, 40)),
        context=int(rng.integers(1, 3000)),
        using=using,
    )
    space = SearchSpace(limits, {}, redundant)
    # The memory that some split needs at most on a GPU: with it this one fits, and many others do not.
    needs = [(1 << 33) - one.free_bytes for one in all_ruled(large, space) if one.is_feasible] or [1 << 25]
    need = int(rng.choice(needs)) - int(rng.integers(0, 2))
    second = int(need * rng.uniform(0.8, 1.3)) if mixed else need
    return replace(large, topology=machine(nodes, per_node, (need, second))), space


@pytest.mark.parametrize("seed", SEEDS)
def test_what_fits_is_never_ruled_out(seed: int) -> None:
    made, space = random_case(seed)
    least = LeastMemory(made)
    all_of_it = list(all_ruled(made, space))
    for one in all_of_it:
        if one.held is not None and one.held.excess[0] <= 0:
            assert least.excess(one.split, one.redundant_experts) <= 0
    found = feasible_split(made, space)
    assert (found is not None) == any(one.is_feasible for one in all_of_it)
    assert found is None or any(one.is_feasible and one.split == found for one in all_of_it)


def test_sums_rule_out_most_of_what_does_not_fit_by_far() -> None:
    """Otherwise the above would hold of a sum of nothing."""
    over = told = 0
    for seed in SEEDS:
        made, space = random_case(seed)
        nodes, sizes = made.topology.num_nodes, (made.topology.memory_G // 2).tolist()
        half = replace(made, topology=machine(nodes, len(sizes) // nodes, (sizes[0], sizes[-1])))
        least = LeastMemory(half)
        too_full = [one for one in all_ruled(half, space) if one.held is not None and one.held.excess[0] > 0]
        over += len(too_full)
        told += sum(least.excess(one.split, one.redundant_experts) > 0 for one in too_full)
    assert told > over / 2


def test_by_hand() -> None:
    """One GPU: all that it holds but working space, buffers and the engine's reserve; and the last norm counts."""
    made = building.instance(building.model(layers=2), building.topology(1, 1))
    (one, *_) = all_ruled(made, building.space(tp=1, pp=1))
    assert one.held is not None
    beside = ("activations", "expert workspace", "logits", "communication buffers", "engine reserve")
    lines = one.held.memories[0].lines(range(2), 16)
    counted = sum(line.num_bytes for line in lines if line.name not in beside)
    assert LeastMemory(made).excess(one.split, 0) == counted - 80 * 2**30


def test_nothing_is_laid_out_where_all_memory_is_too_little(monkeypatch: pytest.MonkeyPatch) -> None:
    made = building.instance(building.model(), machine(2, 4, (1 << 20, 1 << 20)), tokens=10_000)

    def never(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(candidates, "broken_rules", never)
    monkeypatch.setattr(candidates, "laid_out", never)
    assert feasible_split(made, building.space(None)) is None


def test_a_split_that_lacks_memory_is_not_tried_with_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """All experts would fit, but for the working space: each split is laid once, not once for each number of copies."""
    made = building.instance(building.model(), machine(2, 2, (1 << 20, 1 << 20)), tokens=300, context=8)
    laid = []

    def counted(*arguments: Any) -> Any:
        laid.append(arguments[1])
        return laid_out(*arguments)

    monkeypatch.setattr(candidates, "laid_out", counted)
    assert feasible_split(made, building.space(None)) is None
    assert laid
    assert len(set(laid)) == len(laid)


def test_the_time_is_looked_at_before_each_split() -> None:
    made, looked = building.instance(building.model(), building.topology(2, 2)), 0

    def check_time() -> None:
        nonlocal looked
        looked += 1
        if looked == 2:
            raise TimeIsUpError

    with pytest.raises(TimeIsUpError):
        feasible_split(made, building.space(), check_time)
    assert looked == 2
