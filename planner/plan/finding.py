"""What a checker finds: a rule that is broken, or a figure that differs from what is derived again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

CLOSE: Final = 1e-9
"""Relative difference allowed between a booked and a re-derived time: other machines may round the
last digit of an exponential differently. Counts and bytes must agree exactly."""


@dataclass(frozen=True)
class Finding:
    """A rule that a plan breaks or a figure that it books wrongly."""

    rule: str
    message: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.message}"


def differences(key: str, booked: Any, again: Any) -> Iterator[Finding]:
    """Differences between two trees of plain data."""
    if isinstance(booked, dict) and isinstance(again, dict):
        for name in sorted(set(booked) | set(again)):
            if name not in booked or name not in again:
                missing = "booked" if name not in booked else "re-derived"
                yield Finding(f"{key}.{name}", f"not {missing}")
            else:
                yield from differences(f"{key}.{name}", booked[name], again[name])
    elif isinstance(booked, Sequence) and isinstance(again, Sequence) and not isinstance(booked, str):
        if len(booked) != len(again):
            yield Finding(key, f"{len(booked)} entries are booked, {len(again)} re-derived")
            return
        for index, (one, other) in enumerate(zip(booked, again, strict=True)):
            yield from differences(f"{key}[{index}]", one, other)
    elif not equal(booked, again):
        yield Finding(key, f"booked {booked!r}, re-derived {again!r}")


def equal(booked: Any, again: Any) -> bool:
    """Whether two figures are the same, times up to rounding."""
    if isinstance(booked, float) and isinstance(again, float | int):
        return math.isclose(booked, again, rel_tol=CLOSE, abs_tol=1e-18)
    return bool(booked == again)
