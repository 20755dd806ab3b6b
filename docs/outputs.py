"""Runs the commands of README.md and of the examples, and holds the output that they show against the real one.

python docs/outputs.py [PAGE...]            bring what is shown up to date; default: all pages
python docs/outputs.py --check [PAGE...]    change nothing; exit 1 and name what is stale

A text block shows lines of what the shell block before it prints; `...` stands for lines left out.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

ROOT: Final = Path(__file__).resolve().parent.parent
_BLOCK: Final = re.compile(r"^```(bash|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FIGURES: Final = re.compile(
    r"(?:[a-z]+=\d+ ?)+|\b(?:measured|fitted|transferred|datasheet|given|assumed)\b|[\d.,]+|[▁▂▃▄▅▆▇█▏▎▍▌▋▊▉]+"
)
"""What differs from version to version: figures, splits, what constants rest on."""
_INSTALLS: Final = re.compile(r"pip install|make test|-m venv")
_MAKE_SOLVE: Final = "ep-plan solve examples/tiny-moe/deployment.yaml"


def pages() -> list[Path]:
    """The pages whose commands are run; on all others they must at least be known to the command line."""
    own = [ROOT / "README.md", *(ROOT / "docs" / name for name in ("tutorial.md", "editors.md"))]
    return [*own, *sorted((ROOT / "docs" / "engines").glob("*.md")), *sorted((ROOT / "examples").glob("*/README.md"))]


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
            kind, inside = found[1], found[2]
            if kind == "bash":
                printed = _run(inside, folder)
                return found[0]
            return f"```text\n{''.join(_shown(inside.splitlines(), printed.splitlines(), page))}```"

        return _BLOCK.sub(block, text)


def _run(script: str, folder: Path) -> str:
    """What the commands of a block print on standard output; those that install are left out."""
    lines = [_MAKE_SOLVE if line.startswith("make solve") else line for line in script.splitlines()]
    kept = "\n".join(line for line in lines if not _INSTALLS.search(line))
    path = os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
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
def main(only: tuple[Path, ...], check: bool) -> None:
    """Bring the output shown in the READMEs up to date."""
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
