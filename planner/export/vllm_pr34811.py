"""vLLM with pull request 34811 (in no release): the EP rank of each expert, one list for all layers."""

from __future__ import annotations

import json
import shlex
from typing import Any

import numpy as np

from planner.errors import InputError, Place, Problem
from planner.export.layout import Layout
from planner.export.maps import LIMIT_ID, FileMap, Row, only_keys, parsed

_KEY = "expert_to_ep_rank"


def write(layout: Layout) -> bytes:
    """The JSON."""
    rank_E = [0] * layout.num_experts
    for rank, experts in enumerate(layout.by_rank(0)):
        for expert in experts:
            rank_E[expert] = rank
    return (json.dumps({_KEY: rank_E}) + "\n").encode()


def read(raw: bytes, file: str) -> FileMap:
    """Experts by rank; a rank holds its experts in ascending order."""
    value: Any = only_keys(parsed(raw, file), (_KEY,), file, "expected this key alone")[_KEY]
    good = isinstance(value, list) and value and all(type(rank) is int and 0 <= rank < LIMIT_ID for rank in value)
    if not good:
        raise InputError(Problem("not a list of ranks", Place(file, key=_KEY), "expected the rank of each expert"))
    rank_E = np.array(value, dtype=np.int64)
    slots_R = np.bincount(rank_E)
    row = Row(np.argsort(rank_E, kind="stable").astype(np.int64), slots_R.astype(np.int64))
    return FileMap(file, "all", {0: row}, num_ranks=len(slots_R), num_experts=len(rank_E))


def how_to_load(layout: Layout, path: str) -> str:
    """The flags that load it."""
    del layout
    return f"--enable-expert-parallel --expert-placement-strategy custom --expert-placement-file {shlex.quote(path)}"
