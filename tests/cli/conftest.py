"""Plans that several tests look at, each solved once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.running import example, large_deployment, solved


@pytest.fixture(scope="session")
def mixtral_plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plan of mixtral-4gpu, which has no trace; not to be changed."""
    return solved(example("mixtral-4gpu", tmp_path_factory.mktemp("mixtral")))


@pytest.fixture(scope="session")
def tiny_plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plan of tiny-moe, made from a trace beside it; not to be changed."""
    return solved(example("tiny-moe", tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A deployment that takes minutes; not to be changed."""
    return large_deployment(tmp_path_factory.mktemp("large"))
