"""What the plan's cost model says about exactly the work that the micro-run did.

Legend: S windows, L layers, V link levels, R EP ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.cost.step import Cuts, SplitCost, combine_stages
from planner.cost.wires import expected_copies_V
from planner.plan.placement import Placement

Floats = NDArray[np.float64]

ATTENTION_TERMS = ("attention projections", "attention", "recurrent state")
"""Terms of the cost model that the micro-run's attention-shaped work stands for."""


@dataclass(frozen=True)
class PredictedParts:
    """Seconds of the replayed layers for one micro-batch, mean over the timed windows."""

    terms: dict[str, float]
    step_s: float
    """All terms, stages and micro-batches put together."""


def predicted_parts(
    cost: SplitCost, cuts: Cuts, placement: Placement, layers: Sequence[int], windows: Sequence[int]
) -> PredictedParts:
    """Price the replayed layers of a placement.

    Args:
        cost: instance and split.
        cuts: hidden layers of each stage.
        placement: slots of every MoE layer.
        layers: the replayed hidden layers.
        windows: the timed windows.
    """
    instance = cost.instance
    load_of = dict(zip(instance.traced_layer_ids, instance.loads, strict=True))
    terms = dict.fromkeys(("attention", "attention all-reduce", "dispatch", "experts", "combine"), 0.0)
    tau = []
    chosen = list(windows)
    for stage, stage_layers in zip(cost.stages, cuts, strict=True):
        total = 0.0
        for layer in layers:
            if layer not in stage_layers:
                continue
            times = stage.moe.layer(load_of[layer], placement.expert_LP[placement.layer_ids.index(layer)])
            for name, seconds_S in (
                ("dispatch", times.dispatch_S),
                ("experts", times.expert_S),
                ("combine", times.combine_S),
            ):
                terms[name] += float(seconds_S[chosen].mean())
            total += float(times.total_S[chosen].mean())
            for term in stage.run_terms[instance.model.layer_list[layer]]:
                name = "attention" if term.name in ATTENTION_TERMS else term.name
                if name in terms:
                    terms[name] += term.seconds
                    total += term.seconds
        tau.append(total)
    step_s = combine_stages(np.array(tau), cost.split.micro_batches, instance.workload.phase)
    return PredictedParts({name: seconds for name, seconds in terms.items() if seconds}, step_s)


def model_copies_V(cost: SplitCost, cuts: Cuts, placement: Placement, layers: Sequence[int]) -> Floats | None:
    """Copies that the cost model expects over each level in the dispatch of all windows as recorded [V].

    None where it would need expert sets that were not recorded.
    """
    instance = cost.instance
    if instance.windows is None or (
        instance.windows.sets is None and instance.constants.communication.dedup != "expert"
    ):
        return None
    load_of = dict(zip(instance.traced_layer_ids, instance.loads, strict=True))
    total_V = np.zeros(len(instance.topology.links))
    if cost.split.ep == 1:
        return total_V
    for stage, stage_layers in zip(cost.stages, cuts, strict=True):
        for layer in layers:
            if layer in stage_layers:
                expert_P = placement.expert_LP[placement.layer_ids.index(layer)]
                total_V += expected_copies_V(stage, load_of[layer], expert_P, instance.windows.tokens_S)
    return total_V
