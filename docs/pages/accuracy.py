"""The table of README.md that sums up docs/accuracy.md: least and largest error of each kind of figure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pages.markdown import table

ROOT: Final = Path(__file__).resolve().parent.parent.parent
_BLOCK: Final = re.compile(r"(<!-- From docs/accuracy\.md, by docs/generate\.py\. -->\n).*?(<!-- -->)", re.DOTALL)
_ERRORS: Final = re.compile(r"([\d.]+) / ([\d.]+)")


def readme() -> str:
    """README.md with the table as docs/accuracy.md gives it now."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    summed = table(("what", "held against", "median error", "1 in 10 is off by"), _rows())
    found, count = _BLOCK.subn(lambda block: f"{block[1]}\n{summed}\n\n{block[2]}", text)
    assert count == 1, "README.md has no place for the table of docs/accuracy.md"
    return found


def _rows() -> Iterator[tuple[str, str, str, str]]:
    text = (ROOT / "docs" / "accuracy.md").read_text(encoding="utf-8")
    compute, carried = _section(text, "The fastest kernels"), _section(text, "Compute kernels, carried over")
    for work in dict.fromkeys(row["work"] for row in compute):
        yield _row(work, "other shapes", [row["held out"] for row in compute if row["work"] == work])
    for work in dict.fromkeys(row["work"] for row in carried):
        yield _row(work, "another GPU, datasheet only", [row["carried over"] for row in carried if row["work"] == work])
    links = _section(text, "Communication")
    for where in dict.fromkeys(row["where"] for row in links):
        told = "other nodes, ranks or shapes"
        yield _row(f"exchanges: {where}", told, [row["held out"] for row in links if row["where"] == where])
    skew = _signed(_section(text, "Skew"))
    yield "most loaded rank under skew", f"{len(skew)} measured layouts", f"{skew[0]:+d} to {skew[-1]:+d} %", ""
    steps = _signed(_section(text, "Published steps"))
    cases = f"{len(steps)} published cases; one constant, the traffic that hides, rests on them"
    yield "whole steps of DeepSeek-V3", cases, f"{steps[0]:+d} to {steps[-1]:+d} %", ""


def _signed(rows: list[dict[str, str]]) -> list[int]:
    return sorted(int(row["error"].rstrip("%")) for row in rows)


def _row(name: str, how: str, cells: list[str]) -> tuple[str, str, str, str]:
    """Least and largest median and 90th percentile; what was not held out is left out."""
    found = [match for match in map(_ERRORS.fullmatch, cells) if match]
    median, worst = (sorted(float(match[group]) for match in found) for group in (1, 2))
    return name, how, _range(median), _range(worst)


def _range(values: list[float]) -> str:
    low, high = f"{values[0]:.0f}", f"{values[-1]:.0f}"
    return f"{low} %" if low == high else f"{low} to {high} %"


def _section(text: str, title: str) -> list[dict[str, str]]:
    """The first table under a heading."""
    under = text.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in under.splitlines() if line.startswith("|")]
    headings, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return [dict(zip(headings, row, strict=True)) for row in rows]
