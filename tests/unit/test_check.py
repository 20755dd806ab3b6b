"""The checker accepts every plan of the solver and rejects every change to one, naming the rule."""

from __future__ import annotations

import copy
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from planner.check import check
from planner.cost.instance import Instance
from planner.inputs.documents import validated
from planner.inputs.topology import resolve
from planner.inputs.workload import Dedup, Phase
from planner.plan.plan import Plan
from planner.plan.plan_file import plan_text, read_plan
from planner.solve.solution import Options
from planner.solve.solver import solve
from planner.solve.watch import NoWatch
from planner.solve.workers import Workers
from tests import building

Data = Any  # a plan as JSON holds it
SEEDS = range(8)


def random_instance(seed: int) -> tuple[Instance, dict[str, int]]:
    """A small machine, model and routing, and pins that spread the experts."""
    rng = np.random.default_rng(seed)
    nodes, per_node = ((1, 4), (2, 2), (1, 3), (3, 1))[seed % 4]
    model = building.model(
        experts=int(rng.integers(4, 7)),
        top_k=int(rng.integers(1, 3)),
        layers=int(rng.integers(2, 4)),
        dense_layers=int(rng.integers(0, 2)),
        shared=int(rng.choice([0, 96])),
    )
    windows = building.random_windows(rng, model, 2, 200)
    dedup: Dedup = get_args(Dedup)[seed % 3]
    made = building.instance(
        model,
        building.topology(nodes, per_node),
        phase=get_args(Phase)[seed % 2],
        tokens=int(rng.integers(16, 500)),
        windows=windows,
        using=building.constants(dedup, overlap=str(rng.choice(["0%", "50%"]))),
    )
    gpus = nodes * per_node
    if gpus % 2:
        return made, {"ep": 3}
    return made, {"pp": 2, "ep": gpus // 2} if seed % 5 == 0 else {"pp": 1, "ep": gpus // 2 if seed % 3 else gpus}


@cache
def solved(seed: int) -> tuple[Instance, str]:
    """An instance and the text of its plan."""
    instance, pins = random_instance(seed)
    space = building.space(seed % 3, **pins)
    with Workers(cores=1) as workers:
        found = solve(
            instance, space, Options(gap=0.01, effort=0.2), building.inputs_of(instance, space), workers, NoWatch()
        )
    assert found.plan is not None
    return instance, plan_text(found.plan)


def data_of(seed: int) -> Data:
    """A plan as JSON holds it."""
    return json.loads(solved(seed)[1])


def broken(data: Data, seed: int) -> list[str]:
    """The rules that a plan breaks; what no longer is a plan at all breaks the first one."""
    values = {key: value for key, value in data.items() if key != "schema"}
    try:
        plan = validated(Plan, values)
    except ValueError:
        return ["not a plan"]
    return [finding.rule for finding in check(plan, solved(seed)[0])]


@pytest.mark.parametrize("seed", SEEDS)
def test_plans_of_the_solver_are_accepted_as_read_back(seed: int, tmp_path: Path) -> None:
    instance, text = solved(seed)
    path = tmp_path / "plan.json"
    path.write_text(text)
    plan = read_plan(path)
    assert check(plan, instance) == []
    assert plan_text(plan) == text  # nothing is lost, to the last digit


def test_a_plan_says_by_which_rule_copies_share_under_its_split() -> None:
    """Asked for is nearness, but without data parallelism the engine brings every token to all ranks."""
    using = building.constants(copies="nearest").model_copy(update={"exchange_needs_dp": True})
    model = building.model(experts=4, layers=1)
    windows = building.counted(np.array([[[90, 40, 40, 20]]]), [0], 2)
    space = building.space(4, pp=1, tp=4, ep=4)
    of = building.instance(model, building.topology(2, 2), windows=windows, using=using)
    with Workers(cores=1) as workers:
        found = solve(of, space, Options(gap=0.01, effort=0.2), building.inputs_of(of, space), workers, NoWatch())
    assert found.plan is not None
    assert found.plan.placement.copy_rule == "even"
    assert check(found.plan, of) == []
    other = found.plan.placement.model_copy(update={"copy_rule": "nearest"})
    (finding, *_) = check(found.plan.model_copy(update={"placement": other}), of)
    assert str(finding) == "copy_rule: copies share tokens as nearest, here even"


# --- mutations of the placement -----------------------------------------------------------------------


def sort_ranks(row: list[int], width: int) -> None:
    """Bring a layer's slots into canonical order."""
    for start in range(0, len(row), width):
        row[start : start + width] = sorted(row[start : start + width], key=lambda e: (e < 0, e))


def swaps(data: Data) -> Iterator[Data]:
    """Every exchange of two experts between two ranks that changes some rank's tokens."""
    width, tokens = data["placement"]["slots_per_rank"], data["predicted"]["rank_tokens"]
    for layer, row in enumerate(data["placement"]["physical_to_logical"]):
        for first in range(len(row)):
            for second in range(first + width - first % width, len(row)):
                ranks = [set(row[start : start + width]) for start in range(0, len(row), width)]
                one, other = first // width, second // width
                twice = row[first] in ranks[other] or row[second] in ranks[one]
                if min(row[first], row[second]) < 0 or twice or len(set(tokens[layer])) == 1:
                    continue
                changed = copy.deepcopy(data)
                new = changed["placement"]["physical_to_logical"][layer]
                new[first], new[second] = new[second], new[first]
                sort_ranks(new, width)
                yield changed


@pytest.mark.parametrize("seed", SEEDS)
def test_swapped_experts_are_found(seed: int) -> None:
    instance = solved(seed)[0]
    assert instance.windows is not None
    total_LE = instance.windows.counts_SLE.sum(axis=0)
    assert len({tuple(row) for row in total_LE.tolist()}) == len(total_LE)
    every = list(swaps(data_of(seed)))
    assert every
    for changed in every[:: 1 + len(every) // 12]:
        rules = broken(changed, seed)
        # Rank tokens change unless both experts were chosen equally often; then some time does.
        assert any(rule.startswith("predicted.") for rule in rules), rules


def duplicate(data: Data) -> None:
    """A rank holds its first expert in its second slot, too."""
    row = data["placement"]["physical_to_logical"][0]
    row[1] = row[0]


def drop(data: Data) -> None:
    """Expert 0 of the first layer gives way to others everywhere."""
    row, width = data["placement"]["physical_to_logical"][0], data["placement"]["slots_per_rank"]
    for slot, expert in enumerate(row):
        held = set(row[slot - slot % width : slot - slot % width + width])
        if expert == 0:
            row[slot] = min(set(range(1, 99)) - held)
    sort_ranks(row, width)


def reverse(data: Data) -> None:
    """The slots of the first rank stand in falling order."""
    row, width = data["placement"]["physical_to_logical"][0], data["placement"]["slots_per_rank"]
    row[:width] = row[:width][::-1]


def edit(*path: str | int, to: Any) -> Callable[[Data], None]:
    """Set the value at a path of keys; `to` may be a function of the old value."""

    def apply(data: Data) -> None:
        here = data
        for key in path[:-1]:
            here = here[key]
        here[path[-1]] = to(here[path[-1]]) if callable(to) else to

    return apply


def chosen_of(records: Data) -> Data:
    """The chosen candidate."""
    (chosen,) = [record for record in records if record["outcome"] == "chosen"]
    return chosen


def of_the_chosen(*path: str | int, to: Any) -> Callable[[Data], None]:
    """Make the chosen candidate the first of all and set a value in it."""

    def apply(data: Data) -> None:
        data["candidates"].sort(key=lambda record: record["outcome"] != "chosen")
        edit("candidates", 0, *path, to=to)(data)

    return apply


MUTATIONS: list[tuple[str, Callable[[Data], None]]] = [
    ("no expert twice on a rank", duplicate),
    ("every expert placed", drop),
    ("slot order", reverse),
    ("expert ids", edit("placement", "physical_to_logical", 0, 0, to=99)),
    ("slots", edit("placement", "physical_to_logical", 0, to=lambda row: row[:-1])),
    ("slots", edit("placement", "slots_per_rank", to=lambda width: width + 1)),
    ("slots of a rank", edit("placement", "redundant_experts", to=lambda count: count + 1)),
    ("layer_ids", edit("placement", "layer_ids", to=lambda ids: [layer + 1 for layer in ids])),
    ("split", edit("split", "dp", to=lambda dp: dp * 2)),
    ("split", edit("split", "ep", to=lambda ep: ep + 1)),
    ("split", edit("split", "etp", to=lambda etp: etp * 2)),
    ("stages", edit("split", "pp", to=lambda pp: pp + 1)),
    ("stages", edit("stages", 0, "gpus", to=lambda gpus: gpus[:-1])),
    ("GPUs", edit("stages", 0, "gpus", 0, to=lambda gpu: gpu + 1)),
    ("GPUs", edit("stages", 0, "gpus", 0, to=99)),
    ("layers", edit("stages", 0, "layers", 0, to=1)),
    ("layers", edit("stages", -1, "layers", 1, to=lambda end: end + 1)),
    ("predicted.memory_bytes[0]", edit("predicted", "memory_bytes", 0, to=lambda count: count + 1)),
    ("predicted.rank_tokens[0][0]", edit("predicted", "rank_tokens", 0, 0, to=lambda count: count + 1)),
    ("predicted.step_s", edit("predicted", "step_s", to=lambda seconds: seconds * (1 + 1e-8))),
    ("solver.objective_s", edit("solver", "objective_s", to=lambda seconds: seconds * (1 - 1e-8))),
    ("solver.objective_s", edit("solver", "objective_s", to=lambda seconds: seconds * 0.0)),
    ("solver.bound_s", edit("solver", "bound_s", to=lambda seconds: seconds * 2)),
    ("solver.gap", edit("solver", "gap", to=lambda gap: gap + 1e-5)),
    ("solver.status", edit("solver", "status", to=lambda status: {"optimal": "feasible"}.get(status, "optimal"))),
    ("baselines.round_robin", edit("baselines", to=lambda old: {k: v for k, v in old.items() if k != "round_robin"})),
    ("baselines.mine", edit("baselines", to=lambda records: {**records, "mine": records["linear"]})),
    ("candidates", edit("candidates", to=lambda records: [])),
    ("engine copies", edit("inputs", "rules", "redundant_experts", to=False)),
    ("solver.bound_s", edit("candidates", 0, "bound_s", to=lambda seconds: seconds / 2)),
    ("solver.bound_s", edit("solver", "bound_s", to=lambda seconds: seconds * (1 - 1e-6))),
    ("notes", edit("notes", to=lambda notes: [*notes, "all is well"])),
    ("notes", edit("notes", to=lambda notes: notes[1:] or ["measured"])),
    ("candidates", edit("candidates", to=lambda records: [*records, chosen_of(records)])),
    ("candidates[0].redundant_experts", of_the_chosen("redundant_experts", to=lambda count: count + 1)),
    ("candidates[0].step_s", of_the_chosen("step_s", to=lambda seconds: seconds * (1 - 1e-8))),
    ("candidates[0].step_s", of_the_chosen("step_s", to=None)),
    ("candidates[0].free_bytes", of_the_chosen("free_bytes", to=lambda count: count - 1_000_000_000_000)),
    ("candidates[0].free_bytes", of_the_chosen("free_bytes", to=None)),
    ("candidates[0].bound_s", of_the_chosen("bound_s", to=lambda seconds: seconds * 9)),
    ("candidates[0].bound_s", of_the_chosen("bound_s", to=None)),
    ("candidates[0].reasons", of_the_chosen("reasons", to=["memory of a GPU: needs more"])),
    ("candidates[0].split", of_the_chosen("split", "ep", to=lambda degree: degree * 2)),
]


@pytest.mark.parametrize(("rule", "mutate"), MUTATIONS, ids=[f"{i}-{rule}" for i, (rule, _) in enumerate(MUTATIONS)])
def test_every_mutation_is_rejected_with_its_rule(rule: str, mutate: Callable[[Data], None]) -> None:
    for seed in (1, 4, 5, 7):  # all with redundant experts
        data = data_of(seed)
        mutate(data)
        assert rule in broken(data, seed), (seed, broken(data, seed))


def test_a_better_candidate_than_the_plan_is_found() -> None:
    """A priced candidate with half the plan's time and bound; a rejected one that breaks no rule and says nothing."""
    data = data_of(1)
    chosen = chosen_of(data["candidates"])
    other = next(record for record in data["candidates"] if record["outcome"] in ("priced", "bounded"))
    other |= {"outcome": "priced", "step_s": chosen["step_s"] / 2, "bound_s": chosen["bound_s"] / 2}
    index = data["candidates"].index(other)
    assert f"candidates[{index}].step_s" in broken(data, 1)
    other |= {"outcome": "rejected", "step_s": None, "bound_s": None, "reasons": []}
    assert f"candidates[{index}].outcome" in broken(data, 1)


def test_a_candidate_that_fits_cannot_be_passed_off_as_rejected() -> None:
    """Its bound would no longer hold back that of the plan: the certificate rests on memory, too."""
    data = data_of(1)
    index, other = next((i, one) for i, one in enumerate(data["candidates"]) if one["outcome"] == "bounded")
    told = "needs 99 GiB, has 80 GiB"
    rule = {"rule": "memory of GPU 0", "value": "99 GiB", "limit": "at most 80 GiB", "holds": False, "source": ""}
    room = dict.fromkeys(("bound_s", "spare_kv_tokens", "most_sequences", "longest_context"))
    other |= {"outcome": "rejected", **room, "free_bytes": -1, "reasons": [f"memory of GPU 0: {told}"]}
    other["rules"] = [{**rule, "detail": told}]
    found = broken(data, 1)
    assert {f"candidates[{index}].{key}" for key in ("outcome", "reasons", "rules", "free_bytes")} <= set(found)


def test_a_candidate_cannot_be_left_out() -> None:
    data = data_of(1)
    slowest = max(data["candidates"], key=lambda one: one["bound_s"] or 0.0)
    assert slowest["outcome"] != "chosen"
    data["candidates"].remove(slowest)
    assert broken(data, 1) == ["candidates"]


def test_fewer_pins_ask_for_more_candidates() -> None:
    data = data_of(1)
    del data["inputs"]["search"]["pins"]["ep"]
    assert "candidates" in broken(data, 1)


# --- every value of the file ---------------------------------------------------------------------------

UNCHECKED = {
    "version": "says who wrote the plan",
    "solver.effort": "only solving again would tell",
    "solver.history.*.effort": "only solving again would tell",
    "solver.history.*.objective_s": "of plans that were not kept; the last is this one's",
    "solver.history.*.bound_s": "only solving again would tell; the last is the plan's bound",
    "held_out.imbalance.plan": "only solving again would tell",
    "held_out.layer_s.plan": "only solving again would tell",
    "candidates.*.bound_s": "a proof of the solver's; the least of them is the plan's bound",
    "candidates.*.step_s": "of plans that were not kept; must not beat this one",
}
"""Values that may be changed without the checker finding it, at some places at least, and why."""
NOT_BOOKED = ("schema", "inputs")


def leaves(value: Data, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Paths of all values in a tree."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    elif isinstance(value, list) and value:
        for index, inner in enumerate(value):
            yield from leaves(inner, (*path, index))
    else:
        yield path


def other_value(old: Data) -> Data:
    """Something else of the same kind, as near as can be."""
    if isinstance(old, bool):
        return not old
    if isinstance(old, int):
        return old + 1
    if isinstance(old, float):
        return old * (1 + 1e-6) + 1e-12
    if isinstance(old, str):
        return old + " or so"
    return 1 if old is None else ["all is well"]


def kind_of(path: tuple[str | int, ...]) -> str:
    """A path without its indices."""
    return ".".join("*" if isinstance(part, int) else part for part in path)


@pytest.mark.parametrize("seed", [1, 2, 5])
def test_no_value_can_be_changed(seed: int) -> None:
    """Of each kind of value up to three places; what is not found is listed above with the reason."""
    data, kinds = data_of(seed), defaultdict(list)
    for path in leaves({part: value for part, value in data.items() if part not in NOT_BOOKED}):
        kinds[kind_of(path)].append(path)
    assert len(kinds) > 70
    unseen = set()
    for kind, paths in kinds.items():
        for path in {paths[0], paths[len(paths) // 2], paths[-1]}:
            changed = copy.deepcopy(data)
            edit(*path, to=other_value)(changed)
            if not broken(changed, seed):
                unseen.add(kind)
    assert unseen <= set(UNCHECKED), unseen - set(UNCHECKED)
    assert {"version", "solver.effort"} <= unseen  # the list is no excuse for what is checked


def test_the_history_of_the_search_ends_as_booked_and_never_goes_back() -> None:
    data = data_of(1)
    history = data["solver"]["history"]
    first, last = history[0], history[-1]
    assert (last["objective_s"], last["bound_s"]) == (data["solver"]["objective_s"], data["solver"]["bound_s"])
    slower = {**last, "objective_s": last["objective_s"] * 1.1, "bound_s": last["bound_s"] * 0.9}
    assert {"solver.history", "solver.history[1].objective_s", "solver.history[1].bound_s"} <= set(
        broken({**data, "solver": {**data["solver"], "history": [first, slower]}}, 1)
    )
    late = {**last, "effort": data["solver"]["effort"] + 1}
    assert "solver.effort" in broken({**data, "solver": {**data["solver"], "history": [late]}}, 1)
    wide = {**first, "bound_s": first["objective_s"] * 2}
    assert "solver.history[0].bound_s" in broken({**data, "solver": {**data["solver"], "history": [wide, last]}}, 1)
    del data["solver"]["history"]
    assert broken(data, 1) == []  # a plan made by hand has none


def test_what_is_said_about_the_routing_is_checked() -> None:
    data = data_of(1)
    data["inputs"]["traced_layer_ids"][0] += 1
    data["inputs"]["windows"] = "cut by hand"
    assert {"inputs.traced_layer_ids[0]", "inputs.windows"} <= set(broken(data, 1))


@pytest.mark.parametrize("seed", [1, 5])
def test_one_byte_too_many_is_found(seed: int) -> None:
    """The same plan on GPUs that its fullest one just fills, and on GPUs of one byte less."""
    instance, text = solved(seed)
    plan = validated(Plan, {key: value for key, value in json.loads(text).items() if key != "schema"})
    for missing in (0, 1):
        of = building.gpu(memory=f"{max(plan.predicted.memory_bytes) - missing} B")
        file = instance.topology.file.model_copy(update={"gpu": of})
        found = check(plan, replace(instance, topology=resolve(file)))
        assert any(finding.rule == "memory" for finding in found) is bool(missing)
