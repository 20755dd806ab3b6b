"""A desk to import at."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.importers.recording import Desk


@pytest.fixture
def desk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Desk:
    """An empty folder with a model."""
    return Desk(tmp_path, capsys)
