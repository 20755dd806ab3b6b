"""docs/traces.md: the function that a cluster runs does what the page says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from planner.trace.native import read_trace
from planner.trace.trace import CountTrace
from tests.building import EXAMPLES

PAGE = EXAMPLES.parent / "docs" / "traces.md"


def test_shards_counted_apart_are_the_trace(tmp_path: Path) -> None:
    (block, _) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(block, names)
    ids = np.random.default_rng(0).random((500, 3, 16)).argsort(axis=2)[:, :, :4]
    windows = []
    for index, shard in enumerate(np.split(ids, 5)):
        np.savez(tmp_path / f"{index}.npz", expert_ids=shard, num_experts=16)
        windows.append(names["count_shard"](str(tmp_path / f"{index}.npz"), 16))
    counts = np.concatenate(windows)
    np.savez(tmp_path / "all.npz", counts=counts, layer_ids=[0, 1, 2], num_experts=16, topk=4)
    trace = read_trace(tmp_path / "all.npz").trace
    assert isinstance(trace, CountTrace)
    for window, shard in zip(trace.counts_SLE, np.split(ids, 5), strict=True):
        for layer in range(3):
            assert window[layer].tolist() == np.bincount(shard[:, layer].ravel(), minlength=16).tolist()
