"""Files against their rules: all problems at once, each with place, value, rule and repair."""

from __future__ import annotations

from pathlib import Path

import pytest

from planner import __version__
from planner.errors import InputError
from planner.inputs.documents import parse_json, read_json
from planner.inputs.topology import load_topology
from planner.plan.plan_file import read_plan

GOOD = """\
schema: ep-plan/topology/1
gpu: {memory: 80 GiB, hbm_bandwidth: 3.35 TB/s, compute: {bf16: 989 TFLOP/s}}
nodes: 2
gpus_per_node: 8
links:
  - {level: node, bandwidth: 450 GB/s, latency: 3 us}
  - {level: cluster, bandwidth: 50 GB/s, latency: 10 us}
"""


def problems(tmp_path: Path, text: str) -> list[str]:
    """What reading a topology with this text reports, the folder left out."""
    path = tmp_path / "topology.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        load_topology(path)
    return [str(problem).replace(f"{tmp_path}/", "") for problem in caught.value.problems]


def test_the_good_file_is_good(tmp_path: Path) -> None:
    path = tmp_path / "topology.yaml"
    path.write_text(GOOD)
    assert load_topology(path).num_gpus == 16


def test_every_fault_of_a_file_is_told_in_file_order(tmp_path: Path) -> None:
    text = """\
schema: ep-plan/topology/1
gpu: {memory: 80, hbm_bandwith: 3.35 TB/s, compute: {bf16: 989 TFLOP}}
nodes: 0
gpus_per_node: eight
links:
  - {level: node, bandwidth: 450, latency: 3 us}
  - {level: cluster, bandwidth: 50 GB/s, latency: -1 us}
rack: yes
"""
    rate, compute = 'expected a rate such as "450 GB/s" or "400 Gb/s"', 'expected a rate such as "989 TFLOP/s"'
    known = "known keys: calibration, gpu, gpus_per_node, groups, links, nodes, out_of_service, overrides"
    missing, *others = problems(tmp_path, text)
    assert missing.startswith("error: topology.yaml:2:6: gpu: hbm_bandwidth is missing")
    assert others == [
        'error: topology.yaml:2:15: gpu.memory: 80 has no unit\n  expected a size such as "80 GiB" or "141 GB"',
        "error: topology.yaml:2:19: gpu.hbm_bandwith: unknown key\n  did you mean hbm_bandwidth?",
        f"error: topology.yaml:2:60: gpu.compute.bf16: '989 TFLOP': unknown unit TFLOP\n  {compute}",
        "error: topology.yaml:3:8: nodes: 0: input should be greater than or equal to 1",
        'error: topology.yaml:4:16: gpus_per_node: "eight": input should be a valid integer',
        f"error: topology.yaml:6:30: links[0].bandwidth: 450 has no unit\n  {rate}",
        "error: topology.yaml:7:51: links[1].latency: '-1 us' must be 0 or more",
        f"error: topology.yaml:8:1: rack: unknown key\n  {known}",
    ]


def test_the_count_of_files_and_problems_closes_the_message(tmp_path: Path) -> None:
    path = tmp_path / "topology.yaml"
    path.write_text(GOOD.replace("nodes: 2", "nodes: two").replace("450 GB/s", "450"))
    with pytest.raises(InputError) as caught:
        load_topology(path)
    assert str(caught.value).endswith("\n1 file, 2 problems")
    assert caught.value.exit_code == 3


def test_a_fault_inside_one_form_of_a_value_does_not_blame_the_other_form(tmp_path: Path) -> None:
    # `gpu` is a name or a description: a fault in the description says nothing about names.
    (only,) = problems(tmp_path, GOOD.replace("{memory: 80 GiB,", "{memory: {value: 80 GiB, bassis: given},"))
    assert only == "error: topology.yaml:2:31: gpu.memory.bassis: unknown key\n  did you mean basis?"


def test_a_value_of_neither_form_is_one_problem(tmp_path: Path) -> None:
    text = GOOD.replace("{memory: 80 GiB, hbm_bandwidth: 3.35 TB/s, compute: {bf16: 989 TFLOP/s}}", "5")
    assert problems(tmp_path, text) == ["error: topology.yaml:2:6: gpu: 5: input should be a valid string or an object"]


@pytest.mark.parametrize(
    ("number", "shown"), [("2.0", "2.0"), ("1e1", "10.0"), ("true", "true"), ("1e999", "Infinity")]
)
def test_counts_are_whole_numbers_and_nothing_else(tmp_path: Path, number: str, shown: str) -> None:
    assert problems(tmp_path, GOOD.replace("nodes: 2", f"nodes: {number}")) == [
        f"error: topology.yaml:3:8: nodes: {shown}: input should be a valid integer"
    ]


@pytest.mark.parametrize(
    ("first_line", "message"),
    [
        ("", "topology.yaml:1:1: schema: the schema line is missing\n  expected: schema: ep-plan/topology/1"),
        ("schema: ep-plan/deployment/1", "topology.yaml:1:9: schema: 'ep-plan/deployment/1' is not a topology file"),
        ("schema: ep-plan/topology/2", "topology.yaml:1:9: schema: ep-plan/topology/2: this version of ep-plan reads"),
        ("schema: 1", "topology.yaml:1:9: schema: 1 is not a topology file"),
    ],
)
def test_the_schema_line(tmp_path: Path, first_line: str, message: str) -> None:
    (only,) = problems(tmp_path, GOOD.replace("schema: ep-plan/topology/1", first_line))
    assert message in only


