"""Shell scripts in which every name is quoted, and reading them again.

A script holds one command for each node, chosen by its first argument; further arguments are passed on.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from planner import __version__


class Raw(str):
    """A word that is quoted already."""

    __slots__ = ()


PASSED: Final = Raw('"$@"')
"""Where further arguments go; at the end, if a command does not say."""
_ASSIGNMENT: Final = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)


@dataclass(frozen=True)
class NodeCommand:
    """What runs on one node."""

    env: Mapping[str, str]
    argv: tuple[str, ...]
    before: tuple[str, ...] = ()
    """Lines before the command, quoted already."""


def script(about: Sequence[str], commands: Sequence[NodeCommand]) -> str:
    """A script for all nodes.

    Args:
        about: what stands on top as comment; no name of the user's may be in it.
        commands: one for each node.
    """
    lines = ["#!/usr/bin/env bash", f"# Written by ep-plan {__version__}.", *(f"# {line}" for line in about)]
    if any("$" in word or "`" in word for command in commands for word in command.argv if not isinstance(word, Raw)):
        lines.append("# shellcheck disable=SC2016  # names are meant as they stand")
    lines += ["set -euo pipefail", ""]
    if len(commands) == 1:
        return "\n".join([*lines, *_body(commands[0], "")]) + "\n"
    last = len(commands) - 1
    lines.append(f'node="${{1:?give the number of this node, 0 to {last}}}"')
    lines += ["shift", 'case "$node" in']
    for number, command in enumerate(commands):
        lines += [f"  {number})", *_body(command, "    "), "    ;;"]
    lines += ["  *)", f'    echo "no node $node: give 0 to {last}" >&2', "    exit 2", "    ;;", "esac"]
    return "\n".join(lines) + "\n"


def _body(command: NodeCommand, pad: str) -> list[str]:
    lines = [f"{pad}{line}" for line in command.before]
    lines += [f"{pad}export {name}={shlex.quote(value)}" for name, value in command.env.items()]
    return [*lines, *_wrapped(command.argv, pad)]


def _wrapped(argv: Sequence[str], pad: str) -> list[str]:
    """`exec` of a command, each option on a line of its own, and what is passed on."""
    parts: list[list[str]] = [[]]
    for word in [*argv, *([] if PASSED in argv else [PASSED])]:
        if word.startswith("--") or word is PASSED:
            parts.append([])
        parts[-1].append(word if isinstance(word, Raw) else shlex.quote(word))
    first, *others = [" ".join(part) for part in parts if part]
    return [f"{pad}exec {first} \\", *(f"{pad}  {other} \\" for other in others[:-1]), f"{pad}  {others[-1]}"]


def commands_in(text: str) -> list[NodeCommand]:
    """The commands of a script, as a shell would take them apart; `"$@"` becomes the word `$@`."""
    found: list[NodeCommand] = []
    env: dict[str, str] = {}
    for words in _statements(text):
        match = _ASSIGNMENT.fullmatch(words[1]) if words[0] == "export" and len(words) == 2 else None
        if match:
            env[match[1]] = match[2]
        elif words[0] == "exec":
            found.append(NodeCommand(env, tuple(words[1:])))
            env = {}
    return found


def _statements(text: str) -> list[list[str]]:
    """Words of every line, lines joined where a backslash or an open quote says so."""
    found, pending = [], ""
    for line in text.splitlines():
        pending += line
        if pending.endswith("\\"):
            pending = pending[:-1] + " "
            continue
        words = shlex.split(pending, comments=True)
        if words:
            found.append(words)
        pending = ""
    return found
