"""Runs the real program in a subprocess, as a user would."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from planner.plan.plan import Plan
from planner.plan.plan_file import read_plan
from tests.building import EXAMPLES

ROOT = EXAMPLES.parent
TIMEOUT_S = 100


@dataclass(frozen=True)
class Result:
    """How a run ended."""

    code: int
    out: str
    err: str

    @property
    def words(self) -> str:
        """Standard output as one line, so that it does not matter where lines were broken."""
        return " ".join(self.out.split())

    def json(self) -> Any:
        """The one document on standard output."""
        return json.loads(self.out)

    def problems(self) -> list[dict[str, Any]]:
        """The problems of an error told with `--json`."""
        document = self.json()
        assert document["schema"] == "ep-plan/error/1"
        assert document["exit_code"] == self.code
        problems: list[dict[str, Any]] = document["problems"]
        assert problems
        return problems


def environment(**changes: str) -> dict[str, str]:
    """This process's environment without what changes how output looks, and with `changes`."""
    dropped = {"COLUMNS", "NO_COLOR", "FORCE_COLOR", "PYTHONDONTWRITEBYTECODE"}
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    kept["PYTHONPATH"] = os.pathsep.join([*filter(None, [changes.pop("PYTHONPATH", "")]), str(ROOT)])
    return {**kept, "TERM": "xterm-256color", **changes}


def command(*arguments: object) -> list[str]:
    """The command line of the program."""
    return [sys.executable, "-m", "planner", *map(str, arguments)]


def run(
    *arguments: object,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    stdout: int = subprocess.PIPE,
    before: Callable[[], object] | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Result:
    """Run a command line to its end; a traceback is never an answer."""
    done = subprocess.run(
        command(*arguments),
        cwd=cwd,
        env=environment(**(env or {})),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        timeout=timeout_s,
        check=False,
        preexec_fn=before,  # these tests start no threads
    )
    result = Result(done.returncode, done.stdout or "", done.stderr)
    assert "Traceback" not in result.err, result.err
    return result


def example(name: str, folder: Path) -> Path:
    """A copy of a shipped example; the path of its deployment."""
    shutil.copytree(EXAMPLES / name, folder / name)
    return folder / name / "deployment.yaml"


def solved(deployment: Path, *options: object) -> Path:
    """Solve a deployment into `plan.json` beside it."""
    plan = deployment.parent / "plan.json"
    result = run("solve", deployment, "-o", plan, *options, cwd=deployment.parent)
    assert result.code == 0, result.err
    return plan


def plan_of(path: Path) -> Plan:
    """The plan of a file."""
    return read_plan(path)


def deployment_file(folder: Path, text: str) -> Path:
    """Write a deployment, schema line included."""
    path = folder / "deployment.yaml"
    path.write_text(f"schema: ep-plan/deployment/1\n{text}")
    return path


def large_deployment(folder: Path) -> Path:
    """gpt-oss-120b on 32 GPUs with skewed random counts: half a minute of work for two cores."""
    rng = np.random.default_rng(0)
    share_SLE = rng.dirichlet(np.full(128, 0.5), size=(192, 36))
    counts_SLE = rng.multinomial(2048 * 4, share_SLE)
    np.savez(folder / "counts.npz", counts=counts_SLE.astype(np.int32), num_experts=128, topk=4)
    return deployment_file(
        folder,
        "model: gpt-oss-120b\n"
        "topology: 4 x hgx-h100\n"
        "traces: [counts.npz]\n"
        "workload: {phase: decode, tokens_per_gpu: 64, context_length: 4096}\n"
        "solve: {redundant_experts: 32}\n",
    )


def files_in(folder: Path) -> set[str]:
    """Names of everything in a folder, hidden files included."""
    return {path.name for path in folder.iterdir()}
