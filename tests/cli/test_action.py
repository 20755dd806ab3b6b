"""The GitHub Action and the pre-commit hook: what they run, and that no input can make them run anything else."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from planner.cli.check import command
from tests.cli.running import ROOT, environment, files_in, run

ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text())
STEPS: list[dict[str, Any]] = ACTION["runs"]["steps"]
HOOK: dict[str, Any] = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())[0]


def test_the_action_is_pinned_and_takes_no_input_as_text_of_a_script() -> None:
    assert ACTION["runs"]["using"] == "composite"
    for step in STEPS:
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", step["uses"])
        else:
            assert step["shell"] == "bash"
            assert "${{" not in step["run"]
    given = {match for step in STEPS for match in re.findall(r"inputs\.([\w-]+)", str(step))}
    assert given == set(ACTION["inputs"])


def check_step(folder: Path, paths: str, junit: str = "") -> subprocess.CompletedProcess[str]:
    """Run the last step as a runner would: the inputs in its environment, ep-plan where the step before puts it."""
    program = folder / ".runner" / "ep-plan" / "bin" / "ep-plan"
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m planner "$@"\n')
    program.chmod(0o755)
    (step,) = [step for step in STEPS if "--github" in step.get("run", "")]
    values = {"inputs.paths": paths, "inputs.junit": junit}
    inputs = {name: re.sub(r"\$\{\{ ([\w.]+) \}\}", lambda m: values[m[1]], text) for name, text in step["env"].items()}
    runner = {
        "RUNNER_TEMP": str(folder / ".runner"),
        "GITHUB_WORKSPACE": str(folder),
        "GITHUB_STEP_SUMMARY": str(folder / ".runner" / "summary.md"),
    }
    return subprocess.run(
        ["bash", "-c", step["run"]],
        cwd=folder,
        env=environment(**inputs, **runner),
        capture_output=True,
        encoding="utf-8",
        check=False,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkout with a deployment that is only read, and one that is broken."""
    text = "schema: ep-plan/deployment/1\nmodel: mixtral-8x7b\ntopology: 1 x hgx-h100\nworkload: {workload}\n"
    for name, workload in (("good one", "{phase: decode, tokens_per_gpu: 1, context_length: 1}"), ("broken", "{}")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "deployment.yaml").write_text(text.replace("{workload}", workload))
    return tmp_path


def test_the_step_checks_each_line_of_paths(folder: Path) -> None:
    done = check_step(folder, "good one\n\nbroken\n", "check file.xml")
    assert done.returncode == 3, done.stderr
    assert "1 of 2 good" in done.stdout
    assert "::error file=broken/deployment.yaml,line=4,col=11,title=ep-plan check::" in done.stdout
    assert (folder / "check file.xml").is_file()
    assert "1 of 2 good" in (folder / ".runner" / "summary.md").read_text()
    assert check_step(folder, "good one").returncode == 0


@pytest.mark.parametrize(
    "paths",
    ["$(touch pwned)", "`touch pwned`", "x; touch pwned", "x\n&& touch pwned", "'; touch pwned; '", "--update", "-h"],
)
def test_hostile_paths_are_paths(folder: Path, paths: str) -> None:
    before = files_in(folder)
    done = check_step(folder, paths)
    assert done.returncode == 2, done.stdout
    assert "no such file" in done.stderr
    assert files_in(folder) == before | {".runner"}


def test_no_path_at_all(folder: Path) -> None:
    done = check_step(folder, "\n")
    assert done.returncode == 2
    assert done.stdout.startswith("::error title=ep-plan check::")


def test_the_hook_runs_what_there_is(folder: Path) -> None:
    program, *arguments = [*str(HOOK["entry"]).split(), *map(str, HOOK["args"])]
    assert (program, arguments[0]) == ("ep-plan", command.name)
    result = run(*arguments, cwd=folder)
    assert result.code == 3
    assert "1 of 2 good" in result.out


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("deployment.yaml", True),
        ("serving/eu/topology.yaml", True),
        ("serving/trace.npz", True),
        ("serving/config.json", True),
        ("serving/plan.golden.json", True),
        ("package.json", False),
        ("src/main.py", False),
        ("docs/trace.npz.md", False),
    ],
)
def test_the_hook_runs_where_something_that_counts_changes(path: str, wanted: bool) -> None:
    assert bool(re.search(HOOK["files"], path)) is wanted
    assert HOOK["pass_filenames"] is False
