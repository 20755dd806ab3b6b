"""docs/formats.md: every key of every file, from the pydantic models that read them."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, get_args

from pydantic import BaseModel

from pages.files import FILES, File
from pages.markdown import GENERATED, anchor, code, first_sentence, joined, table
from pages.type_texts import QUANTITY_NAMES, default_text, type_text, value_of_sourced
from planner.inputs import units
from planner.inputs.sourced import Sourced
from planner.inputs.topology_file import TopologyFile

HERE: Final = Path(__file__).resolve().parent

INTRO = """\
Every file of ep-plan opens with `schema: ep-plan/<kind>/1`. YAML is read strictly: an unknown key, a duplicate key, a
quantity without a unit, an alias or a tag is an error with file, line and column, and all problems of all files are
told at once. Paths in a deployment are relative to its file. Hugging Face's `config.json` and `trace.npz` need no
schema line."""

UNITS_TEXT = """\
A quantity is text with its unit, such as `450 GB/s`. GB is 10^9 bytes and GiB is 2^30 bytes; Gb is bits. Bare whole
numbers are for counts (tokens, experts, GPUs)."""


def page() -> str:
    """The whole page."""
    contents = [f"[{title}](#{anchor(title)})" for title in ("trace.npz", *(file.title for file in FILES))]
    seen: set[type[BaseModel]] = set()
    blocks = [GENERATED, "# File formats", INTRO, "Files: " + ", ".join(contents) + "."]
    blocks += ["## Quantities", UNITS_TEXT, _units(), "## Values with a source", *_sourced()]
    for file in FILES:
        blocks += _file(file, seen)
        if file.record is TopologyFile:
            blocks.append((HERE / "trace.md").read_text(encoding="utf-8"))
    return joined(blocks)


def _units() -> str:
    rows = (
        (QUANTITY_NAMES.get(name, name), ", ".join(f"`{unit}`" for unit in known), text)
        for name, (known, text) in units.UNITS.items()
    )
    return table(("quantity", "units", "written as"), rows)


def _sourced() -> Iterator[str]:
    yield first_sentence(Sourced.__doc__)
    bases = ", ".join(f"`{basis}`" for basis in get_args(Sourced.model_fields["basis"].annotation))
    yield f"`basis` is one of {bases}; see [profiles.md](profiles.md). The tables below say where this is allowed."


def _file(file: File, seen: set[type[BaseModel]]) -> Iterator[str]:
    yield f"## {file.title}"
    summary = first_sentence(file.record.__doc__)
    yield f"`schema: ep-plan/{file.kind}/1`. {file.text} {'' if file.title in summary else summary}".rstrip()
    if file.example:
        yield code(file.example.read_text(encoding="utf-8"), "yaml")
    seen.add(file.record)
    yield _fields(file.record)
    for record in _nested(file.record):
        if record not in seen:
            seen.add(record)
            yield f"### {record.__name__}"
            yield first_sentence(record.__doc__)
            yield _fields(record)


def _nested(record: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """The records inside a record, depth first; those that are files of their own have their own place."""
    files = {file.record for file in FILES}
    for field in record.model_fields.values():
        for inner in _records(field.annotation):
            if inner not in files:
                yield inner
                yield from _nested(inner)


def _records(annotation: Any) -> Iterator[type[BaseModel]]:
    value = value_of_sourced(annotation)
    if value is not None:
        yield from _records(value)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    else:
        for part in get_args(annotation):
            yield from _records(part)


def _fields(record: type[BaseModel]) -> str:
    texts = field_texts(record)
    rows = []
    for name, field in record.model_fields.items():
        meaning = texts.get(name) or _summary(field.annotation)
        rows.append((f"`{name}`", type_text(field.annotation, field.metadata), default_text(field), meaning))
    return table(("key", "type", "default", "meaning"), rows)


def _summary(annotation: Any) -> str:
    """What a record is, for a field that says nothing itself."""
    inner = list(_records(annotation))
    return first_sentence(inner[0].__doc__) if len(inner) == 1 else ""


def field_texts(record: type[BaseModel]) -> dict[str, str]:
    """What each field means: its description, or the string that stands under it in the source."""
    body = ast.parse(textwrap.dedent(inspect.getsource(record))).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {name: field.description for name, field in record.model_fields.items() if field.description}
    for statement, following in pairwise(body.body):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
        ):
            found.setdefault(statement.target.id, str(following.value.value))
    return found
