"""What the commands load: help is fast, planning needs no torch, checking no solver."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.running import TIMEOUT_S, environment, example, run

HEAVY = {"torch", "transformers", "ortools", "numpy", "pydantic", "rich", "jinja2", "vl_convert"}
SOLVERS = {"torch", "transformers", "ortools", "jinja2", "vl_convert"}
TRACE_COMMANDS = ["record", "import", "info", "split", "synth"]
COMMANDS = ["solve", "check", "compare", "export", "lint-launch", "validate", "probe"]
COMMANDS += ["size", "what-if", "replan", "advise"]
COMMANDS += ["show", "profiles", "trace", "topology", "completion", "env"]


def loaded(*arguments: object, cwd: Path) -> set[str]:
    """The packages that a run imports."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "planner", *map(str, arguments)],
        cwd=cwd,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    assert lines
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        *(["trace", name, "--help"] for name in TRACE_COMMANDS),
        *([name, "--help"] for name in COMMANDS),
    ],
)
def test_help_loads_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    assert not loaded(*arguments, cwd=tmp_path) & HEAVY


def test_reading_a_plan_loads_no_solver(tiny_plan: Path, tmp_path: Path) -> None:
    assert not loaded("show", tiny_plan, cwd=tmp_path) & SOLVERS
    assert not loaded("check", tiny_plan, cwd=tmp_path) & SOLVERS
    trace = tiny_plan.parent / "trace.npz"
    assert not loaded("compare", tiny_plan, "--trace", trace, cwd=tmp_path) & SOLVERS


def test_describing_a_trace_loads_no_solver(tiny_plan: Path, tmp_path: Path) -> None:
    assert not loaded("trace", "info", tiny_plan.parent / "trace.npz", "-q", cwd=tmp_path) & SOLVERS


def test_importing_a_trace_loads_no_solver_and_no_torch(tmp_path: Path) -> None:
    (tmp_path / "counts.json").write_text("[[5, 3], [4, 4]]")
    options = ["--top-k", 1, "--num-experts", 2, "-o", tmp_path / "trace.npz"]
    assert not loaded("trace", "import", tmp_path / "counts.json", *options, cwd=tmp_path) & SOLVERS


def test_planning_where_torch_cannot_be_imported(tmp_path: Path) -> None:
    for name in ("torch", "transformers"):
        package = tmp_path / "blocked" / name
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("raise ImportError('blocked by a test')\n")
    blocked = {"PYTHONPATH": str(tmp_path / "blocked")}
    deployment = example("tiny-moe", tmp_path)
    assert run("solve", deployment, "-o", "plan.json", cwd=tmp_path, env=blocked).code == 0
    assert run("env", cwd=tmp_path, env=blocked).code == 0
