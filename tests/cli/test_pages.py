"""The commands of all pages run, and print what is shown there; those that cannot are counted, and known."""

from __future__ import annotations

import itertools
import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from planner.cli.main import cli
from tests.cli.running import ROOT, environment

EXAMPLES = sorted((ROOT / "examples").glob("*/README.md"))
FOLDERS = ("*.md", "docs/**/*.md", "examples/*/README.md", "benchmarks/README.md")
ANY_BLOCK = re.compile("```(?:bash|shell)\n")
DOCS = sorted(
    path for name in FOLDERS for path in ROOT.glob(name) if ANY_BLOCK.search(path.read_text(encoding="utf-8"))
)
RUN = [page for page in DOCS if page.parent != ROOT / "docs" / "pages"]  # those are parts of others
SLOW = {"docs/capacity.md", "docs/commands.md", "docs/validate.md"}
"""Run by `make docs-test` only."""
NEED_TORCH = {"docs/commands.md", "docs/validate.md"}
NOT_RUN = {
    ("CONTRIBUTING.md", "installs, and runs all of this"): 7,
    ("README.md", "installs"): 3,
    ("benchmarks/README.md", "takes measured kernel tables"): 2,
    ("benchmarks/README.md", "takes minutes to hours, and recorded traces"): 4,
    ("docs/commands.md", "needs GPUs"): 2,
    ("docs/commands.md", "needs Slurm"): 1,
    ("docs/commands.md", "needs fish"): 1,
    ("docs/commands.md", "needs the weights of a model"): 2,
    ("docs/commands.md", "needs what `nvidia-smi topo -m` printed"): 2,
    ("docs/commands.md", "needs what an engine recorded"): 3,
    ("docs/commands.md", "needs zsh"): 1,
    ("docs/engines/megatron.md", "needs the weights of a model"): 1,
    ("docs/engines/megatron.md", "needs what an engine recorded"): 2,
    ("docs/engines/sglang.md", "needs what an engine recorded"): 1,
    ("docs/engines/tensorrt-llm.md", "needs what an engine recorded"): 2,
    ("docs/engines/vllm.md", "needs the weights of a model"): 1,
    ("docs/engines/vllm.md", "needs what an engine recorded"): 1,
    ("docs/export.md", "needs the weights of a model"): 2,
    ("docs/routing.md", "needs the weights of a model"): 2,
    ("docs/validate.md", "needs GPUs"): 1,
}
"""Commands that no test runs, by page and reason."""
BLOCK = re.compile(r"^ *```(?:bash|shell)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


def test_every_example_has_a_page() -> None:
    deployments = (ROOT / "examples").rglob("deployment.yaml")
    named = {path.relative_to(ROOT / "examples").parts[0] for path in deployments}
    assert {page.parent.name for page in EXAMPLES} == named


def command_lines(page: Path) -> Iterator[list[str]]:
    """Words of every `ep-plan` command of a page, pipes and redirections left out."""
    for block in BLOCK.findall(page.read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars="|><;&()")
            lexer.whitespace_split = True
            words = list(lexer)
            for at, word in enumerate(words):
                if word == "ep-plan":
                    rest = itertools.takewhile(lambda other: not set(other) <= set("|><;&()"), words[at + 1 :])
                    taken = list(rest)
                    after = words[at + 1 + len(taken) :][:1]
                    is_stream = bool(taken and after) and taken[-1].isdigit() and after[0].startswith(">")
                    yield taken[:-1] if is_stream else taken  # of "2>&1"


def test_every_command_is_known() -> None:
    """Every command of every page names a command and options that exist, with values that they take."""
    count = 0
    for page in DOCS:
        for line in command_lines(page):
            command: click.Command = cli
            words = line
            while isinstance(command, click.Group) and words and not words[0].startswith("-"):
                with click.Context(command) as context:
                    inner = command.get_command(context, words[0])
                assert inner is not None, f"{page}: {words}"
                command, words = inner, words[1:]
            try:
                command.make_context("ep-plan", list(words))
            except click.exceptions.Exit:
                pass  # --help, --version
            except click.ClickException as error:  # files of the reader's are not here
                wrong = error.format_message()
                assert "does not exist" in wrong, f"{page.relative_to(ROOT)}: ep-plan {' '.join(line)}: {wrong}"
            count += 1
    assert count > 100


def outputs(*arguments: object) -> subprocess.CompletedProcess[str]:
    script = [sys.executable, str(ROOT / "docs" / "outputs.py"), *map(str, arguments)]
    return subprocess.run(script, cwd=ROOT, env=environment(), capture_output=True, encoding="utf-8", check=False)


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def test_what_is_not_run_says_why_and_does_not_grow() -> None:
    listed = outputs("--not-run")
    assert listed.returncode == 0, listed.stderr
    found = Counter(tuple(line.split("\t")[:2]) for line in listed.stdout.splitlines())
    assert found == NOT_RUN


def test_every_page_with_commands_is_run() -> None:
    assert outputs("--pages").stdout.split() == [named(page) for page in RUN]


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[pytest.mark.docs] * (named(page) in SLOW), id=named(page)) for page in RUN],
)
def test_commands_print_what_is_shown(page: Path) -> None:
    if named(page) in NEED_TORCH:
        pytest.importorskip("torch", reason="torch is not installed")
    done = outputs("--check", page)
    assert done.returncode == 0, f"{done.stderr}\nto mend it: python docs/outputs.py"
