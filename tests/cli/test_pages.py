"""The commands of README.md and of the examples run, and print what is shown there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.running import ROOT, environment

PAGES = [ROOT / "README.md", *sorted((ROOT / "examples").glob("*/README.md"))]


def test_every_example_has_a_page() -> None:
    deployments = (ROOT / "examples").rglob("deployment.yaml")
    named = {path.relative_to(ROOT / "examples").parts[0] for path in deployments}
    assert {page.parent.name for page in PAGES[1:]} == named


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_commands_print_what_is_shown(page: Path) -> None:
    script = [sys.executable, str(ROOT / "docs" / "outputs.py"), "--check", str(page)]
    done = subprocess.run(script, cwd=ROOT, env=environment(), capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, f"{done.stderr}\nto mend it: python docs/outputs.py"
