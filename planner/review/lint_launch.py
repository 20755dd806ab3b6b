"""A command line against a model and a machine that are named on ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from planner.errors import InputError, UsageError
from planner.export.lint.arithmetic import About
from planner.export.lint.command import Command, command_in_words, command_of
from planner.export.lint.run import VERSIONS, Linted, lint_command
from planner.inputs.model_files import model_named
from planner.inputs.named_files import TOPOLOGY_OPTION, Named, topology_of

_PULL_REQUESTS = ("pr-41141", "pr-49572", "pr-53022")


def lint_launch(words: Sequence[str], model: str | None, topology: str | None, version: str | None) -> Linted:
    """Judge a command: one line of shell, or its words.

    Raises:
        UsageError: no engine is started there, or an unknown version, model or topology.
        InputError: the model's or the topology's file is broken.
    """
    command = command_of(words[0]) if len(words) == 1 else command_in_words(words)
    requests = _pull_requests(command, version)
    machine = None
    if topology is not None:
        try:
            machine = topology_of(Named(topology, Path(), TOPOLOGY_OPTION), None)[0]
        except InputError as error:
            if any(problem.where == TOPOLOGY_OPTION for problem in error.problems):
                raise UsageError.of(error.problems) from None
            raise
    about = About(None if model is None else model_named(model), machine, requests)
    return lint_command(command, about)


def _pull_requests(command: Command, version: str | None) -> tuple[str, ...]:
    known = VERSIONS[command.engine]
    if version is None or version == known:
        return ()
    builds = _PULL_REQUESTS if command.engine == "vllm" else ()
    if version in builds:
        return (version.removeprefix("pr-"),)
    message = f"--engine-version {version}: the arguments of {command.engine} are known for other versions"
    raise UsageError(message, hint=f"known: {', '.join((known, *builds))}")
