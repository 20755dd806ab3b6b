"""Are predictions sound for every shipped model on every shipped node, under every split?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise, product
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np
import yaml
from rich.console import Console
from rich.progress import track

from planner.cost.booking import book
from planner.cost.instance import Instance
from planner.cost.prepare import from_deployment
from planner.cost.step import SplitCost, split_cost
from planner.inputs import profiles
from planner.inputs.deployment import load_deployment
from planner.inputs.workload import Phase
from planner.plan.placement import Placement
from planner.plan.plan import Predicted
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
        for predicted in _booked(instance, split):
            _check(predicted, f"{model} on {node}, {phase}, {split}")
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


def _booked(instance: Instance, split: Split) -> Iterator[Predicted]:
    layers, pp = instance.model.num_layers, split.pp
    cost = split_cost(instance, split, 0)
    ends = [layers * stage // pp for stage in range(pp + 1)]
    cuts = tuple(range(first, end) for first, end in pairwise(ends))
    yield book(cost, cuts, _linear(cost))


def _linear(cost: SplitCost) -> Placement:
    layer_ids = cost.instance.model.moe_layer_ids
    row_P = cost.linear_P(cost.stages[0])
    return Placement(layer_ids, cost.slots_per_rank, np.tile(row_P, (len(layer_ids), 1)))


def _check(predicted: Predicted, what: str) -> None:
    if not (math.isfinite(predicted.step_s) and predicted.step_s > 0):
        raise UnsoundError(f"{what}: step {predicted.step_s}")
    total = sum(term.seconds for term in predicted.terms)
    if not math.isclose(total, predicted.step_s, rel_tol=1e-9):
        raise UnsoundError(f"{what}: terms add up to {total}, the step is {predicted.step_s}")
    for term in predicted.terms:
        if term.speed_of_light_s > term.seconds * (1 + 1e-9) and term.seconds >= 0:
            raise UnsoundError(f"{what}: {term.name} in {term.seconds} s, light needs {term.speed_of_light_s}")
    if min(predicted.memory_bytes) <= 0:
        raise UnsoundError(f"{what}: a GPU without memory in use")


def run(_data: Path | None, console: Console) -> None:
    """All pairs of models and nodes, both phases, on all cores."""
    models, nodes, began = profiles.names("models"), profiles.names("nodes"), perf_counter()
    phases: tuple[Phase, ...] = ("prefill", "decode")
    every = list(product(models, nodes, phases))
    with ProcessPoolExecutor() as pool:
        count = sum(track(pool.map(count_sound, *zip(*every, strict=True)), "predictions", len(every), console=console))
    seconds = perf_counter() - began
    console.print(
        f"{count:,} predictions of {len(models)} models on {len(nodes)} nodes: all finite, positive, "
        f"the sum of their terms, and no faster than light ({seconds:.0f} s)"
    )