@pytest.mark.parametrize("text", ["", "- 1\n", "just text\n"])
def test_a_file_that_is_no_mapping(tmp_path: Path, text: str) -> None:
    (only,) = problems(tmp_path, text)
    assert only.startswith("error: topology.yaml:1:1: a topology file is a mapping of keys to values\n")
    assert only.endswith("  begin with: schema: ep-plan/topology/1")


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("ep-plan/deployment/1", "'ep-plan/deployment/1' is not a topology file"),
        ("ep-plan/topology/2", "this version of ep-plan reads ep-plan/topology/1"),
        ("7", "7 is not a topology file"),
    ],
)
def test_a_file_of_another_kind_is_told_by_its_schema_alone(tmp_path: Path, schema: str, message: str) -> None:
    (only,) = problems(tmp_path, f"schema: {schema}\nmodel: mixtral-8x7b\nnodes: many\n")
    assert message in only


def test_a_file_of_others_is_told_by_its_missing_schema_alone(tmp_path: Path) -> None:
    (only,) = problems(tmp_path, '{"model_type": "mixtral", "hidden_size": 4096}')
    assert "the schema line is missing" in only


@pytest.mark.parametrize("schema", ["", "schema:\n"])
def test_a_forgotten_schema_hides_nothing_else(tmp_path: Path, schema: str) -> None:
    found = problems(tmp_path, schema + GOOD.split("\n", 1)[1].replace("nodes: 2", "nodes: two"))
    assert any("the schema line is missing" in text for text in found)
    assert any("nodes" in text for text in found)
    assert len(found) == 2


def test_duplicate_keys_are_told_with_all_else(tmp_path: Path) -> None:
    found = problems(tmp_path, GOOD.replace("nodes: 2", "nodes: 2\nnodes: two"))
    assert [text.split(": ")[-1].split(" (")[0] for text in found if "duplicate" in text] == ["duplicate key"]
    assert any("two" in text for text in found)


def test_long_values_are_shortened(tmp_path: Path) -> None:
    (only,) = problems(tmp_path, GOOD.replace("nodes: 2", f"nodes: {'x' * 5000}"))
    assert len(only) < 200


# --- JSON -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "b": {"c": 1,\n"c": 2}}', "file.json:2:1: b.c: duplicate key (first on line 1)"),
        ('{"a": ' + "[" * 50 + "]" * 50 + ', "c": 1, "c": 2}', "file.json: key 'c' stands twice"),
        ('{"a": NaN}', "file.json: NaN is not a JSON number"),
        ('{"a": -Infinity}', "file.json: -Infinity is not a JSON number"),
        ('{\n"a": [1,}', "file.json:2:9: not valid JSON: Expecting value"),
        ("", "file.json:1:1: not valid JSON"),
        ("[" * 100_000, "file.json: nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "file.json: not valid JSON"),
        ('{"a": "\\ud800"}', "file.json: half of a surrogate pair"),
    ],
)
def test_json_is_read_strictly(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_json(text, "file.json")
    assert f"error: {message}" in str(caught.value)


def test_json_keeps_whole_characters() -> None:
    assert parse_json('["\\ud83d\\ude00", "\\u00e9"]', "file.json") == ["\U0001f600", "é"]


def test_json_that_is_not_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(InputError, match="not UTF-8 text"):
        read_json(path)


def test_faults_of_a_plan_have_line_and_column(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text('{"schema": "ep-plan/plan/1",\n "version": 1,\n "split": {"tp": 0, "etpp": 1}, "inputs": {}}\n')
    with pytest.raises(InputError) as caught:
        read_plan(path)
    found = [str(problem).replace(f"{tmp_path}/", "") for problem in caught.value.problems]
    assert "error: plan.json:2:13: version: 1: input should be a valid string" in found
    assert "error: plan.json:3:18: split.tp: 0: input should be greater than or equal to 1" in found
    assert "error: plan.json:3:21: split.etpp: unknown key\n  did you mean etp?" in found
    assert "error: plan.json:3:11: split: dp is missing" in [text.split("\n")[0] for text in found]


def test_an_invalid_plan_of_another_version_is_told_so(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    for version, expected in (("0.0.1", True), (__version__, False)):
        path.write_text(f'{{"schema": "ep-plan/plan/1", "version": "{version}", "inputs": {{}}}}')
        with pytest.raises(InputError) as caught:
            read_plan(path)
        assert ("written by ep-plan 0.0.1" in str(caught.value)) is expected


def test_what_is_no_json_is_told_what_a_plan_is(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text("schema: ep-plan/deployment/1\n")
    with pytest.raises(InputError, match="not valid JSON") as caught:
        read_plan(path)
    assert "expected a file written by ep-plan solve" in str(caught.value)


@pytest.mark.parametrize("text", ["[]", "{}", '{"schema": "ep-plan/plan/2"}', '"ep-plan/plan/1"'])
def test_a_file_that_is_no_plan(tmp_path: Path, text: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(InputError, match="not a plan"):
        read_plan(path)
