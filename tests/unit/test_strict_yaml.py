"""The strict YAML reader: YAML 1.2 values, places of faults, and hostile files."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.errors import InputError, PlannerError, Problem, UsageError
from planner.inputs.strict_yaml import LIMIT_BYTES, parse_yaml, read_yaml


def refused(text: str) -> tuple[Problem, ...]:
    """The problems of a text."""
    with pytest.raises(InputError) as caught:
        parse_yaml(text, "file.yaml")
    return caught.value.problems


def where(problem: Problem) -> tuple[int | None, int | None]:
    """Line and column."""
    assert problem.where is not None
    assert problem.where.file == "file.yaml"
    return problem.where.line, problem.where.column


@pytest.mark.parametrize(
    ("scalar", "value"),
    [
        ("no", "no"),  # the "Norway problem" of YAML 1.1
        ("on", "on"),
        ("yes", "yes"),
        ("true", True),
        ("FALSE", False),
        ("12", 12),
        ("-7", -7),
        ("+7", 7),
        ("012", 12),  # octal in YAML 1.1
        ("1e3", 1000.0),  # text in YAML 1.1
        (".5", 0.5),
        ("12:30", "12:30"),  # 750 in YAML 1.1
        ("2026-01-01", "2026-01-01"),  # a date in YAML 1.1
        ("1_000", "1_000"),  # 1000 in YAML 1.1
        ("0o10", "0o10"),  # never taken for 10
        ("0x10", "0x10"),
        ("'12'", "12"),
        ('"true"', "true"),
        ("", None),
        ("~", None),
        ("null", None),
        ("'null'", "null"),
        ("80 GiB", "80 GiB"),
    ],
)
def test_plain_scalars_follow_yaml_1_2(scalar: str, value: object) -> None:
    found = parse_yaml(f"key: {scalar}\n", "file.yaml").data["key"]
    assert found == value
    assert type(found) is type(value)


def test_keys_stay_text() -> None:
    assert parse_yaml("1: a\nno: b\nnull: c\n", "file.yaml").data == {"1": "a", "no": "b", "null": "c"}


def test_every_value_knows_its_line_and_column() -> None:
    document = parse_yaml("a: 1\nb:\n  - c: x\n    d: [2, 3]\n", "file.yaml")
    assert document.data == {"a": 1, "b": [{"c": "x", "d": [2, 3]}]}
    assert document.positions["a",] == (1, 4)
    assert document.positions["b", 0, "c"] == (3, 8)
    assert document.positions["b", 0, "d", 1] == (4, 12)
    assert document.key_positions["b", 0, "d"] == (4, 5)
    assert str(document.place(("b", 0, "d", 1))) == "file.yaml:4:12: b[0].d[1]"


def test_an_absent_key_is_placed_at_its_nearest_parent() -> None:
    document = parse_yaml("a: 1\nb: {c: 2}\n", "file.yaml")
    assert str(document.place(("b", "missing", 0))) == "file.yaml:2:4: b.missing[0]"


def test_all_duplicate_keys_are_told_at_once() -> None:
    first, second = refused("a: 1\na: 2\nb: {c: 1, c: 2}\n")
    assert (where(first), str(first.where), first.message) == (
        (2, 1),
        "file.yaml:2:1: a",
        "duplicate key (first on line 1)",
    )
    assert (where(second), second.message) == ((3, 11), "duplicate key (first on line 3)")


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("a: &x 1\nb: *x\n", (1, 4), "anchor &x"),
        ("b: *x\n", (1, 4), "alias *x"),
        ("a: !!python/object:os.system 1\n", (1, 4), "tag tag:yaml.org,2002:python/object:os.system"),
        ("a: !!str 5\n", (1, 4), "tag"),
        ("a: !secret {b: 1}\n", (1, 4), "tag !secret"),
        ("a: 1\n---\nb: 2\n", (2, 1), "a second document"),
        ("? [1, 2]\n: 3\n", (1, 3), "a key must be plain text"),
        ("a:\n\t- b\n", (2, 1), "not valid YAML"),
        ("a: [1, 2\n", (2, 1), "not valid YAML"),
        ("a: b: c\n", (1, 5), "not valid YAML"),
        ("a: 1\nb: \x01\n", (2, 1), "character U+0001"),
        ("a: " + "9" * 41, (1, 4), "a number of more than 40 digits"),
        ("a: " + "[" * 60, (1, 43), "nested deeper than 40 levels"),
    ],
)
def test_refusals_have_a_place(text: str, place: tuple[int, int], words: str) -> None:
    (problem,) = refused(text)
    assert where(problem) == place
    assert words in problem.message


def test_more_values_than_any_file_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planner.inputs.strict_yaml.LIMIT_NODES", 100)
    assert len(parse_yaml("[" + "1," * 99 + "]", "file.yaml").data) == 99  # and the list itself
    (problem,) = refused("[" + "1," * 100 + "]")
    assert (where(problem), problem.message) == ((1, 200), "more than 100 values")


def test_alias_bombs_stop_at_the_first_anchor() -> None:
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n"
    for inner, outer in zip("abcdefgh", "bcdefghi", strict=True):
        bomb += f"{outer}: &{outer} [{', '.join([f'*{inner}'] * 9)}]\n"
    (problem,) = refused(bomb)
    assert where(problem) == (1, 4)
    assert problem.hint == "anchors and aliases are not read: write values out"


def test_deep_nesting_is_no_crash() -> None:
    assert "nested deeper" in refused("[" * 100_000)[0].message
    assert "nested deeper" in refused("".join(f"{' ' * depth}a:\n" for depth in range(300)))[0].message


@pytest.mark.parametrize("text", ["", "\n", "# only a comment\n", "---\n"])
def test_an_empty_file_holds_nothing(text: str) -> None:
    assert parse_yaml(text, "file.yaml").data is None


def test_json_is_yaml() -> None:
    assert parse_yaml('{"a": [1, 2.5, "x", null, true]}', "file.json").data == {"a": [1, 2.5, "x", None, True]}


def test_files_that_are_too_large_or_not_text(tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_bytes(b"# " + b"x" * LIMIT_BYTES)
    with pytest.raises(InputError, match="larger than 8 MiB"):
        read_yaml(path)
    path.write_bytes("größe: 1\n".encode("latin-1"))
    with pytest.raises(InputError, match="not UTF-8") as caught:
        read_yaml(path)
    assert caught.value.problems[0].message == "not UTF-8 text (byte 2 is 0xf6)"
    assert caught.value.problems[0].hint == "save the file as UTF-8"


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert read_yaml(path).data == {"a": 1}


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read_yaml(tmp_path / "absent.yaml")
    with pytest.raises(UsageError, match="is a directory"):
        read_yaml(tmp_path)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab:-[]{},&*!|>'\"%@?# \n\t\\0e.", max_size=60))
def test_any_text_is_data_or_a_located_error(text: str) -> None:
    found: list[Problem] = []
    try:
        parse_yaml(text, "file.yaml")
    except PlannerError as error:
        found += error.problems
    assert all(problem.where is not None and problem.where.line for problem in found)
