"""Completion in real shells, examples in every help text, and what `env` tells."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from planner.cli.main import cli
from planner.cli.trace import COMMANDS as TRACE_COMMANDS
from tests.cli.running import ROOT, TIMEOUT_S, environment, run

BASH, ZSH, FISH = (shutil.which(name) for name in ("bash", "zsh", "fish"))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PATH on which `ep-plan` is this program."""
    folder = tmp_path_factory.mktemp("bin")
    (folder / "ep-plan").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m planner "$@"\n')
    (folder / "ep-plan").chmod(0o755)
    return os.pathsep.join([str(folder), os.environ["PATH"]])


def said(shell: str, *arguments: str, path: str, cwd: Path) -> str:
    done = subprocess.run(
        [shell, *arguments],
        cwd=cwd,
        env=environment(PATH=path),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=TIMEOUT_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


TYPED = {
    "ep-plan so": {"solve"},
    "ep-plan trace re": {"record"},
    "ep-plan solve --mod": {"--model"},
    "ep-plan solve --model deepseek-v3": {"deepseek-v3", "deepseek-v3.2"},
    "ep-plan profiles h100-s": {"h100-sxm"},
    "ep-plan export plan.json --to sgl": {"sglang"},
    "ep-plan topology import x --from sl": {"slurm"},
}


def test_bash_completes(path: str, tmp_path: Path) -> None:
    """As bash calls the function: words and position set, suggestions in COMPREPLY."""
    lines = ['eval "$(ep-plan completion bash)"', "compopt() { :; }", "complete -p ep-plan"]
    for typed in TYPED:
        lines += [f"COMPREPLY=() COMP_WORDS=({typed}) COMP_CWORD={len(typed.split()) - 1}"]
        lines += ["_ep_plan_completion ep-plan", 'echo "${COMPREPLY[*]}"']
    registered, *found = said(str(BASH), "--norc", "-c", "\n".join(lines), path=path, cwd=tmp_path).splitlines()
    assert registered.endswith("-F _ep_plan_completion ep-plan")
    for (typed, expected), words in zip(TYPED.items(), found, strict=True):
        assert expected <= set(words.split()), typed
        assert all(word.startswith(typed.split()[-1]) for word in words.split()), typed


@pytest.mark.skipif(FISH is None, reason="there is no fish here")
def test_fish_completes(path: str, tmp_path: Path) -> None:
    (tmp_path / "ep-plan.fish").write_text(run("completion", "fish", cwd=tmp_path).out)
    for typed, expected in TYPED.items():
        lines = f"source ep-plan.fish; complete -C '{typed}'"
        found = said(str(FISH), "--no-config", "-c", lines, path=path, cwd=tmp_path)
        assert expected <= {line.split("\t")[0] for line in found.splitlines()}, typed


@pytest.mark.skipif(ZSH is None, reason="there is no zsh here")
def test_zsh_takes_its_script(path: str, tmp_path: Path) -> None:
    lines = 'autoload -U compinit && compinit -u -d dump; eval "$(ep-plan completion zsh)"; print $_comps[ep-plan]'
    assert said(str(ZSH), "-f", "-c", lines, path=path, cwd=tmp_path).split() == ["_ep_plan_completion"]


def test_an_unknown_shell_is_a_wrong_use(tmp_path: Path) -> None:
    assert run("completion", "tcsh", cwd=tmp_path).code == 2


def every_command(group: click.Group, *words: str) -> Iterator[tuple[str, ...]]:
    with click.Context(group) as context:
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None
            yield (*words, name)
            if isinstance(command, click.Group):
                yield from every_command(command, *words, name)


def test_every_help_ends_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    commands = list(every_command(cli))
    assert len(commands) > len(TRACE_COMMANDS) + 12
    for words in [(), *commands]:
        with pytest.raises(SystemExit):
            cli.main([*words, "--help"], prog_name="ep-plan")
        told = capsys.readouterr().out.rstrip().splitlines()
        at = told.index("  Examples:")
        assert at + 1 < len(told), words
        assert all(" ".join(("ep-plan", *words)) in line for line in told[at + 1 :]), (words, told[at:])


# --- env ------------------------------------------------------------------------------------------------


def test_env_tells_versions_extras_devices_and_where_profiles_are(tmp_path: Path) -> None:
    told = run("env", "-v", "--json", cwd=tmp_path).json()
    assert {"ep-plan", "python", "platform", "cores", "numpy", "ortools", "gpus", "profiles"} <= set(told)
    assert Path(told["profiles in"], "gpus", "h100-sxm.yaml").is_file()
    assert Path(told["schemas in"], "topology.json").is_file()
    assert told["profiles"] == "in the checkout beside the package"
    lines = run("env", cwd=tmp_path).out.splitlines()
    assert len({line.split()[0] for line in lines}) == len(lines)


def test_without_torch_the_devices_are_unknown(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('blocked by a test')\n")
    told = run("env", "--json", cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}).json()
    assert told["gpus"] == "unknown: torch cannot be imported (blocked by a test)"


def test_an_installed_package_brings_its_profiles_and_schemas(tmp_path: Path) -> None:
    """A wheel as the build backend makes it, unpacked where nothing else of the project lies."""
    build = pytest.importorskip("hatchling.builders.wheel", reason="the build backend is not installed")
    (made,) = build.WheelBuilder(str(ROOT)).build(directory=str(tmp_path / "dist"), versions=["standard"])
    shutil.unpack_archive(made, tmp_path / "site", "zip")
    alone = {**environment(), "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "planner", "env", "-v"],
        cwd=tmp_path,
        env=alone,
        capture_output=True,
        encoding="utf-8",
        timeout=TIMEOUT_S,
        check=False,
    )
    told = dict(
        line.split(maxsplit=1)
        for line in done.stdout.splitlines()
        if not line.startswith(("profiles in", "schemas in"))
    )
    assert told["profiles"] == "in the installed package"
    for name in ("profiles/gpus/h100-sxm.yaml", "schemas/deployment.json", "report/html/report.css"):
        assert (tmp_path / "site" / "planner" / name).is_file(), name
    assert str(tmp_path / "site") in done.stdout
