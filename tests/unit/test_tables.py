"""Tables for the terminal: figures are whole at any width."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from planner.report.style import plain_table


def printed(width: int) -> list[str]:
    table = plain_table("to serve again", "unseen windows", "gained", "", right=(1, 2))
    table.add_row("cheapest", "836.5 us", "21.0 s", "costs more than it gains")
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_figures_stay_on_one_line_where_there_is_room() -> None:
    first, second = printed(56)[1:]
    assert all(text in first for text in ("cheapest", "836.5 us", "21.0 s", "costs more"))
    assert second.strip() == "it gains"


@pytest.mark.parametrize("width", [24, 30, 36, 48])
def test_nothing_is_cut_off_where_there_is_none(width: int) -> None:
    lines = printed(width)
    assert max(map(len, lines)) <= width
    assert "…" not in "".join(lines)
    if width == 36:
        assert {"cheapest", "836.5", "21.0"} <= set(" ".join(lines).split()), "words are whole where they fit"
    assert sorted("".join("".join(lines).split())) == sorted(
        "".join(["to", "serve", "again", "unseen", "windows", "gained", "cheapest", "836.5", "us", "21.0", "s"])
        + "".join(["costs", "more", "than", "it", "gains"])
    )
