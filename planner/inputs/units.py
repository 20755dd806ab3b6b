"""Quantities with units: read at the border, plain numbers inside, written back at the exit.

Inside the program a size is bytes, a rate is bytes per second or FLOP per second, a duration is
seconds and a fraction lies in 0..1. GB is 1e9 bytes and GiB is 2**30 bytes, never mixed; "Gb/s" is
bits. Numbers are read as exact decimals, so that "80 GiB" is an integer number of bytes.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal
from fractions import Fraction
from typing import Annotated, Final

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema
from pydantic_core import PydanticCustomError

_DECIMAL: Final = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}
_BINARY: Final = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_BYTES: Final[dict[str, Fraction]] = {
    **{f"{prefix}B": Fraction(factor) for prefix, factor in (_DECIMAL | _BINARY).items()},
    **{f"{prefix}b": Fraction(factor, 8) for prefix, factor in _DECIMAL.items() if prefix},
}

# dimension -> (unit -> factor to the inner unit, what to write instead)
UNITS: Final[dict[str, tuple[dict[str, Fraction], str]]] = {
    "size": (_BYTES, 'a size such as "80 GiB" or "141 GB"'),
    "rate": (
        {f"{unit}/s": factor for unit, factor in _BYTES.items()},
        'a rate such as "450 GB/s" or "400 Gb/s"',
    ),
    "time": (
        {
            "ns": Fraction(1, 10**9),
            "us": Fraction(1, 10**6),
            "µs": Fraction(1, 10**6),
            "ms": Fraction(1, 1000),
            "s": Fraction(1),
            "min": Fraction(60),
            "h": Fraction(3600),
        },
        'a time such as "3 us" or "60 s"',
    ),
    "compute": (
        {f"{prefix}FLOP/s": Fraction(factor) for prefix, factor in _DECIMAL.items()},
        'a rate such as "989 TFLOP/s"',
    ),
    "fraction": ({"%": Fraction(1, 100)}, 'a percentage such as "1%"'),
}
_NUMBER: Final = r"[+-]?[0-9][0-9_]*(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,3})?"
_QUANTITY = re.compile(rf"\s*({_NUMBER})\s*(\S*)\s*")
_LIMIT = 10**30  # nothing physical is larger; keeps absurd input out of the arithmetic


def parse_quantity(value: object, dimension: str) -> float:
    """Turn "450 GB/s" into 4.5e11.

    Args:
        value: what stands in the file.
        dimension: a key of `UNITS`.

    Returns:
        The number in the inner unit; an `int` where it is whole, so that sizes stay exact.

    Raises:
        PydanticCustomError: no unit, an unknown unit, or not a finite number in range.
    """
    units, expected = UNITS[dimension]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise _wrong(f"{value!r} is not a quantity", expected)
    if not isinstance(value, str):
        raise _wrong(f"{value} has no unit", expected)
    match = _QUANTITY.fullmatch(value)
    if match is None:
        raise _wrong(f"{value!r} is not a number with a unit", expected)
    number, unit = match.groups()
    if not unit:
        raise _wrong(f"{value} has no unit", expected)
    if unit not in units:
        raise _wrong(f"{value!r}: {_unknown_unit(unit, units, dimension)}", expected)
    exact = Fraction(number.replace("_", "")) * units[unit]
    if abs(exact) > _LIMIT:
        raise _wrong(f"{value!r} is beyond anything physical", expected)
    if dimension == "size":
        return round(exact)  # no part of a byte: "79.65 GiB" is a size, too
    return int(exact) if exact.denominator == 1 else float(exact)


def _unknown_unit(unit: str, units: dict[str, Fraction], dimension: str) -> str:
    for other, (known, _) in UNITS.items():
        if unit in known and other != dimension:
            return f"{unit} is a unit of {other}, a {dimension} is needed"
    alike = [known for known in units if known.lower() == unit.lower()]
    if alike:
        return f"unknown unit {unit}; did you mean {' or '.join(alike)}?"
    return f"unknown unit {unit}"


def _wrong(message: str, expected: str) -> PydanticCustomError:
    return PydanticCustomError("quantity", "{text}", {"text": message, "hint": f"expected {expected}"})


def _reader(dimension: str, *, positive: bool) -> BeforeValidator:
    def read(value: object) -> float:
        number = parse_quantity(value, dimension)
        if number < 0 or (positive and number == 0):
            rule = "greater than 0" if positive else "0 or more"
            raise PydanticCustomError("quantity", "{text}", {"text": f"{value!r} must be {rule}", "hint": ""})
        return number

    return BeforeValidator(read)


def _writer(dimension: str) -> PlainSerializer:
    return PlainSerializer(lambda value: exact_text(value, dimension), return_type=str)


def _shape(dimension: str) -> WithJsonSchema:
    """How a quantity stands in a file, for editors."""
    units, expected = UNITS[dimension]
    known = "|".join(re.escape(unit) for unit in units)
    pattern = rf"^\s*{_NUMBER}\s*(?:{known})\s*$"
    return WithJsonSchema({"type": "string", "pattern": pattern, "patternErrorMessage": f"expected {expected}"})


# Types for pydantic fields: text with a unit in the file, a number inside, text when dumped.
Size = Annotated[int, _reader("size", positive=True), _writer("size"), _shape("size")]
SizeOrZero = Annotated[int, _reader("size", positive=False), _writer("size"), _shape("size")]
Rate = Annotated[float, _reader("rate", positive=True), _writer("rate"), _shape("rate")]
Duration = Annotated[float, _reader("time", positive=False), _writer("time"), _shape("time")]
ComputeRate = Annotated[float, _reader("compute", positive=True), _writer("compute"), _shape("compute")]
Percentage = Annotated[float, _reader("fraction", positive=False), _writer("fraction"), _shape("fraction")]

_INNER_UNIT: Final = {"size": "B", "rate": "B/s", "time": "s", "compute": "FLOP/s"}


def exact_text(value: float, dimension: str) -> str:
    """A quantity as text that reads back as the very same number."""
    if dimension == "fraction":
        hundredfold = Decimal(value).scaleb(2)
        texts = (f"{Decimal(f'{hundredfold:.{digits}g}'):f}" for digits in range(1, 20))
        return next(f"{text}%" for text in texts if float(Fraction(text) / 100) == value)
    number = repr(int(value)) if float(value).is_integer() else repr(float(value))
    return f"{number} {_INNER_UNIT.get(dimension, '')}"


def _scaled(value: float, steps: list[tuple[float, str]], digits: int) -> str:
    if not math.isfinite(value):
        return str(value)
    factor, unit = next((s for s in steps if abs(value) >= s[0]), steps[-1])
    scaled = value / factor
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(scaled)))) if scaled else 0
    return f"{scaled:,.{min(decimals, digits - 1)}f} {unit}"


def format_bytes(value: float, digits: int = 3) -> str:
    """Bytes for people, in binary units: 2554331136 becomes "2.38 GiB"."""
    steps = [(2.0**40, "TiB"), (2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B")]
    return _scaled(value, steps, digits)


def format_seconds(value: float, digits: int = 3) -> str:
    """Seconds for people: 0.00123 becomes "1.23 ms"."""
    return _scaled(value, [(1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns")], digits)


def format_rate(value: float, digits: int = 3) -> str:
    """Bytes per second for people, in decimal units: 4.5e11 becomes "450 GB/s"."""
    steps = [(1e12, "TB/s"), (1e9, "GB/s"), (1e6, "MB/s"), (1e3, "kB/s"), (1.0, "B/s")]
    return _scaled(value, steps, digits)


def format_compute(value: float, digits: int = 3) -> str:
    """FLOP per second for people: 9.89e14 becomes "989 TFLOP/s"."""
    return _scaled(value, [(1e15, "PFLOP/s"), (1e12, "TFLOP/s"), (1e9, "GFLOP/s"), (1.0, "FLOP/s")], digits)


def format_percent(value: float, digits: int = 1) -> str:
    """A fraction for people: 0.0123 becomes "1.2 %"."""
    return f"{100 * value:.{digits}f} %"


def format_count(value: float) -> str:
    """A count for people: 310123 becomes "310 k"."""
    for factor, suffix in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e4, " k")):
        if abs(value) >= factor:
            scaled = value / (1e3 if suffix == " k" else factor)
            return f"{scaled:.3g}{suffix}" if scaled < 1000 else f"{scaled:.0f}{suffix}"
    return f"{value:,.0f}"


def format_number_of(number: float, noun: str, plural: str | None = None) -> str:
    """A number of things: "1 token", "1,024 tokens"; "2 copies" with the plural given."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
