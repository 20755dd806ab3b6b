"""The cheapest repair after a loss: by hand, and against every placement there is."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product

import numpy as np
import pytest

from planner.capacity.loss import loss_of
from planner.capacity.repair import Repair, repair, repaired_plan
from planner.capacity.survivors import Load, covers
from planner.check import check, space_of
from planner.cost.instance import Instance
from planner.inputs.documents import validated
from planner.inputs.engines import EngineRules
from planner.inputs.model import Model
from planner.inputs.topology import Topology, resolve
from planner.inputs.topology_file import TopologyFile
from planner.plan.placement import Placement
from planner.plan.plan import Plan
from planner.plan.split import Split
from planner.rules import Limits
from planner.rules.grid import SearchSpace
from planner.solve.restore import fewest_loads
from planner.solve.solution import Options
from planner.solve.solver import GivenPlacement, booked_placement, solve
from planner.solve.watch import NoWatch
from planner.solve.workers import Workers
from tests import building

EVEN = EngineRules(expert_grid="free", attention="any", uneven_experts="never", redundant_experts=True)
WIDTH = 32
SLOT = 3 * 64 * WIDTH * 2
"""Bytes of an expert: gate, up and down, bf16."""


def without(machine: Topology, node: int) -> Topology:
    """The machine with a node out of service."""
    data = machine.file.model_dump(mode="json", exclude_defaults=True) | {"out_of_service": [{"node": node}]}
    return resolve(validated(TopologyFile, data))


def in_force(made: Instance, split: Split, rows: Sequence[Sequence[int]], space: SearchSpace) -> Plan:
    """A plan with a placement made by hand: one row of slots for each layer."""
    gpus = tuple(tuple(range(k * split.stage_gpus, (k + 1) * split.stage_gpus)) for k in range(split.pp))
    layers = made.model.num_layers
    cuts = tuple(range(k * layers // split.pp, (k + 1) * layers // split.pp) for k in range(split.pp))
    width = len(rows[0]) // split.ep
    given = GivenPlacement(split, cuts, gpus, Placement(tuple(range(layers)), width, np.array(rows)))
    inputs = building.inputs_of(made, space)
    return booked_placement(made, space, Options(), inputs, given, Workers(cores=1), NoWatch())


def after_loss(before: Plan, made: Instance, node: int, space: SearchSpace) -> tuple[Repair, Instance]:
    """The repair of a plan that loses a node; any split may follow."""
    left = Instance(made.model, without(made.topology, node), made.workload, made.constants, made.windows)
    anew = solve(left, space, Options(effort=0.1), building.inputs_of(left, space), Workers(cores=1), NoWatch()).plan
    assert anew is not None
    return repair(before, (node,), anew, left, space), left


def small(experts: int, layers: int = 1) -> Model:
    return building.model(experts=experts, layers=layers, hidden=64, width=WIDTH)


def test_a_copy_gives_way_to_the_expert_that_is_lost() -> None:
    """Ranks 0 and 1 hold 0 1 and 0 2; expert 3 is gone: it takes the place of one of the two copies of 0."""
    made = building.instance(small(4), building.topology(2, 2))
    space = building.space(4, tp=1, etp=1, edp=1, pp=1)
    before = in_force(made, Split(1, 4, 1, 4), [[0, 1, 0, 2, 0, 3, 1, 2]], space)
    found, left = after_loss(before, made, 1, building.space(0, tp=1, etp=1, edp=1, pp=1))
    assert found.cheapest is not None
    assert found.given is not None
    assert [(one.expert, one.source) for one in found.cheapest.loads.experts] == [(3, None)]
    assert found.cheapest.loads.total_bytes == found.cheapest.loads.storage_bytes == SLOT
    assert found.cheapest.loads.link_s == 0
    ranks = found.given.placement.expert_LP[0].reshape(2, -1).tolist()
    assert ranks in ([[0, 1], [2, 3]], [[1, 3], [0, 2]])
    inputs = building.inputs_of(left, space)
    plan = repaired_plan(found, inputs, left, space_of(before), Workers(cores=1), NoWatch())
    assert check(plan, left) == []
    assert plan.predicted.step_s == found.cheapest.step_s


def test_another_copy_of_the_grid_is_left_as_it_is() -> None:
    """Each node holds all experts: with one of them gone nothing is brought."""
    made = building.instance(small(4), building.topology(2, 2))
    space = building.space(0, tp=1)
    before = in_force(made, Split(1, 4, 1, 2, 1, 2), [[0, 3, 1, 2]], space)
    found, _ = after_loss(before, made, 0, space)
    assert found.cheapest is not None
    assert found.given is not None
    assert found.cheapest.loads.total_bytes == 0
    assert found.given.placement.expert_LP.tolist() == [[0, 3, 1, 2]]
    assert found.cheapest.split == "tp=1 dp=2 ep=2"


def test_a_slot_that_must_be_filled_is_filled_over_the_links() -> None:
    """Five experts on two ranks of equally many slots: the lost one is read once, the sixth slot takes a copy."""
    made = building.instance(small(5), building.topology(3, 1, outer="1 GB/s"))
    space = SearchSpace(Limits(EVEN, "engine", keep_groups=False), {"tp": 1, "pp": 1}, 1)
    before = in_force(made, Split(1, 3, 1, 3), [[0, 1, 2, 3, 0, 4]], space)
    found, _ = after_loss(before, made, 2, space)
    assert found.cheapest is not None
    loads = found.cheapest.loads
    assert loads.storage_bytes == SLOT
    assert loads.copied_bytes == {"cluster": SLOT}
    assert Load(0, 4, loads.experts[0].target, None) in loads.experts
    collectives = made.constants.collectives
    assert collectives.collective is not None
    fixed = collectives.collective.value.launch + 10e-6
    assert loads.link_s == pytest.approx(fixed + SLOT / (1e9 * collectives.collective_reach.scale_out))


def test_a_stage_that_is_gone_is_read_whole() -> None:
    """Two stages of one GPU; the second is gone: its layer, the LM head and the last norm are read by the first."""
    made = building.instance(small(2, layers=2), building.topology(2, 1))
    space = building.space(0, tp=1)
    before = in_force(made, Split(1, 1, 2, 1, 1, 1, 2), [[0, 1], [0, 1]], space)
    found, _ = after_loss(before, made, 1, space)
    assert found.cheapest is not None
    loads = found.cheapest.loads
    assert [(one.layer, one.expert, one.target, one.source) for one in loads.experts] == [
        (1, 0, 0, None),
        (1, 1, 0, None),
    ]
    attention = (64 * 4 * 16 + 2 * 64 * 2 * 16 + 4 * 16 * 64) * 2
    small_ones = 2 * 64 * 2 + 64 * 2 * 2  # two norms, the router
    head = 128 * 64 * 2 + 64 * 2
    assert loads.storage_bytes == 2 * SLOT
    assert loads.other_storage_bytes == attention + small_ones + head
    assert (loads.copied_bytes, loads.other_copied_bytes) == ({}, {})


@pytest.mark.parametrize(("nodes", "ranks"), [((0,), 1), ((0, 2), 1), ((0, 3), 2), ((0, 1, 2), 2)])
def test_requests_are_lost_with_any_stage_of_their_rank(nodes: tuple[int, ...], ranks: int) -> None:
    """Two stages of two data-parallel ranks, one GPU each: GPUs 0 and 2 hold rank 0, GPUs 1 and 3 rank 1."""
    made = building.instance(small(2, layers=2), building.topology(4, 1), tokens=64)
    plan = in_force(made, Split(1, 2, 2, 2, 1, 1, 2), [[0, 1], [0, 1]], building.space(0, tp=1))
    assert loss_of(plan, nodes).sequences == ranks * 128


def test_never_more_than_solving_anew_and_what_is_told_is_true() -> None:
    """Random placements: every expert is somewhere afterwards, and nothing is brought that was there."""
    rng = np.random.default_rng(0)
    made = building.instance(small(6, layers=2), building.topology(3, 2))
    space = building.space(6, tp=1, etp=1, edp=1, pp=1)
    for node in range(3):
        rows = [building.random_placement(rng, 6, np.full(6, 2)).tolist() for _ in range(2)]
        before = in_force(made, Split(1, 6, 1, 6), rows, space)
        found, _ = after_loss(before, made, node, building.space(2, tp=1, etp=1, edp=1, pp=1))
        assert found.cheapest is not None
        assert found.resolved is not None
        assert found.given is not None
        assert found.cheapest.loads.total_bytes <= found.resolved.loads.total_bytes
        gpus = [gpu for gpu in range(6) if gpu // 2 != node]
        for layer, row in enumerate(rows):
            was = {gpu: set(row[2 * gpu : 2 * gpu + 2]) for gpu in gpus}
            ranks = found.given.placement.expert_LP[layer].reshape(4, -1)
            now = {gpu: set(held.tolist()) - {-1} for gpu, held in zip(gpus, ranks, strict=True)}
            assert set().union(*now.values()) == set(range(6))
            brought = {(one.expert, one.target) for one in found.cheapest.loads.experts if one.layer == layer}
            assert brought == {(expert, gpu) for gpu in gpus for expert in now[gpu] - was[gpu]}
            for one in found.cheapest.loads.experts:
                if one.layer == layer:
                    held_by = [gpu for gpu in gpus if one.expert in was[gpu]]
                    assert (one.source in held_by) if held_by else one.source in (None, *gpus)


def test_other_number_formats_are_no_repair() -> None:
    made = building.instance(small(4), building.topology(2, 2))
    space = building.space(0, tp=1)
    before = in_force(made, Split(1, 4, 1, 4), [[0, 1, 2, 3]], space)
    narrow = made.constants.model_copy(
        update={"precision": made.constants.precision.model_copy(update={"experts": "fp8"})}
    )
    other = Instance(made.model, made.topology, made.workload, narrow, None)
    found, _ = after_loss(before, other, 1, space)
    assert found.cheapest is None
    assert "number formats" in found.why_not


@pytest.mark.parametrize("seed", range(6))
def test_fewest_loads_against_every_placement(seed: int) -> None:
    rng = np.random.default_rng(seed)
    experts, slots = 4, (2, 2, 1)
    missing_ER, far_ER = rng.integers(0, 3, (experts, 3)), rng.integers(0, 2, (experts, 3))

    def price(ranks: Sequence[Sequence[int]]) -> tuple[int, int]:
        pairs = [(expert, rank) for rank, held in enumerate(ranks) for expert in held]
        return sum(int(missing_ER[pair]) for pair in pairs), sum(int(far_ER[pair]) for pair in pairs)

    every = product(*(combinations(range(experts), count) for count in slots))
    least = min(price(ranks) for ranks in every if len(set(sum(ranks, ()))) == experts)
    row = fewest_loads(missing_ER, far_ER, np.array(slots)).reshape(3, -1)
    found = [[expert for expert in held.tolist() if expert >= 0] for held in row]
    assert [len(held) for held in found] == list(slots)
    assert set().union(*found) == set(range(experts))
    assert price(found) == least


def test_finer_parts_are_held() -> None:
    assert covers((0, 1), (1, 2))
    assert covers((1, 2), (1, 2))
    assert covers((1, 2), (3, 4))
    assert not covers((0, 2), (3, 4))
    assert not covers((0, 2), (0, 1))
    assert not covers((1, 3), (1, 2))


def test_idle_gpus_that_step_in_are_told() -> None:
    """Three of four GPUs are in use; with the first node gone the fourth is used, too."""
    made = building.instance(small(3), building.topology(2, 2, gpus=3))
    space = building.space(0, tp=1)
    found, _ = after_loss(in_force(made, Split(1, 3, 1, 3), [[0, 1, 2]], space), made, 0, space)
    assert found.cheapest is None
    assert found.why_not == "1 GPU not in use until now would step in for those lost"
