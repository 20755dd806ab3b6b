"""The plan file: a plan as JSON, written and read.

The same inputs, options and version give the same bytes: no time, no date, no host.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from planner import __version__
from planner.errors import InputError, Place, Problem
from planner.inputs import documents
from planner.plan.plan import Plan

SCHEMA: Final = "ep-plan/plan/1"
_DERIVED: Final = ("inputs", "predicted", "solver")
"""What no plan made by hand holds."""


def plan_text(plan: Plan) -> str:
    """The plan as JSON, one row per layer, ending in a newline."""
    data = {"schema": SCHEMA, **plan.model_dump(mode="json")}
    return _pretty(data, 0) + "\n"


def _pretty(value: Any, depth: int) -> str:
    """JSON with one list of numbers (or one small record) per line."""
    compact = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, dict | list) or not value or _is_leaf(value, compact):
        return compact
    pad, end = "  " * (depth + 1), "  " * depth
    if isinstance(value, list):
        inside = (f"{pad}{_pretty(item, depth + 1)}" for item in value)
        return "[\n" + ",\n".join(inside) + f"\n{end}]"
    pairs = (f"{pad}{json.dumps(key, ensure_ascii=False)}: {_pretty(item, depth + 1)}" for key, item in value.items())
    return "{\n" + ",\n".join(pairs) + f"\n{end}}}"


def _is_leaf(value: dict[str, Any] | list[Any], compact: str) -> bool:
    if isinstance(value, list):
        return not any(isinstance(item, dict | list) for item in value)
    return len(compact) <= 160


def plan_data(path: Path) -> dict[str, Any]:
    """The data of a plan.json, not yet validated; raises `InputError` if it is no plan."""
    hint = f"expected a file written by ep-plan solve (schema: {SCHEMA})"
    try:
        data = documents.read_json(path)
    except InputError as error:
        raise InputError(replace(problem, hint=problem.hint or hint) for problem in error.problems) from None
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        found = data.get("schema") if isinstance(data, dict) else None
        raise InputError(Problem(f"not a plan: schema is {found!r}", Place(str(path)), hint))
    return data


def is_by_hand(data: dict[str, Any]) -> bool:
    """Whether a plan only decides: it holds neither inputs nor figures."""
    return data.keys().isdisjoint(_DERIVED)


def read_plan(path: Path) -> Plan:
    """Read a plan.json; raises `InputError` with all problems and their places."""
    data = plan_data(path)
    if is_by_hand(data):
        hint = "only ep-plan check reads such plans (docs/check.md); ep-plan solve writes what this command needs"
        raise InputError(Problem("a plan made by hand: it holds no inputs and no figures", Place(str(path)), hint))
    values = {key: value for key, value in data.items() if key != "schema"}
    try:
        return documents.validated(Plan, values)
    except ValidationError as error:
        document = documents.document_of_json(path, data)
        problems = documents.problems_of(error, document, Plan)
        if (version := data.get("version")) != __version__:
            told = f"written by ep-plan {version}, and this is {__version__}"
            problems.append(Problem(told, document.place(("version",)), "solve again, or use that version"))
        raise InputError(problems) from None
