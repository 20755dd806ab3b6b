"""docs/traces.md: the recipes for a cluster run as the page shows them, on stand-ins for its engines."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from planner.trace.native import read_trace
from planner.trace.trace import CountTrace
from tests.building import EXAMPLES

PAGE = EXAMPLES.parent / "docs" / "traces.md"


class Mapped:
    """What the recipes use of a data set: map, then all rows; in no order that could be relied on."""

    def __init__(self, rows: Iterable[Any]) -> None:
        self.rows = list(rows)

    def map(self, function: Callable[[Any], Any], **_: object) -> Mapped:
        return Mapped(map(function, reversed(self.rows)))

    def take_all(self) -> list[Any]:
        return self.rows

    compute = take_all


def module(name: str, **content: object) -> ModuleType:
    """A stand-in for a package."""
    made = ModuleType(name)
    vars(made).update(content)
    return made


def test_the_recipes_give_the_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = np.random.default_rng(0).random((500, 3, 16)).argsort(axis=2)[:, :, :4]
    paths = [tmp_path / f"2026-05-01T{hour:02}-{part}.npz" for hour in (8, 9) for part in range(5)]
    for path, shard in zip(paths, np.split(ids, 10), strict=True):
        np.savez(path, expert_ids=shard, num_experts=16)

    def read(uri: str, *, include_paths: bool) -> Mapped:
        assert include_paths
        return Mapped({"path": uri + path.name, "bytes": path.read_bytes()} for path in paths)

    bag = SimpleNamespace(from_sequence=Mapped)
    monkeypatch.setitem(sys.modules, "ray", module("ray", data=SimpleNamespace(read_binary_files=read)))
    monkeypatch.setitem(sys.modules, "dask", module("dask", bag=bag))
    monkeypatch.setitem(sys.modules, "dask.bag", module("dask.bag", **vars(bag)))
    monkeypatch.chdir(tmp_path)
    with_ray, with_dask = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    write = with_ray.splitlines()[-1]
    assert write.startswith("write_windows(")
    for recipe in (with_ray, f"{with_ray}\n{with_dask}\n{write}"):
        exec(recipe, {"paths": [str(path) for path in paths]})
        trace = read_trace(tmp_path / "trace.npz").trace
        assert isinstance(trace, CountTrace)
        assert trace.names_S == ("2026-05-01T08", "2026-05-01T09")
        for window, part in zip(trace.counts_SLE, np.split(ids, 2), strict=True):
            for layer in range(3):
                assert window[layer].tolist() == np.bincount(part[:, layer].ravel(), minlength=16).tolist()
        (tmp_path / "trace.npz").unlink()
