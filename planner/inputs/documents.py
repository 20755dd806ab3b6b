"""From a file to a validated, frozen pydantic model, with every problem located.

All files of this project open with `schema: ep-plan/<kind>/<version>`. Values are validated with
pydantic; its error locations are mapped back to lines and columns, and all errors are told at once.
"""

from __future__ import annotations

import difflib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, ValidationError, model_serializer
from pydantic_core import ErrorDetails

from planner.errors import InputError, Place, Problem, in_file_order
from planner.files import read_text
from planner.inputs.strict_yaml import Document, Key, parse_yaml, read_yaml

_JSON_LIMIT_BYTES = 256 << 20
_SHOWN_LENGTH = 60
_RULE = "input should be "


class Frozen(BaseModel):
    """A record that refuses unknown keys and never changes; numbers must not come as text."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Sparse(Frozen):
    """A record that is written without its optional keys where they say nothing new."""

    optional_keys: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _without_defaults(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields, written = type(self).model_fields, write(self)
        return {
            key: value
            for key, value in written.items()
            if key not in self.optional_keys or getattr(self, key) != fields[key].default
        }


Record = TypeVar("Record", bound=BaseModel)


def load(path: Path, record: type[Record], kind: str) -> tuple[Record, Document]:
    """Read a YAML file of one of our kinds.

    Args:
        path: the file.
        record: the pydantic model that it must satisfy.
        kind: the middle part of the schema name, such as "topology".

    Raises:
        InputError: with all problems of the file, each with line and column.
        UsageError: the file cannot be opened.
    """
    document = read_yaml(path, keep_duplicates=True)
    return validate(document, record, kind), document


def validated(record: type[Record], values: Any) -> Record:
    """Validate plain data as if it came from JSON: scalars strictly, lists welcome as tuples."""
    return record.model_validate_json(json.dumps(values))


def validate(document: Document, record: type[Record], kind: str) -> Record:
    """Check the schema line, the keys and every value of a document already read."""
    check_kind(document, record, kind)
    problems = list(document.duplicates)
    if document.data.get("schema") is None:
        problems.append(_no_schema(document, kind))
    values = {key: value for key, value in document.data.items() if key != "schema"}
    try:
        made = validated(record, values)
    except ValidationError as error:
        problems += problems_of(error, document, record)
        raise InputError(in_file_order(problems)) from None
    if problems:
        raise InputError(problems)
    return made


def check_kind(document: Document, record: type[BaseModel], kind: str) -> None:
    """Refuse a document of another kind or version, about whose keys nothing useful could be said."""
    data, wanted = document.data, f"ep-plan/{kind}/1"
    if not isinstance(data, dict):
        message = f"a {kind} file is a mapping of keys to values"
        raise InputError(Problem(message, Place(document.file, 1, 1), f"begin with: schema: {wanted}"))
    schema = data.get("schema")
    if schema is None and data.keys().isdisjoint(record.model_fields):
        raise InputError(_no_schema(document, kind))
    if schema is None or schema == wanted:
        return
    where = document.place(("schema",))
    if isinstance(schema, str) and schema.startswith(f"ep-plan/{kind}/"):
        raise InputError(Problem(f"{schema}: this version of ep-plan reads {wanted}", where, "upgrade ep-plan"))
    raise InputError(Problem(f"{schema!r} is not a {kind} file", where, f"expected: schema: {wanted}"))


def _no_schema(document: Document, kind: str) -> Problem:
    hint = f"expected: schema: ep-plan/{kind}/1"
    return Problem("the schema line is missing", Place(document.file, 1, 1, "schema"), hint)


def problems_of(error: ValidationError, document: Document, record: type[BaseModel]) -> list[Problem]:
    """Pydantic's errors as located problems, in file order, each fault told once."""
    errors = error.errors(include_url=False)
    keys = [_known_key(details, document.data) for details in errors]
    inside = {key[:length] for key in keys for length in range(len(key))}
    found: dict[tuple[Place | None, str], Problem] = {}
    members: dict[Key, Problem] = {}
    for details, key in zip(errors, keys, strict=True):
        of_union = len(key) < len(details["loc"])
        if key in inside and (of_union or details["type"] == "too_short"):
            continue  # only the echo of a fault deeper inside: another member of the union, or a list without it
        problem = _problem(details, key, document, record)
        if of_union and key in members:  # neither the one nor the other: say both in one sentence
            first = found.pop((members[key].where, members[key].message))
            problem = replace(first, message=f"{first.message} or {problem.message.rpartition(_RULE)[2]}")
        if of_union:
            members[key] = problem
        found[problem.where, problem.message] = problem
    return in_file_order(found.values())


def _problem(details: ErrorDetails, key: Key, document: Document, record: type[BaseModel]) -> Problem:
    kind = details["type"]
    if kind == "missing":
        parent, name = key[:-1], key[-1] if key else ""
        return Problem(f"{name} is missing", document.place(parent), _hint_for_missing(record, key))
    if kind == "extra_forbidden":
        hint = _hint_for_unknown(record, key)
        return Problem("unknown key", document.place(key, of_key=True), hint)
    context = details.get("ctx", {})
    if kind == "quantity":
        return Problem(str(context["text"]), document.place(key), str(context["hint"]))
    text = details["msg"].removeprefix("Value error, ")
    value = details["input"]
    shown = json.dumps(value, default=str) if not isinstance(value, dict | list) else ""
    if len(shown) > _SHOWN_LENGTH:
        shown = f"{shown[:_SHOWN_LENGTH]}..."
    message, _, hint = text.partition("\n")
    prefix = f"{shown}: " if shown and kind not in ("value_error", "assertion_error") else ""
    return Problem(f"{prefix}{message[:1].lower()}{message[1:]}", document.place(key), hint)


