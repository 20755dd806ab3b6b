"""How figures look in the terminal: one place for colours, bars and heat cells.

Colours are a ramp from blue to orange that colour-blind readers can tell apart; every cell also has
a height or a number, so nothing is said by colour alone.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

_BLOCKS = "▁▂▃▄▅▆▇█"
_RAMP = ("#4477aa", "#66a0c8", "#99c4d8", "#d8c9a0", "#e6a85c", "#d9762b", "#b84a12")


def console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """A console that keeps lines whole; where the output is no terminal, COLUMNS or else 100 columns wide."""
    made = Console(stderr=stderr, highlight=False, soft_wrap=False, quiet=quiet)
    if not made.is_terminal and not os.environ.get("COLUMNS", "").isdecimal():
        made = Console(stderr=stderr, highlight=False, width=100, quiet=quiet)
    return made


def plain_table(*columns: str, right: Sequence[int] = ()) -> Table:
    """A table without lines; the columns numbered in `right` are right-aligned."""
    table = Table(box=None, pad_edge=False, show_header=any(columns), header_style="dim", padding=(0, 2, 0, 0))
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index in right else "left", no_wrap=index in right)
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


def shortened(text: str, length: int) -> str:
    """Text cut to a length, the cut shown."""
    return text if len(text) <= length else text[: length - 1] + "…"
