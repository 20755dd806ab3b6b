"""Plans that several tests run, each solved once; without torch all of these tests are skipped."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.running import example, solved
from tests.dist.plans import small_plan, two_nodes

pytest.importorskip("torch", minversion="2.10")


@pytest.fixture(scope="session")
def pipeline_plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stages of 3 and 2 layers, tp=2, ep=4 with four copies; not to be changed."""
    solve = "{redundant_experts: 4, split: {tp: 2, pp: 2, ep: 4}}"
    folder = tmp_path_factory.mktemp("pipeline")
    return small_plan(folder, topology=two_nodes(4), solve=solve, dedup="gpu", layers=5)


@pytest.fixture(scope="session")
def four_rank_plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four ranks on two nodes, with copies; not to be changed."""
    folder = tmp_path_factory.mktemp("four")
    return small_plan(folder, topology=two_nodes(2), solve="{redundant_experts: 4, split: {ep: 4, tp: 1, pp: 1}}")


@pytest.fixture(scope="session")
def nearest_plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same where the nearest copy serves; not to be changed."""
    solve = "{redundant_experts: 4, split: {ep: 4, tp: 1, pp: 1}}"
    return small_plan(tmp_path_factory.mktemp("nearest"), topology=two_nodes(2), solve=solve, copies="nearest")


@pytest.fixture(scope="session")
def tiny_plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plan of examples/tiny-moe; not to be changed."""
    return solved(example("tiny-moe", tmp_path_factory.mktemp("tiny")))