def _known_key(details: ErrorDetails, data: Any) -> Key:
    """Drop the parts that pydantic adds for unions: they name types, not keys of the file."""
    key: list[str | int] = []
    here, location = data, details["loc"]
    for position, part in enumerate(location):
        absent = details["type"] == "missing" and position == len(location) - 1
        if isinstance(here, dict) and isinstance(part, str):
            if part in here or absent:
                key.append(part)
                here = here.get(part)
        elif isinstance(here, list) and isinstance(part, int):
            key.append(part)
            here = here[part] if part < len(here) else None
    return tuple(key)


def keys_at(record: type[BaseModel], key: Key) -> list[str]:
    """The names that a record allows beside the last part of `key`, as far as the types tell."""
    schema = record.model_json_schema(by_alias=True)
    definitions = schema.get("$defs", {})
    here: list[dict[str, Any]] = [schema]
    for part in key[:-1]:
        here = [step for node in here for step in _descend(node, part, definitions)]
    return sorted({name for node in here for name in node.get("properties", {})})


def _descend(node: dict[str, Any], part: str | int, definitions: dict[str, Any]) -> list[dict[str, Any]]:
    child = node.get("properties", {}).get(part) if isinstance(part, str) else node.get("items")
    if child is None and isinstance(node.get("additionalProperties"), dict):
        child = node["additionalProperties"]
    return _resolve(child, definitions) if child else []


def _resolve(node: dict[str, Any], definitions: dict[str, Any]) -> list[dict[str, Any]]:
    if "$ref" in node:
        return _resolve(definitions[node["$ref"].rsplit("/", 1)[-1]], definitions)
    options = node.get("anyOf") or node.get("oneOf") or node.get("allOf")
    if options:
        return [found for option in options for found in _resolve(option, definitions)]
    return [node]


def _hint_for_unknown(record: type[BaseModel], key: Key) -> str:
    known = keys_at(record, key)
    close = difflib.get_close_matches(str(key[-1]), known, n=1) if key else []
    if close:
        return f"did you mean {close[0]}?"
    return f"known keys: {', '.join(known)}" if known else ""


def _hint_for_missing(record: type[BaseModel], key: Key) -> str:
    schema = record.model_json_schema(by_alias=True)
    definitions = schema.get("$defs", {})
    here: list[dict[str, Any]] = [schema]
    for part in key:
        here = [step for node in here for step in _descend(node, part, definitions)]
    for node in here:
        if node.get("description"):
            return str(node["description"]).split("\n", 1)[0]
    return ""


def read_json(path: Path, *, infinity: bool = False) -> Any:
    """Read a JSON file of others or a plan; duplicates and numbers that are not finite refused.

    Args:
        path: the file.
        infinity: let Infinity pass, as Python writes it: configs of Mamba models hold it as a limit.
    """
    text = read_text(path, limit_bytes=_JSON_LIMIT_BYTES)
    return parse_json(text, str(path), infinity=infinity)


def parse_json(text: str, file: str, *, infinity: bool = False) -> Any:
    """Parse JSON strictly; raises `InputError` with line and column."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(items)
        if len(made) < len(items):
            names = [name for name, _ in items]
            twice = next(name for name in names if names.count(name) > 1)
            raise InputError(_duplicates(text, file) or Problem(f"key {twice!r} stands twice", Place(file)))
        return made

    def constant(name: str) -> Any:
        if infinity and name != "NaN":
            return float(name)
        raise InputError(Problem(f"{name} is not a JSON number", Place(file)))

    try:
        data = json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
        if "\\ud" in text or "\\uD" in text:  # half of a surrogate pair could never be written again
            json.dumps(data, ensure_ascii=False).encode()
        return data
    except UnicodeEncodeError:
        raise InputError(Problem("half of a surrogate pair (\\ud800..\\udfff) is not text", Place(file))) from None
    except json.JSONDecodeError as error:
        where = Place(file, error.lineno, error.colno)
        raise InputError(Problem(f"not valid JSON: {error.msg}", where)) from None
    except RecursionError:
        raise InputError(Problem("nested too deeply for a JSON file", Place(file))) from None
    except ValueError as error:  # integers of thousands of digits
        raise InputError(Problem(f"not valid JSON: {error}", Place(file))) from None


def _duplicates(text: str, file: str) -> tuple[Problem, ...]:
    """All keys of a JSON text that stand twice, with their places, if the YAML reader can tell them."""
    try:
        return parse_yaml(text, file, keep_duplicates=True).duplicates
    except InputError:  # larger or deeper than a YAML file may be
        return ()


def document_of_json(path: Path, data: Any) -> Document:
    """A document for data read by `read_json`: positions are found only when they are needed.

    The YAML reader also reads JSON and knows positions, but is slow on large files; so it runs
    only if something in the file is wrong.
    """
    try:
        located = parse_yaml(read_text(path, limit_bytes=_JSON_LIMIT_BYTES), str(path))
    except InputError:
        return Document(str(path), data, {}, {})
    return located
