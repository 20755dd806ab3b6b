"""Random layouts of every kind that a plan can have: dense layers, stages, copies, uneven ranks, sharded experts."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import numpy as np

from planner.export.layout import Layout
from planner.plan.placement import Placement, linear, slots_of_ranks
from planner.plan.split import Split
from tests import building

SEEDS = range(200)


@cache
def random_layout(seed: int) -> Layout:
    """A legal layout; the seed decides about its kind, so that every kind is among 200."""
    rng = np.random.default_rng(seed)
    split = _split(rng)
    dense, layers = int(rng.integers(0, 4)), int(rng.integers(1, 6))
    layers = max(layers, split.pp - dense)
    experts = int(rng.integers(max(2, split.ep), 25))
    if rng.random() < 0.6:
        experts = split.ep * int(rng.integers(1, 5)) if split.ep > 1 else experts
    model = building.model(experts=experts, top_k=1, layers=layers, dense_layers=dense)
    redundant = 0
    if split.ep > 1 and rng.random() < 0.5:
        most = split.ep * experts - experts
        redundant = int(rng.integers(0, min(most, 2 * split.ep) + 1))
        if rng.random() < 0.6:  # so many that ranks are even
            redundant = -experts % split.ep + split.ep * int(rng.integers(0, 2))
            redundant = redundant if redundant <= most else 0
    slots_R = slots_of_ranks(experts + redundant, split.ep)
    rows = [building.random_placement(rng, experts, slots_R) for _ in range(layers)]
    if rng.random() < 0.3:
        rows = rows[:1] * layers
    if rng.random() < 0.2:
        rows = [linear(experts, slots_R)] * layers
    placement = Placement(model.moe_layer_ids, int(slots_R.max()), np.stack(rows))
    gpus = split.pp * split.stage_gpus
    nodes = int(rng.choice([n for n in (1, 2, 4) if gpus % n == 0]))
    ids = np.arange(gpus).reshape(split.pp, -1)
    if rng.random() < 0.3:
        ids = rng.permutation(gpus).reshape(split.pp, -1)
    cuts = sorted(rng.choice(np.arange(1, model.num_layers), split.pp - 1, replace=False).tolist())
    bounds = [0, *cuts, model.num_layers]
    return Layout(
        split=split,
        cuts=tuple(range(first, end) for first, end in pairwise(bounds)),
        gpus=tuple(tuple(row) for row in ids.tolist()),
        model=model,
        topology=building.topology(nodes, gpus // nodes),
        placement=placement,
        redundant_experts=redundant,
    )


def _split(rng: np.random.Generator) -> Split:
    pp = int(rng.choice([1, 1, 1, 2, 3]))
    ep = int(rng.choice([1, 2, 3, 4, 8]))
    etp, edp = (int(rng.choice([1, 1, 2])) for _ in range(2))
    stage = ep * etp * edp
    tp = int(rng.choice([degree for degree in (1, 2, stage) if stage % degree == 0]))
    return Split(tp, stage // tp, pp, ep, etp, edp, pp)
