"""Curves and point clouds: in the terminal by plotille, as a file by matplotlib."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import cycle
from pathlib import Path
from string import ascii_lowercase
from typing import Final

from planner.errors import MissingEnvironmentError, UsageError
from planner.files import check_target

_WIDTH, _HEIGHT = 56, 14
_LEAST_WIDTH, _BESIDE = 10, 22
_SUFFIXES: Final = (".svg", ".pdf", ".png")
_UNDATED: Final[dict[str, dict[str, None]]] = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}


@dataclass(frozen=True)
class Series:
    """Points of one kind; joined by lines if they are a curve."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    joined: bool = True


@dataclass(frozen=True)
class Axes:
    """What the axes say."""

    x: str
    y: str
    marked_x: float | None = None
    """A place on the x axis that stands out."""


def num_places(series: Sequence[Series]) -> int:
    """Places with a point; one place alone shows nothing."""
    return len({place for one in series for place in zip(one.x, one.y, strict=True)})


def terminal_plot(series: Sequence[Series], axes: Axes, room: int) -> str:
    """A plot of braille dots, axes and legend in words, in lines of at most `room` characters where 32 are there."""
    import plotille  # noqa: PLC0415  # only where something is drawn

    figure = plotille.Figure()
    figure.width, figure.height = max(_LEAST_WIDTH, min(_WIDTH, room - _BESIDE)), _HEIGHT
    figure.x_label, figure.y_label = "x", "y"
    figure.color_mode = "names"
    figure.with_colors = False
    figure.register_label_formatter(float, _tick)
    every_x = [x for one in series for x in one.x]
    low, high = min(every_x), max(every_x)
    if high > low:
        figure.set_x_limits(low, high)
    for letter, one in _lettered(series):
        draw = figure.plot if one.joined and len(one.x) > 1 else figure.scatter
        marker = letter if len(series) > 1 else None
        draw(list(one.x), list(one.y), marker=marker)
    if axes.marked_x is not None and high > low:
        figure.axvline((axes.marked_x - low) / (high - low))
    said = [str(figure.show(legend=False)), f"x: {axes.x}, y: {axes.y}"]
    if len(series) > 1:
        said.append(", ".join(f"{letter}: {one.name}" for letter, one in _lettered(series)))
    return "\n".join(said)


def _lettered(series: Sequence[Series]) -> Iterator[tuple[str, Series]]:
    return zip(cycle(ascii_lowercase), series, strict=False)


def _tick(value: float, chars: int, delta: float, left: bool = False) -> str:  # noqa: ARG001, FBT002  # as plotille calls it
    return f"{f'{value:.4g}':{'<' if left else '>'}{chars}}"


def check_plot(path: Path) -> None:
    """Refuse what could not be drawn, before long work is done for it.

    Raises:
        UsageError: not a kind of file that is drawn.
        MissingEnvironmentError: there is no matplotlib.
    """
    if path.suffix not in _SUFFIXES:
        raise UsageError(f"--plot {path}: unknown kind of picture", hint=f"one of {', '.join(_SUFFIXES)}")
    try:
        import matplotlib.figure  # noqa: F401, PLC0415  # an extra
    except ImportError:
        raise MissingEnvironmentError("--plot needs matplotlib", hint="pip install 'ep-plan[plot]'") from None
    check_target(path)


def picture(series: Sequence[Series], axes: Axes, suffix: str) -> bytes:
    """The same as a file; the same data gives the same bytes."""
    from matplotlib import rc_context  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    here = figure.subplots()
    for one in series:
        here.plot(one.x, one.y, "o-" if one.joined else "o", label=one.name, markersize=4)
    if axes.marked_x is not None:
        here.axvline(axes.marked_x, linestyle=":", color="grey")
    here.set_xlabel(axes.x)
    here.set_ylabel(axes.y)
    here.grid(alpha=0.3)
    if len(series) > 1:
        here.legend()
    written = BytesIO()
    with rc_context({"svg.hashsalt": "ep-plan"}):
        figure.savefig(written, format=suffix.removeprefix("."), metadata=_UNDATED.get(suffix))
    return written.getvalue()
