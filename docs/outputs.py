"""Runs the commands of all pages, and holds the output that they show against the real one.

python docs/outputs.py [PAGE...]            bring what is shown up to date; default: all pages
python docs/outputs.py --check [PAGE...]    change nothing; exit 1 and name what is stale
python docs/outputs.py --pages              name the pages with commands
python docs/outputs.py --not-run [PAGE...]  list the commands that are not run, with the reasons

Each page is run from top to bottom in a folder of its own, beside the shipped examples. A text block shows lines of
what the bash block before it prints; `...` stands for lines left out. `# exit code N` after a command says how it must
end. What cannot be run stands in a `shell` block, whose first line says why: `# not run by the tests: REASON`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click
from pages.markdown import NOT_RUN_MARK

ROOT: Final = Path(__file__).resolve().parent.parent
_BLOCK: Final = re.compile(r"^( *)```(bash|text)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_NOT_RUN: Final = re.compile(r"^ *```shell\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_EXIT_CODE: Final = re.compile(r"^(.*?) +# exit code (\d+)\b.*$", re.MULTILINE)
_FIGURES: Final = re.compile(
    r"(?:[a-z]+=\d+ ?)+|\b(?:measured|fitted|transferred|datasheet|given|assumed)\b|[\d.,]+|[▁▂▃▄▅▆▇█▏▎▍▌▋▊▉]+"
)
"""What differs from version to version: figures, splits, what constants rest on."""
_INSTALLS: Final = re.compile(r"pip install|make test|-m venv")
"""Lines of bash blocks that are left out: the tests run where this has been done."""
_MAKE_SOLVE: Final = "ep-plan solve examples/tiny-moe/deployment.yaml"


def pages() -> list[Path]:
    """The pages with commands."""
    folders = ("docs/*.md", "docs/engines/*.md", "examples/*/README.md", "benchmarks/README.md")
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(path for name in folders for path in ROOT.glob(name))]
    return sorted(page for page in found if re.search("```(?:bash|shell)\n", page.read_text(encoding="utf-8")))


def not_run(page: Path) -> list[tuple[str, str]]:
    """Commands of a page that are not run, each with the reason.

    Raises:
        ValueError: a block does not say why.
    """
    text = page.read_text(encoding="utf-8")
    found = []
    for script in _NOT_RUN.findall(text):
        first, *lines = _joined(script).splitlines()
        if not first.strip().startswith(NOT_RUN_MARK):
            raise ValueError(f"{page.relative_to(ROOT)}: a shell block begins with {first!r}, not {NOT_RUN_MARK!r}")
        found += [(line.strip(), first.strip().removeprefix(NOT_RUN_MARK)) for line in lines if line.strip()]
    for _, kind, script in _BLOCK.findall(text):
        if kind == "bash":
            found += [(line.strip(), "installs") for line in script.splitlines() if _INSTALLS.search(line)]
    return found


def _joined(script: str) -> str:
    return script.replace("\\\n", " ")


def refreshed(page: Path) -> str:
    """The text of a page with the output that its commands print now.

    Raises:
        RuntimeError: a command fails, or prints nothing like a line that is shown.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(ROOT / "examples", folder / "examples")
        (folder / "ep-plan").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m planner "$@"\n')
        (folder / "ep-plan").chmod(0o755)
        text, printed = page.read_text(encoding="utf-8"), ""

        def block(found: re.Match[str]) -> str:
            nonlocal printed
            indent, kind, inside = found[1], found[2], textwrap.dedent(found[3])
            if kind == "bash":
                printed = _run(inside, folder)
                return found[0]
            shown = "".join(_shown(inside.splitlines(), printed.splitlines(), page))
            return f"{indent}```text\n{textwrap.indent(shown, indent)}{indent}```"

        return _BLOCK.sub(block, text)


def _run(script: str, folder: Path) -> str:
    """What the commands of a block print on standard output; those that install are left out."""
    lines = [_MAKE_SOLVE if line.startswith("make solve") else line for line in script.splitlines()]
    kept = "\n".join(line for line in lines if not _INSTALLS.search(line))
    kept = _EXIT_CODE.sub(r"if \1; then false; else test $? = \2; fi", kept)
    path = os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "100", "HOME": str(folder)}
    done = subprocess.run(
        ["bash", "-e", "-c", kept], cwd=folder, env=environment, capture_output=True, encoding="utf-8", check=False
    )
    if done.returncode:
        raise RuntimeError(f"{kept}\nexit code {done.returncode}\n{done.stderr}")
    return done.stdout


def _shown(lines: list[str], printed: list[str], page: Path) -> Iterator[str]:
    """Each line that is shown, as it is printed now: the next one that differs in figures only."""
    at = 0
    for line in lines:
        if line.strip() in ("...", ""):
            yield f"{line}\n"
            continue
        same = (index for index in range(at, len(printed)) if _form(printed[index]) == _form(line))
        found = next(same, None)
        if found is None:
            raise RuntimeError(f"{page.relative_to(ROOT)}: nothing like this is printed any more: {line}")
        yield f"{printed[found]}\n"
        at = found + 1


def _form(line: str) -> str:
    return " ".join(_FIGURES.sub(" ", line).split())


@click.command()
@click.argument("only", nargs=-1, metavar="[PAGE]...", type=click.Path(exists=True, resolve_path=True, path_type=Path))
@click.option("--check", is_flag=True, help="Write nothing; exit 1 if a page is stale.")
@click.option("--pages", "named", is_flag=True, help="Name the pages with commands.")
@click.option("--not-run", "listed", is_flag=True, help="List the commands that are not run, as page, reason, command.")
def main(only: tuple[Path, ...], check: bool, listed: bool, named: bool) -> None:
    """Bring the output shown on pages up to date."""
    if named:
        click.echo("\n".join(page.relative_to(ROOT).as_posix() for page in pages()))
        return
    if listed:
        for page in only or pages():
            for line, reason in not_run(page):
                click.echo(f"{page.relative_to(ROOT)}\t{reason}\t{line}")
        return
    stale = False
    for page in only or pages():
        text = refreshed(page)
        if text == page.read_text(encoding="utf-8"):
            continue
        stale = True
        if not check:
            page.write_text(text, encoding="utf-8", newline="\n")
        click.echo(f"{page.relative_to(ROOT)} {'shows old output' if check else 'brought up to date'}", err=True)
    if check and stale:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
