"""Quantities: what is read, what is refused and with which repair, and what people are shown."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from planner.inputs import units
from planner.inputs.units import Duration, Percentage, Rate, Size, SizeOrZero, exact_text, parse_quantity


@pytest.mark.parametrize(
    ("text", "dimension", "expected"),
    [
        ("80 GB", "size", 80_000_000_000),
        ("80 GiB", "size", 85_899_345_920),  # 80 * 2**30
        ("1 MiB", "size", 1_048_576),
        ("1 kB", "size", 1_000),
        ("0.5 KiB", "size", 512),
        ("7B", "size", 7),
        ("1_000 B", "size", 1_000),
        ("450 GB/s", "rate", 450_000_000_000),
        ("400 Gb/s", "rate", 50_000_000_000),  # bits: 400e9 / 8
        ("3.35 TB/s", "rate", 3_350_000_000_000),
        ("1 GiB/s", "rate", 1_073_741_824),
        ("989 TFLOP/s", "compute", 989_000_000_000_000),
        ("1.979 PFLOP/s", "compute", 1_979_000_000_000_000),
        ("2 min", "time", 120),
        ("1 h", "time", 3600),
        ("1e3 s", "time", 1000),
        ("  60   s ", "time", 60),
    ],
)
def test_whole_quantities_are_exact_integers(text: str, dimension: str, expected: int) -> None:
    number = parse_quantity(text, dimension)
    assert number == expected
    assert isinstance(number, int)


@pytest.mark.parametrize(
    ("text", "dimension", "expected"),
    [
        ("3 us", "time", 3e-6),
        ("3 µs", "time", 3e-6),
        ("250 ns", "time", 2.5e-7),
        ("1.5 ms", "time", 1.5e-3),
        ("1%", "fraction", 0.01),
        ("12.5 %", "fraction", 0.125),
    ],
)
def test_fractions_of_the_inner_unit(text: str, dimension: str, expected: float) -> None:
    assert parse_quantity(text, dimension) == expected


def test_decimal_and_binary_prefixes_are_never_mixed() -> None:
    assert parse_quantity("1 GiB", "size") - parse_quantity("1 GB", "size") == 73_741_824


@pytest.mark.parametrize(
    ("value", "dimension", "message", "repair"),
    [
        (450, "rate", "450 has no unit", '"450 GB/s"'),
        ("450", "rate", "450 has no unit", '"450 GB/s"'),
        (0.5, "fraction", "0.5 has no unit", '"1%"'),
        (True, "size", "True is not a quantity", '"80 GiB"'),
        (None, "size", "None is not a quantity", '"80 GiB"'),
        ([80, "GiB"], "size", "is not a quantity", '"80 GiB"'),
        ("", "size", "'' is not a number with a unit", '"80 GiB"'),
        ("fast", "rate", "'fast' is not a number with a unit", '"450 GB/s"'),
        ("1,5 GB/s", "rate", "is not a number with a unit", '"450 GB/s"'),
        ("80 GiB of HBM", "size", "is not a number with a unit", '"80 GiB"'),
        ("nan GB", "size", "is not a number with a unit", '"80 GiB"'),
        ("inf s", "time", "is not a number with a unit", '"60 s"'),
        ("80 gib", "size", "unknown unit gib; did you mean GiB?", '"80 GiB"'),
        ("450 gb/s", "rate", "unknown unit gb/s; did you mean GB/s or Gb/s?", '"450 GB/s"'),
        ("5 furlongs", "time", "unknown unit furlongs", '"60 s"'),
        ("80 GiB", "rate", "GiB is a unit of size, a rate is needed", '"450 GB/s"'),
        ("450 GB/s", "size", "GB/s is a unit of rate, a size is needed", '"80 GiB"'),
        ("3 us", "rate", "us is a unit of time, a rate is needed", '"450 GB/s"'),
        ("1e40 GB", "size", "is beyond anything physical", '"80 GiB"'),
        ("1e9999 s", "time", "is not a number with a unit", '"60 s"'),
    ],
)
def test_refusals_say_the_value_and_the_repair(value: object, dimension: str, message: str, repair: str) -> None:
    with pytest.raises(PydanticCustomError) as caught:
        parse_quantity(value, dimension)
    context = caught.value.context or {}
    assert message in context["text"]
    assert context["hint"].startswith("expected ")
    assert repair in context["hint"]


@pytest.mark.parametrize(
    ("kind", "text", "rule"),
    [
        (Size, "0 GiB", "greater than 0"),
        (Size, "-1 GiB", "greater than 0"),
        (SizeOrZero, "-1 B", "0 or more"),
        (Rate, "0 GB/s", "greater than 0"),
        (Duration, "-3 us", "0 or more"),
        (Percentage, "-1%", "0 or more"),
    ],
)
def test_signs(kind: Any, text: str, rule: str) -> None:
    with pytest.raises(ValidationError, match=rule):
        TypeAdapter(kind).validate_python(text)


def test_zero_where_it_makes_sense() -> None:
    assert TypeAdapter(SizeOrZero).validate_python("0 B") == 0
    assert TypeAdapter(Duration).validate_python("0 us") == 0


def test_a_size_is_rounded_to_whole_bytes() -> None:
    # 79.65 * 2**30 = 85 523 536 281.6
    assert parse_quantity("79.65 GiB", "size") == 85_523_536_282
    with pytest.raises(ValidationError, match="greater than 0"):
        TypeAdapter(Size).validate_python("0.4 B")


@given(st.floats(min_value=1e-12, max_value=1e18), st.sampled_from(["rate", "time", "compute"]))
def test_written_quantities_read_back_as_the_same_number(value: float, dimension: str) -> None:
    assert parse_quantity(exact_text(value, dimension), dimension) == value


@given(st.integers(min_value=0, max_value=2**60))
def test_written_sizes_read_back_as_the_same_bytes(value: int) -> None:
    assert parse_quantity(exact_text(value, "size"), "size") == value


@given(st.floats(min_value=0, max_value=1))
def test_written_percentages_read_back_as_the_same_number(value: float) -> None:
    assert parse_quantity(exact_text(value, "fraction"), "fraction") == value


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0%"), (0.7, "70%"), (1.0, "100%"), (0.005, "0.5%"), (0.625, "62.5%")]
)
def test_percentages_are_written_as_people_do(value: float, text: str) -> None:
    assert exact_text(value, "fraction") == text


def test_figures_for_people() -> None:
    assert units.format_bytes(2554331136) == "2.38 GiB"  # 2554331136 / 2**30 = 2.3789
    assert units.format_bytes(0) == "0 B"
    assert units.format_seconds(0.00123) == "1.23 ms"
    assert units.format_seconds(75.0) == "75.0 s"
    assert units.format_rate(4.5e11) == "450 GB/s"
    assert units.format_compute(9.89e14) == "989 TFLOP/s"
    assert units.format_percent(0.0123) == "1.2 %"
    assert units.format_count(9_999) == "9,999"
    assert units.format_count(310_123) == "310 k"
    assert units.format_count(1_000_000) == "1 M"
    assert units.format_count(46_702_792_704) == "46.7 G"


def test_numbers_of_things() -> None:
    assert units.format_number_of(0, "token") == "0 tokens"
    assert units.format_number_of(1, "token") == "1 token"
    assert units.format_number_of(1_024, "token") == "1,024 tokens"
    assert units.format_number_of(1, "copy", "copies") == "1 copy"
    assert units.format_number_of(8, "copy", "copies") == "8 copies"
