"""docs/schemas/: a JSON Schema for every kind of file, from the pydantic models, for editors.

Editors complete keys, show what they mean and mark what is wrong while a file is written. What a schema cannot
say (which GPUs are known, what must fit together) is left to `ep-plan check`.
"""

from __future__ import annotations

import json
from typing import Any, Final
from urllib.parse import quote

from pages.files import FILES, File
from planner.inputs.units import UNITS

_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"


def pages() -> dict[str, str]:
    """The schemas by path in docs/."""
    return {f"schemas/{_name(file)}.json": _text(file) for file in FILES}


def _name(file: File) -> str:
    """Its kind, unless another file is of this kind before it."""
    first = next(other for other in FILES if other.kind == file.kind)
    return file.kind if first is file else f"{file.kind}-by-hand"


def _text(file: File) -> str:
    found = _renamed(file.record.model_json_schema())
    if (link := found.get("$defs", {}).get("Link")) is not None:  # what a fabric gives need not be written
        needed = ["bandwidth", "latency"]
        link["required"] = [key for key in link["required"] if key not in needed]
        link["anyOf"] = [{"required": ["fabric"]}, {"required": needed}]
    line = {"const": f"ep-plan/{file.kind}/1", "description": "Kind and version of the file."}
    whole = {
        "$schema": _DIALECT,
        "$id": f"{file.kind}.json",
        "title": file.title,
        **_without_titles({key: value for key, value in found.items() if key != "title"}),
    }
    whole["properties"] = {"schema": line, **whole["properties"]}
    whole["required"] = ["schema", *whole.get("required", [])]
    return json.dumps(whole, ensure_ascii=False, indent=1) + "\n"


def _renamed(found: dict[str, Any]) -> dict[str, Any]:
    """Values with a source by what they measure, not by how Python spells their types."""
    names: dict[str, str] = {}
    for name, record in found.get("$defs", {}).items():
        if "Sourced_" in name:
            value = record["anyOf"][0]
            told, kind = value.get("patternErrorMessage"), str(value.get("type", "record"))
            known = (one for one, (_, expected) in UNITS.items() if told == f"expected {expected}")
            plain = f"sourced {next(known, kind)}"
            count = sum(other.startswith(plain) for other in names.values())
            names[name] = f"{plain} {count + 1}" if count else plain
    text = json.dumps(found)
    for name in sorted(names, key=len, reverse=True):
        text = text.replace(f'"{name}"', f'"{names[name]}"').replace(f'/{name}"', f'/{quote(names[name])}"')
    renamed: dict[str, Any] = json.loads(text)
    return renamed


def _without_titles(value: Any, *, names: bool = False) -> Any:
    """The same without the titles that pydantic makes of names; `names` says that keys are those of the user."""
    if isinstance(value, dict):
        kept = {key: inner for key, inner in value.items() if names or key != "title" or not isinstance(inner, str)}
        return {key: _without_titles(inner, names=key in ("properties", "$defs")) for key, inner in kept.items()}
    return [_without_titles(inner) for inner in value] if isinstance(value, list) else value
