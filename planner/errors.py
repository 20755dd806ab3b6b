"""Every failure that a user can meet, with its place, its repair and its exit code.

Anything that is not a `PlannerError` is a bug and keeps its traceback (exit code 1).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, order=True)
class Place:
    """Where in a file: line and column count from 1; `key` is the path of keys inside it."""

    file: str
    line: int | None = None
    column: int | None = None
    key: str = ""

    def __str__(self) -> str:
        position = "" if self.line is None else f":{self.line}:{self.column}"
        key = f": {self.key}" if self.key else ""
        return f"{self.file}{position}{key}"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: what, where, and how to mend it."""

    message: str
    where: Place | None = None
    hint: str = ""

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        hint = "".join(f"\n  {line}" for line in self.hint.splitlines())
        return f"error: {place}{self.message}{hint}"


def in_file_order(problems: Iterable[Problem]) -> list[Problem]:
    """Problems of one file together, files in the order in which they first come, in each by line and column."""
    given = list(problems)
    files = list(dict.fromkeys(problem.where.file if problem.where else "" for problem in given))

    def place(problem: Problem) -> tuple[int, int, int]:
        where = problem.where or Place("")
        return files.index(where.file), where.line or 0, where.column or 0

    return sorted(given, key=place)


class PlannerError(Exception):
    """An expected failure. `exit_code` is part of the contract (README, "Exit codes")."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "", where: Place | None = None) -> None:
        super().__init__(message)
        self.problems: tuple[Problem, ...] = (Problem(message, where, hint),)
        self.data: dict[str, Any] = {}
        """What `--json` says besides the problems."""

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)

    def __reduce__(self) -> tuple[Any, ...]:
        """So that an error crosses from one process to another whole."""
        return _again, (type(self), self.problems)


def _again(kind: type[PlannerError], problems: tuple[Problem, ...]) -> PlannerError:
    error = kind.__new__(kind, problems[0].message)
    error.problems = problems
    return error


class UsageError(PlannerError):
    """Wrong options, or a file named on the command line does not exist."""

    exit_code = 2

    @classmethod
    def of(cls, problems: Sequence[Problem]) -> UsageError:
        """Several problems at once."""
        error = cls(problems[0].message)
        error.problems = tuple(problems)
        return error


class InputError(PlannerError):
    """Input files are invalid or disagree; carries all problems of all files at once."""

    exit_code = 3

    def __init__(self, problems: Problem | Iterable[Problem]) -> None:
        found = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__(found[0].message)
        self.problems = found

    def __str__(self) -> str:
        files = {problem.where.file for problem in self.problems if problem.where}
        count = len(self.problems)
        tail = f"{count} problem{'s' if count > 1 else ''}"
        if files:
            tail = f"{len(files)} file{'s' if len(files) > 1 else ''}, {tail}"
        return "\n".join([*(str(p) for p in self.problems), tail])


class InfeasibleError(PlannerError):
    """Proved: nothing that the inputs allow can run. The message holds the reasons in words."""

    exit_code = 4


class NoPlanFoundError(PlannerError):
    """The limits were reached before any plan was found; nothing is proved."""

    exit_code = 5


class BadAnswerError(PlannerError):
    """The command ran, and the answer is bad: a check found something."""

    exit_code = 6


class MissingEnvironmentError(PlannerError):
    """The environment lacks something: GPUs, torch, a port, a peer rank, disk space."""

    exit_code = 7


class ProblemLog:
    """Collects problems while reading, so that all of them are reported at once."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def add(self, message: str, *, where: Place | None = None, hint: str = "") -> None:
        """Note one problem, once."""
        problem = Problem(message, where, hint)
        if problem not in self.problems:
            self.problems.append(problem)

    def extend(self, problems: Sequence[Problem]) -> None:
        """Take over the problems of another reader."""
        self.problems.extend(problems)

    def raise_if_any(self) -> None:
        """Raise `InputError` with everything noted so far, if anything was."""
        if self.problems:
            raise InputError(in_file_order(self.problems))
