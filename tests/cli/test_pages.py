"""The commands of README, guides and examples run, and print what is shown there; all others are known."""

from __future__ import annotations

import itertools
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from planner.cli.main import cli
from tests.cli.running import ROOT, environment

EXAMPLES = sorted((ROOT / "examples").glob("*/README.md"))
GUIDES = [
    ROOT / "docs" / "tutorial.md",
    ROOT / "docs" / "editors.md",
    *sorted((ROOT / "docs" / "engines").glob("*.md")),
]
PAGES = [ROOT / "README.md", *GUIDES, *EXAMPLES]
DOCS = [*PAGES, *sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"]
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


def test_commands_that_need_an_engine_are_at_least_known() -> None:
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.stem}")
def test_commands_print_what_is_shown(page: Path) -> None:
    script = [sys.executable, str(ROOT / "docs" / "outputs.py"), "--check", str(page)]
    done = subprocess.run(script, cwd=ROOT, env=environment(), capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, f"{done.stderr}\nto mend it: python docs/outputs.py"
