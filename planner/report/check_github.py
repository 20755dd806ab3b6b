"""The results of `ep-plan check` for GitHub Actions: annotations, and a log that nothing in it can steer.

A runner takes lines of the form `::name key=value::message` in the output of a step as commands. So
values are escaped, and while the report for people is printed, commands are switched off with a word
that nobody can guess.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from planner.errors import MissingEnvironmentError, Problem
from planner.report.check_markdown import markdown
from planner.review.checked import Checked

_TITLE = "ep-plan check"


def workspace() -> Path | None:
    """The checkout of the running workflow, which annotations name files relative to."""
    folder = os.environ.get("GITHUB_WORKSPACE")
    return Path(folder) if folder else None


def append_summary(results: Sequence[Checked]) -> None:
    """Add the Markdown page to the summary of the running step; a warning says where there is none.

    Raises:
        MissingEnvironmentError: it cannot be written.
    """
    file = os.environ.get("GITHUB_STEP_SUMMARY")
    if not file:
        click.echo("warning: GITHUB_STEP_SUMMARY is not set: no summary of the step was written", err=True)
        return
    try:
        with Path(file).open("a", encoding="utf-8") as summary:  # other steps may have written to it
            summary.write(markdown(results))
    except OSError as error:
        raise MissingEnvironmentError(f"cannot write the summary {file}: {error.strerror or error}") from None


def annotation_lines(results: Sequence[Checked], workspace: Path | None = None) -> Iterator[str]:
    """One command line for every problem, every file with findings, and every golden plan worth renewing.

    Args:
        results: what was found.
        workspace: the checkout that paths are shown relative to; default: as they are.
    """
    for result in results:
        path = _relative(str(result.path), workspace)
        for problem in result.error.problems if result.error else ():
            yield _of_problem(problem, path, workspace)
        advice = () if result.compared is None or not result.compared.to_do else (result.compared.to_do,)
        if result.all_findings:
            yield _command("error", {"file": path}, "\n".join([*result.all_findings, *advice]))
        elif result.compared is not None and result.compared.status == "better":
            yield _command("notice", {"file": path}, "\n".join([*result.compared.notes, *advice]))


def _of_problem(problem: Problem, path: str, workspace: Path | None) -> str:
    where = problem.where
    place = {"file": path if where is None else _relative(where.file, workspace)}
    if where is not None and where.line is not None:
        place |= {"line": str(where.line), "col": str(where.column)}
    key = f"{where.key}: " if where is not None and where.key else ""
    return _command("error", place, f"{key}{problem.message}" + (f"\n{problem.hint}" if problem.hint else ""))


def _command(name: str, place: Mapping[str, str], message: str) -> str:
    properties = ",".join(f"{key}={_property(value)}" for key, value in {**place, "title": _TITLE}.items())
    return f"::{name} {properties}::{_data(message)}"


def _data(text: str) -> str:
    """A message: what would end the line, or be taken for an escape."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    """A value before the message: also what would end it."""
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _relative(path: str, workspace: Path | None) -> str:
    return path if workspace is None else Path(os.path.relpath(path, workspace)).as_posix()


@contextmanager
def without_commands() -> Iterator[None]:
    """What is printed inside is never taken for a command."""
    word = secrets.token_hex(16)
    click.echo(f"::stop-commands::{word}")
    try:
        yield
    finally:
        click.echo(f"::{word}::")
