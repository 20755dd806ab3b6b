"""Which ranks of the world form which group, as Megatron-LM makes them from its order tp-cp-ep-dp-pp.

Stage after stage, in each the dense grid (tp fastest, then dp) and the expert grid (etp fastest, then
ep, then edp) over the same ranks; ranks are numbered as the plan lists its GPUs.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from planner.plan.split import Split

Groups = list[list[int]]
KINDS: Final = ("tp", "dp", "pp", "etp", "ep", "edp")


def groups_of(split: Split) -> dict[str, Groups]:
    """Every group of every kind, groups and ranks ascending."""
    ranks = np.arange(split.pp * split.stage_gpus)
    dense = ranks.reshape(split.pp, split.dp, split.tp)
    expert = ranks.reshape(split.pp, split.edp, split.ep, split.etp)
    found = {
        "tp": dense.reshape(-1, split.tp),
        "dp": np.moveaxis(dense, 1, -1).reshape(-1, split.dp),
        "pp": ranks.reshape(split.pp, -1).T,
        "etp": expert.reshape(-1, split.etp),
        "ep": np.moveaxis(expert, 2, -1).reshape(-1, split.ep),
        "edp": np.moveaxis(expert, 1, -1).reshape(-1, split.edp),
    }
    return {kind: found[kind].tolist() for kind in KINDS}
