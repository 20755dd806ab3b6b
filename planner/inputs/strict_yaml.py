"""YAML 1.2 read strictly: positions kept, duplicate keys refused, nothing guessed.

PyYAML follows YAML 1.1, where `NO` is false, `1e9` is text and `12:30` is a number, and where the
last of two equal keys wins in silence. Here its event stream is turned into plain data with the
YAML 1.2 core schema instead, iteratively, so that hostile files (alias bombs, deep nesting) are an
error with a place and never a crash.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from planner.errors import InputError, Place, Problem
from planner.files import read_text

LIMIT_BYTES: Final = 8 << 20
LIMIT_DEPTH: Final = 40
LIMIT_NODES: Final = 50_000

Key = tuple[str | int, ...]

_NULL = re.compile(r"null|Null|NULL|~|")
_TRUE = re.compile(r"true|True|TRUE")
_FALSE = re.compile(r"false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_LIMIT_DIGITS: Final = 40
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Document:
    """Plain data and, for every key path in it, the line and column where its value stands."""

    file: str
    data: Any
    positions: dict[Key, tuple[int, int]]
    key_positions: dict[Key, tuple[int, int]]
    duplicates: tuple[Problem, ...] = ()
    """Keys that stand twice, for a reader that tells them with all else that is wrong."""

    def place(self, key: Key, *, of_key: bool = False) -> Place:
        """The place of a value (or of the key itself); of the nearest parent if it is absent."""
        table = self.key_positions if of_key and key in self.key_positions else self.positions
        known = key
        while known and known not in table:
            known, table = known[:-1], self.positions
        line, column = table.get(known, (1, 1))
        return Place(self.file, line, column, key_text(key))


def key_text(key: Key) -> str:
    """A key path for people: ("links", 0, "bandwidth") becomes links[0].bandwidth."""
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else str(part))
    return text


def read_yaml(path: Path, *, keep_duplicates: bool = False) -> Document:
    """Read one YAML (or JSON) document; raises `InputError` with a place, or `UsageError`."""
    text = read_text(path, limit_bytes=LIMIT_BYTES)
    return parse_yaml(text, str(path), keep_duplicates=keep_duplicates)


def parse_yaml(text: str, file: str, *, keep_duplicates: bool = False) -> Document:
    """Parse the text of one document.

    Args:
        text: the document.
        file: what error messages call it.
        keep_duplicates: leave it to the caller to refuse `Document.duplicates`.
    """
    builder = _Builder(file)
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            builder.take(event)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        code = error.character if isinstance(error.character, int) else ord(error.character)
        problem = Problem(f"character U+{code:04X} is not allowed in YAML", Place(file, line, 1))
        raise InputError(problem) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = Place(file, mark.line + 1, mark.column + 1) if mark else Place(file)
        what = " ".join(part for part in (error.context, error.problem) if part)
        raise InputError(Problem(f"not valid YAML: {what}", where)) from None
    except RecursionError:
        raise InputError(Problem(f"nested deeper than {LIMIT_DEPTH} levels", Place(file))) from None
    if builder.duplicates and not keep_duplicates:
        raise InputError(builder.duplicates)
    return Document(file, builder.root, builder.positions, builder.key_positions, tuple(builder.duplicates))


@dataclass
class _Open:
    """A mapping or sequence whose end has not been seen yet."""

    container: dict[str, Any] | list[Any]
    key: Key
    pending_key: str | None = None


class _Builder:
    """Turns YAML events into data, without recursion."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.root: Any = None
        self.positions: dict[Key, tuple[int, int]] = {}
        self.key_positions: dict[Key, tuple[int, int]] = {}
        self.duplicates: list[Problem] = []
        self._open: list[_Open] = []
        self._documents = 0
        self._nodes = 0

    def take(self, event: yaml.Event) -> None:
        if isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                raise self._fatal(event, "a second document begins here; one per file is allowed")
        elif isinstance(event, yaml.AliasEvent):
            raise self._fatal(event, f"alias *{event.anchor}", "anchors and aliases are not read: write values out")
        elif isinstance(event, yaml.ScalarEvent):
            self._scalar(event)
        elif isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            self._begin(event)
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            self._open.pop()

    def _begin(self, event: yaml.MappingStartEvent | yaml.SequenceStartEvent) -> None:
        container: dict[str, Any] | list[Any]
        container = {} if isinstance(event, yaml.MappingStartEvent) else []
        parent = self._open[-1] if self._open else None
        if parent and isinstance(parent.container, dict) and parent.pending_key is None:
            raise self._fatal(event, "a key must be plain text, not a list or a mapping")
        if len(self._open) >= LIMIT_DEPTH:
            raise self._fatal(event, f"nested deeper than {LIMIT_DEPTH} levels")
        self._tag(event)
        key = self._attach(container, event)
        self._open.append(_Open(container, key))

    def _scalar(self, event: yaml.ScalarEvent) -> None:
        parent = self._open[-1] if self._open else None
        if parent and isinstance(parent.container, dict) and parent.pending_key is None:
            self._begin_pair(parent, event)
            return
        self._tag(event)
        value = event.value if event.style or event.tag == "!" else self._plain(event)
        self._attach(value, event)

    def _begin_pair(self, parent: _Open, event: yaml.ScalarEvent) -> None:
        name = str(event.value)
        key = (*parent.key, name)
        if name in parent.container:
            first = self.key_positions[key][0]
            message = f"duplicate key (first on line {first})"
            self.duplicates.append(Problem(message, self._place(event, key)))
        parent.pending_key = name
        self.key_positions[key] = _position(event)

    def _attach(self, value: Any, event: yaml.Event) -> Key:
        self._nodes += 1
        if self._nodes > LIMIT_NODES:
            raise self._fatal(event, f"more than {LIMIT_NODES:,} values")
        key: Key = ()
        if not self._open:
            self.root = value
        else:
            parent = self._open[-1]
            if isinstance(parent.container, dict):
                assert parent.pending_key is not None
                key = (*parent.key, parent.pending_key)
                parent.container[parent.pending_key] = value
                parent.pending_key = None
            else:
                key = (*parent.key, len(parent.container))
                parent.container.append(value)
        self.positions[key] = _position(event)
        return key

    def _plain(self, event: yaml.ScalarEvent) -> Any:
        text = event.value
        if _NULL.fullmatch(text):
            return None
        if _TRUE.fullmatch(text):
            return True
        if _FALSE.fullmatch(text):
            return False
        if _INT.fullmatch(text) or _FLOAT.fullmatch(text):
            if len(text) > _LIMIT_DIGITS:
                raise self._fatal(event, f"a number of more than {_LIMIT_DIGITS} digits")
            return int(text) if _INT.fullmatch(text) else float(text)
        return text

    def _tag(self, event: Any) -> None:
        if event.anchor is not None:
            raise self._fatal(event, f"anchor &{event.anchor}", "anchors and aliases are not read: write values out")
        if event.tag not in (None, "!"):
            raise self._fatal(event, f"tag {event.tag}", "tags are not read: remove it")

    def _place(self, event: yaml.Event, key: Key = ()) -> Place:
        return Place(self.file, *_position(event), key_text(key))

    def _fatal(self, event: yaml.Event, message: str, hint: str = "") -> InputError:
        return InputError([*self.duplicates, Problem(message, self._place(event), hint)])


def _position(event: yaml.Event) -> tuple[int, int]:
    """Line and column, counting from 1."""
    mark = event.start_mark
    return (mark.line + 1, mark.column + 1) if mark else (1, 1)
