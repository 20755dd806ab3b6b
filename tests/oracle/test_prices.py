"""Times of random splits and placements on unequal machines, against the cost model in plain Python."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from planner.inputs.workload import CopyRule, Dedup
from planner.rules.grid import all_splits
from planner.rules.ruled import laid_out
from tests import building
from tests.oracle.plain_cost import PlainCost


@pytest.mark.parametrize("copies", ["even", "nearest"])
@pytest.mark.parametrize("dedup", ["expert", "gpu", "node"])
def test_every_stage_and_layer_costs_what_plain_python_says(dedup: Dedup, copies: CopyRule) -> None:
    priced: Counter[str] = Counter()
    for seed in range(40):
        rng = np.random.default_rng(seed)
        machine = building.unequal_topology(seed)
        model = building.model(experts=4, layers=2, dense_layers=1, shared=int(rng.choice([0, 96])))
        windows = building.random_windows(rng, model, 2)
        using = building.constants(dedup, copies=copies, several=bool(rng.spawn(1)[0].integers(2)))
        needs_dp = bool(seed % 2)
        whole = building.instance(
            model,
            machine,
            tokens=200,
            windows=windows,
            using=using.model_copy(update={"exchange_needs_dp": needs_dp}),
        )
        space = building.space()
        for split in all_splits(whole, {"micro_batches": 4}):
            for candidate in laid_out(whole, split, int(rng.integers(0, 3)), space.limits):
                if not candidate.is_feasible:
                    continue
                stages = candidate.cost.stages
                plain = PlainCost(whole, split, [stage.grid.gpus for stage in stages])
                priced["joined"] += needs_dp and split.ep > 1 and split.dp == 1
                priced[f"pp={split.pp}" if split.pp > 1 else candidate.layout] += 1
                for k, stage in enumerate(stages):
                    last = k == len(stages) - 1
                    assert stage.extra_s[last] == pytest.approx(plain.stage_extra(k), rel=1e-9), (seed, split)
                    for layer in (0, 2):  # a dense one and one with experts
                        expected = plain.layer_fixed(k, layer)
                        assert stage.fixed_L[layer] == pytest.approx(expected, rel=1e-9), (seed, split)
                    expert_P = building.random_placement(rng, 4, stage.slots_R)
                    held = tuple(frozenset(r) - {-1} for r in expert_P.reshape(split.ep, -1).tolist())
                    total_S = stage.moe.layer(whole.loads[1], expert_P).total_S
                    assert total_S == pytest.approx(plain.moe_windows(k, 1, held), rel=1e-9), (seed, split)
    assert priced["slots by speed"] > 20
    assert priced["pp=2"] > 20
    assert priced["joined"] > 10
