"""A command line taken apart: environment, engine, flags with their values."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from planner.errors import UsageError

EngineName = Literal["vllm", "sglang", "tensorrt-llm"]
Level = Literal["fatal", "ignored", "coerced", "risk", "note"]

_ASSIGNMENT: Final = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
_STARTS: Final[tuple[tuple[tuple[str, ...], EngineName], ...]] = (
    (("vllm", "serve"), "vllm"),
    (("-m", "vllm.entrypoints.openai.api_server"), "vllm"),
    (("-m", "vllm.entrypoints.cli.main", "serve"), "vllm"),
    (("-m", "sglang.launch_server"), "sglang"),
    (("sglang", "serve"), "sglang"),
    (("trtllm-serve",), "tensorrt-llm"),
)


@dataclass(frozen=True)
class Flags:
    """The flags of an engine that are judged; others are named as not examined."""

    values: Mapping[str, str]
    """Flag, hyphens for underscores -> its name here, for those that take a value."""
    switches: Mapping[str, str]
    """The same for those that take none."""
    unread: frozenset[str] = frozenset()
    """Flags that are known and have nothing to do with what is judged."""


@dataclass(frozen=True)
class Remark:
    """One thing that a user should know before starting."""

    level: Level
    flag: str
    message: str
    source: str = ""
    """The thread or file that it comes from; empty for arithmetic."""

    def __str__(self) -> str:
        source = f" ({self.source})" if self.source else ""
        return f"{self.level}: {self.flag}: {self.message}{source}"


@dataclass(frozen=True)
class Command:
    """A command line of an engine."""

    engine: EngineName
    env: Mapping[str, str]
    words: tuple[str, ...]
    """What follows the engine's name."""


@dataclass
class Parsed:
    """The flags of a command, by their names here, and what is wrong with the line itself."""

    command: Command
    given: dict[str, Any] = field(default_factory=dict)
    remarks: list[Remark] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    positional: list[str] = field(default_factory=list)

    def add(self, level: Level, flag: str, message: str, source: str = "") -> None:
        """Note something."""
        self.remarks.append(Remark(level, flag, message, source))

    def number(self, name: str, default: int) -> int:
        """The value of a degree; what is no positive number is noted and taken as the default."""
        text = self.given.get(name)
        if text is None:
            return default
        if not (str(text).isascii() and str(text).isdecimal() and 0 < int(text) < 1 << 20):
            self.add("fatal", name, f"{text!r} is not a positive whole number")
            self.given[name] = None
            return default
        return int(text)


def command_of(text: str) -> Command:
    """The engine's command in a line of shell; raises `UsageError` if there is none."""
    try:
        words = shlex.split(text, comments=True)
    except ValueError as error:
        raise UsageError(f"not a command line: {error}") from None
    return command_in_words(words)


def command_in_words(words: Sequence[str], env: Mapping[str, str] | None = None) -> Command:
    """The same for words; whatever starts the engine (env, exec, nohup, mpirun) is passed over."""
    found = dict(env or {})
    for index, word in enumerate(words):
        match = _ASSIGNMENT.fullmatch(word)
        if match:
            found[match[1]] = match[2]
        for start, engine in _STARTS:
            first = (word.rpartition("/")[2], *words[index + 1 : index + len(start)])
            if first == start:
                return Command(engine, found, tuple(words[index + len(start) :]))
    known = ", ".join(" ".join(start) for start, _ in _STARTS)
    raise UsageError("no engine is started in this line", hint=f"known: {known}")


def parsed(command: Command, flags: Flags) -> Parsed:
    """Take the flags apart: `--a b`, `--a=b`, `--config.key value`; the last one counts, as with argparse."""
    made = Parsed(command)
    words = list(command.words)
    while words:
        word = words.pop(0)
        if not word.startswith("-") or word == "-":
            made.positional.append(word)
            continue
        name, equals, value = word.partition("=")
        flag = name.replace("_", "-") if name.startswith("--") else name
        top, dot, key = flag.partition(".")
        if flag in flags.switches:
            made.given[flags.switches[flag]] = True
        elif top in flags.values or flag in flags.values:
            text = value if equals else _value(words)
            target = flags.values.get(flag) or flags.values[top]
            if text is None:
                made.add("fatal", name, "a value is missing")
            elif dot and flag not in flags.values:
                _put(made, target, key.replace("-", "_"), text)
            else:
                made.given[target] = text
        else:
            if flag not in flags.unread:
                made.unknown.append(name)
            if not equals and words and not words[0].startswith("--"):
                words.pop(0)
    return made


def _value(words: list[str]) -> str | None:
    return words.pop(0) if words and not words[0].startswith("--") else None


def _put(made: Parsed, target: str, key: str, text: str) -> None:
    """`--config.key value` is the same as that key in the JSON of `--config`."""
    before = made.given.get(target)
    data = json_object(made, target) if before is not None else {}
    if data is None:
        return
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    made.given[target] = json.dumps({**data, key: value})


def json_object(made: Parsed, name: str) -> dict[str, Any] | None:
    """The JSON object that a flag holds; noted as fatal and None if it is none; empty if not given."""
    text = made.given.get(name)
    if text is None:
        return {}
    try:
        data = json.loads(str(text))
    except ValueError as error:
        made.add("fatal", name, f"not JSON: {error}")
        return None
    if not isinstance(data, dict):
        made.add("fatal", name, "not a JSON object")
        return None
    return data
