"""How figures look in the terminal: one place for colours, bars and heat cells.

Colours are a ramp from blue to orange that colour-blind readers can tell apart; every cell also has
a height or a number, so nothing is said by colour alone.
"""

from __future__ import annotations

import os
import sys
from bisect import bisect_right
from collections.abc import Sequence
from io import TextIOBase

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

_UNLIMITED = 10_000
_GAP = 2
_BLOCKS = "▁▂▃▄▅▆▇█"
BAR_COLOUR = "#4477aa"
_RAMP = ("#4477aa", "#66a0c8", "#99c4d8", "#d8c9a0", "#e6a85c", "#d9762b", "#b84a12")


class _Trimmed(TextIOBase):
    """A stream without the spaces with which tables fill their last column."""

    def __init__(self, stream: str) -> None:
        self._name = stream

    def write(self, text: str) -> int:
        lines, stream = text.split("\n"), getattr(sys, self._name)
        if stream is not None:  # it is None where the caller has closed it
            stream.write("\n".join([*(line.rstrip(" ") for line in lines[:-1]), lines[-1]]))
        return len(text)

    def flush(self) -> None:
        stream = getattr(sys, self._name)
        if stream is not None:
            stream.flush()


def console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """A console that keeps lines whole; where the output is no terminal, COLUMNS or else 100 columns wide."""
    made = Console(stderr=stderr, highlight=False, soft_wrap=False, quiet=quiet)
    if made.is_terminal:
        return made
    width = None if os.environ.get("COLUMNS", "").isdecimal() else 100
    stream = _Trimmed("stderr" if stderr else "stdout")
    return Console(file=stream, highlight=False, width=width, quiet=quiet)  # type: ignore[arg-type]  # writes text


class _WholeTable(Table):
    """A table whose figures stay on one line where there is room, and are never cut off where there is none."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        free = options.update(width=_UNLIMITED)
        sizes = [
            [Measurement.get(console, free, cell) for cell in (column.header, *column.cells)] for column in self.columns
        ]
        words = [max(size.minimum for size in column) for column in sizes]
        whole = [max(size.maximum for size in column) for column in sizes]
        room = options.max_width - _GAP * (len(sizes) - 1)
        kept = [
            most if column.no_wrap else least for column, least, most in zip(self.columns, words, whole, strict=True)
        ]
        if sum(kept) > room:
            for column, width in zip(self.columns, _shared_out(words, whole, room), strict=True):
                column.no_wrap, column.width = False, width
        yield from super().__rich_console__(console, options)


def _shared_out(least: Sequence[int], most: Sequence[int], room: int) -> list[int | None]:
    """Widths with which no word is broken, the rest given to the narrowest that want more; None where words must be."""
    widths = list(least)
    if sum(widths) > room:
        return [None] * len(widths)
    for _ in range(room - sum(widths)):
        wanting = [index for index, width in enumerate(widths) if width < most[index]]
        if not wanting:
            break
        widths[min(wanting, key=lambda index: widths[index])] += 1
    return list(widths)


def plain_table(*columns: str, right: Sequence[int] = ()) -> Table:
    """A table without lines; the columns numbered in `right` are right-aligned."""
    table = _WholeTable(box=None, pad_edge=False, show_header=any(columns), header_style="dim", padding=(0, _GAP, 0, 0))
    for index, column in enumerate(columns):
        is_figure = index in right
        table.add_column(column, justify="right" if is_figure else "left", no_wrap=is_figure, overflow="fold")
    return table


def as_wide_as_fits(
    made: Console, columns: Sequence[str], rows: Sequence[Sequence[str]], least: int, *, mark_first: bool = True
) -> Table:
    """A table of figures, its last columns left out where the console has no room for them.

    Args:
        made: where it will be printed.
        columns: headings; all but the first are right-aligned.
        rows: cells, as many as headings.
        least: so many columns stay in any case.
        mark_first: whether the first row stands out.
    """
    for count in range(len(columns), least - 1, -1):
        table = plain_table(*columns[:count], right=range(1, count))
        for number, row in enumerate(rows):
            table.add_row(*row[:count], style="green" if mark_first and not number else None)
        if Measurement.get(made, made.options.update(width=_UNLIMITED), table).maximum <= made.width:
            break
    return table


def bar(part: float, width: int = 20) -> str:
    """A horizontal bar for a part of 1."""
    eighths = round(max(0.0, min(1.0, part)) * width * 8)
    full, rest = divmod(eighths, 8)
    return "█" * full + (" ▏▎▍▌▋▊▉"[rest] if rest else "")


def heat(values: Sequence[float], steps: Sequence[float]) -> Text:
    """One cell per value, as high and as warm as the steps it reaches; at most 7 steps, ascending."""
    text = Text()
    for value in values:
        level = bisect_right(steps, value)
        text.append(_BLOCKS[level], _RAMP[max(0, level - 1)])
    return text


def largest_of(values: Sequence[float], count: int) -> list[float]:
    """The largest of each `count` neighbours, so that long rows fit."""
    return [max(values[first : first + count]) for first in range(0, len(values), count)]


def shortened(text: str, length: int) -> str:
    """Text cut to a length, the cut shown."""
    return text if len(text) <= length else text[: length - 1] + "…"
