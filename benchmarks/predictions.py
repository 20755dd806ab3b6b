"""Are predictions sound for every shipped model on every shipped node, under every split?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np
import yaml
from rich.console import Console

from planner.cost.booking import memory_G
from planner.cost.instance import Instance
from planner.cost.prepare import from_deployment
from planner.cost.step import Cuts, SplitCost, breakdown, predict, split_cost
from planner.cost.term import Term
from planner.inputs import profiles
from planner.inputs.deployment import load_deployment
from planner.inputs.workload import Phase
from planner.plan.placement import Placement
from planner.plan.split import Split
from planner.rules import Limits, broken_rules
from planner.rules.grid import all_splits

COUNT = {"gb200-nvl72": 4, "gb300-nvl72": 4, "cloudmatrix-384": 1}
"""Nodes taken; two of all others."""


class UnsoundError(AssertionError):
    """A prediction that cannot be."""


def count_sound(model: str, node: str, phase: Phase) -> int:
    """Predictions of one pair, over all splits that obey its rules (memory aside).

    Raises:
        UnsoundError: one is not finite, not positive, faster than light, or not the sum of its terms.
    """
    instance, limits = _instance(model, node, phase)
    count = 0
    for split in all_splits(instance, {}):
        if broken_rules(instance, split, 0, limits, None):
            continue
        cost, cuts, placement = _linear(instance, split)
        predicted = predict(cost, cuts, placement)
        terms = breakdown(cost, cuts, placement, predicted)
        _check(predicted.step_s, terms, f"{model} on {node}, {phase}, {split}")
        if memory_G(cost, cuts, placement).min() <= 0:
            raise UnsoundError(f"{model} on {node}, {phase}, {split}: a GPU without memory in use")
        count += 1
    return count


def _instance(model: str, node: str, phase: Phase) -> tuple[Instance, Limits]:
    file = {
        "schema": "ep-plan/deployment/1",
        "model": model,
        "topology": f"{COUNT.get(node, 2)} x {node}",
        "workload": {"phase": phase, "tokens_per_gpu": 64 if phase == "decode" else 2048, "context_length": 2048},
    }
    with TemporaryDirectory() as folder:
        path = Path(folder) / "deployment.yaml"
        path.write_text(yaml.safe_dump(file), encoding="utf-8")
        deployment = load_deployment(path)
    return from_deployment(deployment).instance, Limits(deployment.engine.rules, "engine", keep_groups=False)


def _linear(instance: Instance, split: Split) -> tuple[SplitCost, Cuts, Placement]:
    """Experts in order, on stages of like lengths."""
    layers, layer_ids = instance.model.num_layers, instance.model.moe_layer_ids
    cost = split_cost(instance, split, 0)
    ends = [layers * stage // split.pp for stage in range(split.pp + 1)]
    cuts = tuple(range(first, end) for first, end in pairwise(ends))
    row_P = cost.linear_P(cost.stages[0])
    return cost, cuts, Placement(layer_ids, cost.slots_per_rank, np.tile(row_P, (len(layer_ids), 1)))


def _check(step_s: float, terms: Sequence[Term], what: str) -> None:
    if not (math.isfinite(step_s) and step_s > 0):
        raise UnsoundError(f"{what}: step {step_s}")
    total = sum(term.seconds for term in terms)
    if not math.isclose(total, step_s, rel_tol=1e-9):
        raise UnsoundError(f"{what}: terms add up to {total}, the step is {step_s}")
    for term in terms:
        if term.light_s > term.seconds * (1 + 1e-9) and term.seconds >= 0:
            raise UnsoundError(f"{what}: {term.name} in {term.seconds} s, light needs {term.light_s}")


def run(_data: Path | None, console: Console) -> None:
    """All pairs of models and nodes, both phases, on all cores; a line for each model, as it takes half an hour."""
    models, nodes, began, count = profiles.names("models"), profiles.names("nodes"), perf_counter(), 0
    phases: tuple[Phase, ...] = ("prefill", "decode")
    with ProcessPoolExecutor() as pool:
        for model in models:
            found = sum(pool.map(partial(count_sound, model), *zip(*product(nodes, phases), strict=True)))
            console.print(f"{model}: {found:,} predictions, all sound ({perf_counter() - began:.0f} s)")
            count += found
    console.print(
        f"{count:,} predictions of {len(models)} models on {len(nodes)} nodes: all finite, positive, "
        "the sum of their terms, and no faster than light"
    )
