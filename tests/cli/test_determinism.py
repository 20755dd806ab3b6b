"""The same inputs give the same bytes, whatever the hash seed, the cores and the spelling of paths."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cli.running import example, run


def on_one_core() -> None:
    """Leave this process one core."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


@pytest.fixture
def deployment(tmp_path: Path, tiny_plan: Path) -> Path:
    """The same deployment as that of `tiny_plan`, in another place."""
    return example("tiny-moe", tmp_path)


def test_hash_seed_and_spelling_of_paths(deployment: Path, tiny_plan: Path) -> None:
    result = run("solve", "deployment.yaml", "-q", cwd=deployment.parent, env={"PYTHONHASHSEED": "4711"})
    assert result.code == 0, result.err
    assert (deployment.parent / "plan.json").read_bytes() == tiny_plan.read_bytes()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores cannot be chosen here")
def test_number_of_cores(deployment: Path, tiny_plan: Path) -> None:
    output = deployment.parent / "plan.json"
    result = run("solve", deployment, "-q", "-o", output, cwd=deployment.parent.parent, before=on_one_core)
    assert result.code == 0, result.err
    assert output.read_bytes() == tiny_plan.read_bytes()


def test_solving_again_overwrites_with_the_same(deployment: Path, mixtral_plan: Path) -> None:
    before = mixtral_plan.read_bytes()
    text = run("solve", mixtral_plan.parent / "deployment.yaml", "--json", cwd=deployment.parent).out
    assert text.encode() == before
    assert mixtral_plan.read_bytes() == before


def test_plan_names_its_trace_relative_to_itself(deployment: Path) -> None:
    elsewhere = deployment.parent.parent / "plans"
    elsewhere.mkdir()
    result = run("solve", deployment, "-o", elsewhere / "a.json", "--gap", "90%", "--json", cwd=elsewhere)
    assert [trace["path"] for trace in result.json()["inputs"]["traces"]] == ["../tiny-moe/trace.npz"]
    assert str(deployment.parent) not in result.out
    assert run("check", "plans/a.json", cwd=deployment.parent.parent).code == 0
