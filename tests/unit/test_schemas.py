"""The published JSON Schemas: they take every shipped file and every plan, and see what an editor should mark."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from planner.inputs.strict_yaml import read_yaml
from tests.building import EXAMPLES
from tests.unit.test_check import data_of

jsonschema = pytest.importorskip("jsonschema")

ROOT = EXAMPLES.parent
SCHEMAS = {path.stem: json.loads(path.read_text()) for path in (ROOT / "docs" / "schemas").glob("*.json")}
FILES = [*sorted(EXAMPLES.rglob("*.yaml")), *sorted((ROOT / "profiles").rglob("*.yaml"))]


def faults(data: Any) -> list[str]:
    """What the schema of its kind finds in a document."""
    kind = data["schema"].split("/")[1]
    checker = jsonschema.Draft202012Validator(SCHEMAS[kind])
    return [f"{error.json_path}: {error.message}" for error in checker.iter_errors(data)]


def test_every_schema_is_one() -> None:
    assert {"deployment", "topology", "plan", "model", "gpu", "node", "kernel", "engine", "validation"} <= set(SCHEMAS)
    for schema in SCHEMAS.values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_every_shipped_file_is_taken() -> None:
    assert len(FILES) > 130
    known = [(path, read_yaml(path).data) for path in FILES]
    found = {str(path.relative_to(ROOT)): faults(data) for path, data in known}
    assert {path: wrong for path, wrong in found.items() if wrong} == {}


@pytest.mark.parametrize("seed", [1, 2])
def test_plans_are_taken(seed: int) -> None:
    assert faults(data_of(seed)) == []
    for path in EXAMPLES.rglob("plan*.json"):
        assert faults(json.loads(path.read_text())) == [], path


TOPOLOGY = read_yaml(EXAMPLES / "deepseek-v3-32gpu" / "topology.yaml").data
DEPLOYMENT = read_yaml(EXAMPLES / "tiny-moe" / "deployment.yaml").data


@pytest.mark.parametrize(
    ("document", "path", "value"),
    [
        (TOPOLOGY, ("links", 0, "bandwidth"), 450),  # no unit
        (TOPOLOGY, ("links", 0, "bandwidth"), "450 GHz"),
        (TOPOLOGY, ("links", 0, "bandwidth"), {"value": "450 GB/s", "basis": "hearsay"}),
        (TOPOLOGY, ("links", 0, "bandwith"), "450 GB/s"),  # misspelled
        (TOPOLOGY, ("nodes",), "four"),
        (TOPOLOGY, ("schema",), "ep-plan/deployment/1"),
        (DEPLOYMENT, ("workload", "phase"), "training"),
        (DEPLOYMENT, ("solve",), {"gap": 0.01}),
        (DEPLOYMENT, ("solve",), {"redundant_experts": "many"}),
    ],
)
def test_what_is_wrong_is_seen(document: dict[str, Any], path: tuple[str | int, ...], value: object) -> None:
    assert faults(document) == []
    changed: Any = copy.deepcopy(document)
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert faults(changed) != []


def test_a_fabric_gives_what_a_link_may_leave_out() -> None:
    named = {**TOPOLOGY, "links": [TOPOLOGY["links"][0], {"level": "cluster", "fabric": "ib-ndr"}]}
    assert faults(named) == []
    assert faults({**TOPOLOGY, "links": [TOPOLOGY["links"][0], {"level": "cluster"}]}) != []


def test_keys_say_what_they_mean() -> None:
    for name, key in (("topology", "nodes"), ("deployment", "traces"), ("plan", "stages")):
        assert SCHEMAS[name]["properties"][key]["description"]


def test_the_line_for_editors_leads_to_the_schema() -> None:
    """`# yaml-language-server: $schema=...` in the examples that have it."""
    lines = {}
    for path in sorted(EXAMPLES.rglob("*.yaml")):
        first = path.read_text().splitlines()[0]
        if first.startswith("# yaml-language-server: $schema="):
            lines[path] = (path.parent / first.partition("=")[2]).resolve()
    assert lines
    for path, schema in lines.items():
        kind = read_yaml(path).data["schema"].split("/")[1]
        assert schema == ROOT / "docs" / "schemas" / f"{kind}.json"
