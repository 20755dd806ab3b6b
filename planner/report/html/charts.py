"""The charts of the report as Vega-Lite specifications: data in, plain dictionaries out.

Every mark has a text of its own, shown as its tooltip. Shapes, dashes or numbers say what colours say.

Legend: L layers, R columns of a heat map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

Spec = dict[str, Any]

WIDTH: Final = 640
_ROW: Final = 22
RATIO_STEPS: Final = (0.7, 0.85, 0.95, 1.05, 1.15, 1.35, 1.6, 2.0)
"""Rows of a rank over the mean: the colours of a heat map change here."""
RATIO_COLOURS: Final = tuple(f"var(--r{number})" for number in range(len(RATIO_STEPS) + 1))
AMOUNT_COLOURS: Final = tuple(f"var(--a{number})" for number in range(7))
COPY_STEPS: Final = (3, 4, 5)
COPY_COLOURS: Final = ("var(--a2)", "var(--a4)", "var(--a5)", "var(--a6)")
_LINES: Final = {"linear": ("var(--warm)", [2, 3]), "eplb": ("var(--soft)", [6, 3]), "plan": ("var(--cool)", [1, 0])}


def _told() -> Spec:
    return {"field": "told", "type": "nominal"}


def bars(rows: Sequence[Mapping[str, Any]], title: str) -> Spec:
    """Horizontal bars in the given order; `inner` of a row is drawn inside its `value`, darker.

    Args:
        rows: name, value, inner, shown (text at the end of the bar), told.
        title: of the axis.
    """
    y = {"field": "name", "type": "nominal", "sort": None, "title": None, "axis": _names(rows)}
    most = max((row["value"] for row in rows), default=1.0)
    scale = {"domainMax": most * 1.25, "nice": False}  # room for the text after the longest
    x = {"field": "value", "type": "quantitative", "title": title, "scale": scale, "axis": {"tickCount": 5}}
    shown = {"align": "left", "baseline": "middle", "dx": 5}
    layers: list[Spec] = [
        {
            "mark": {"type": "bar", "height": 13, "color": "var(--cool)"},
            "encoding": {"x": x, "description": _told()},
        },
        {
            "mark": {"type": "bar", "height": 13, "color": "var(--deep)"},
            "encoding": {"x": {**x, "field": "inner"}, "description": _told()},
        },
        {"mark": {"type": "text", **shown}, "encoding": {"x": x, "text": {"field": "shown"}}},
    ]
    if not any(row.get("inner") for row in rows):
        layers.pop(1)
    return {
        "width": WIDTH - _names(rows)["minExtent"],
        "height": {"step": _ROW},
        "data": {"values": list(rows)},
        "encoding": {"y": y},
        "layer": layers,
    }


def _names(rows: Sequence[Mapping[str, Any]]) -> Spec:
    """An axis of names with room for them in any font: Vega only knows the widths of its own."""
    longest = max((len(row["name"]) for row in rows), default=0)
    return {"ticks": False, "domain": False, "minExtent": min(240, 12 + 7 * longest)}


def against(rows: Sequence[Mapping[str, Any]], titles: tuple[str, str]) -> Spec:
    """Upright bars with a limit above each.

    Args:
        rows: name, value, limit, told.
        titles: of the horizontal and the vertical axis.
    """
    axis = {"labelOverlap": "greedy", "labelSeparation": 4, "labelAngle": 0, "ticks": False}
    x = {"field": "name", "type": "ordinal", "sort": None, "title": titles[0], "axis": axis}
    y = {"field": "value", "type": "quantitative", "title": titles[1]}
    return {
        "width": WIDTH,
        "height": 150,
        "data": {"values": list(rows)},
        "encoding": {"x": x},
        "layer": [
            {"mark": {"type": "bar", "color": "var(--cool)"}, "encoding": {"y": y, "description": _told()}},
            {
                "mark": {"type": "tick", "color": "var(--warm)", "thickness": 2, "bandSize": {"band": 1}},
                "encoding": {"y": {**y, "field": "limit"}, "description": _told()},
            },
        ],
    }


def heat_maps(cells: Sequence[Mapping[str, Any]], titles: tuple[str, str], rows: int, *, ratio: bool) -> Spec:
    """Heat maps side by side, one for each value of `of`.

    Args:
        cells: of, x, y, value, told.
        titles: of the horizontal and the vertical axis.
        rows: of cells.
        ratio: coloured around 1 in fixed steps; else from nothing to the largest value.
    """
    scale: Spec
    if ratio:
        scale = {"type": "threshold", "domain": list(RATIO_STEPS), "range": list(RATIO_COLOURS)}
    else:
        most = max((cell["value"] for cell in cells), default=0.0) or 1.0
        scale = {"type": "quantize", "domain": [0, most], "range": list(AMOUNT_COLOURS)}
    return {
        "data": {"values": list(cells)},
        "facet": {"column": {"field": "of", "type": "nominal", "sort": None, "title": None}},
        "spacing": 16,
        "spec": {
            "width": (WIDTH - 60) // 2,
            "height": max(40, min(380, rows * 9 if ratio else (WIDTH - 60) // 2)),
            "mark": "rect",
            "encoding": {
                "x": _cell_axis("x", titles[0]),
                "y": _cell_axis("y", titles[1]),
                "color": {"field": "value", "type": "quantitative", "scale": scale, "legend": None},
                "description": _told(),
            },
        },
    }


def _cell_axis(field: str, title: str) -> Spec:
    labels = {"labelAngle": 0, "ticks": False, "domain": False, "labelOverlap": "greedy", "labelSeparation": 3}
    return {"field": field, "type": "ordinal", "sort": None, "title": title, "axis": labels}


def lines(rows: Sequence[Mapping[str, Any]], titles: tuple[str, str], names: Sequence[str]) -> Spec:
    """Lines over layers, each with its own dash and its name at the end.

    Args:
        rows: name, x, y, told.
        titles: of the axes.
        names: of the lines, as in `_LINES`.
    """
    known = [name for name in names if name in _LINES]
    colour = {"domain": known, "range": [_LINES[name][0] for name in known]}
    dash = {"domain": known, "range": [_LINES[name][1] for name in known]}
    legend = {"title": None, "orient": "top", "symbolType": "stroke", "symbolSize": 400}
    series = {
        "color": {"field": "name", "type": "nominal", "scale": colour, "legend": legend},
        "strokeDash": {"field": "name", "type": "nominal", "scale": dash, "legend": legend},
    }
    scale = {"nice": False, "zero": False}
    axis = {"grid": False, "format": "d"}
    x = {"field": "x", "type": "quantitative", "title": titles[0], "scale": scale, "axis": axis}
    y = {"field": "y", "type": "quantitative", "title": titles[1], "scale": {"zero": False, "domainMin": 1}}
    point = {"type": "point", "opacity": 0, "size": 60}
    return {
        "width": WIDTH,
        "height": 170,
        "data": {"values": list(rows)},
        "encoding": {"x": x, "y": y},
        "layer": [
            {"mark": {"type": "line", "strokeWidth": 2}, "encoding": series},
            {"mark": point, "encoding": {"description": _told()}},
        ],
    }


def pairs_of_points(rows: Sequence[Mapping[str, Any]], title: str, kinds: tuple[str, str]) -> Spec:
    """Two points on a line for each name: a disc and a diamond.

    Args:
        rows: name, kind, value, told.
        title: of the axis.
        kinds: names of the discs and of the diamonds.
    """
    axis = {**_names(rows), "grid": True}
    y = {"field": "name", "type": "nominal", "sort": None, "title": None, "axis": axis}
    x = {
        "field": "value",
        "type": "quantitative",
        "title": title,
        "scale": {"zero": False, "nice": True, "domainMin": 1},
    }
    legend = {"title": None, "orient": "top"}
    shape = {"domain": list(kinds), "range": ["circle", "diamond"]}
    colour = {"domain": list(kinds), "range": ["var(--cool)", "var(--warm)"]}
    return {
        "width": WIDTH - axis["minExtent"],
        "height": {"step": 26},
        "data": {"values": list(rows)},
        "mark": {"type": "point", "filled": True, "size": 110, "opacity": 1},
        "encoding": {
            "x": x,
            "y": y,
            "shape": {"field": "kind", "type": "nominal", "scale": shape, "legend": legend},
            "color": {"field": "kind", "type": "nominal", "scale": colour, "legend": legend},
            "description": _told(),
        },
    }


def steps(rows: Sequence[Mapping[str, Any]], titles: tuple[str, str], kinds: tuple[str, str]) -> Spec:
    """Best plan and bound over effort: two lines of steps.

    Args:
        rows: kind, x, y, told.
        titles: of the axes.
        kinds: names of the upper and the lower line.
    """
    colour = {"domain": list(kinds), "range": ["var(--cool)", "var(--warm)"]}
    dash = {"domain": list(kinds), "range": [[1, 0], [5, 3]]}
    legend = {"title": None, "orient": "top", "symbolType": "stroke", "symbolSize": 400}
    return {
        "width": WIDTH,
        "height": 170,
        "data": {"values": list(rows)},
        "encoding": {
            "x": {"field": "x", "type": "quantitative", "title": titles[0], "axis": {"grid": False}},
            "y": {"field": "y", "type": "quantitative", "title": titles[1], "scale": {"zero": False}},
            "color": {"field": "kind", "type": "nominal", "scale": colour, "legend": legend},
        },
        "layer": [
            {
                "mark": {"type": "line", "interpolate": "step-after", "strokeWidth": 2},
                "encoding": {"strokeDash": {"field": "kind", "type": "nominal", "scale": dash, "legend": legend}},
            },
            {"mark": {"type": "point", "filled": True, "size": 36}, "encoding": {"description": _told()}},
        ],
    }


def marks(rows: Sequence[Mapping[str, Any]], titles: tuple[str, str], size: tuple[int, int]) -> Spec:
    """A mark for each pair of a layer and an expert that has several copies, the darker the more.

    Args:
        rows: x, y, value, told.
        titles: of the axes.
        size: experts and layers.
    """
    columns, count = size
    scale = {"type": "threshold", "domain": list(COPY_STEPS), "range": list(COPY_COLOURS)}
    axis = {"grid": False, "format": "d"}
    return {
        "width": WIDTH,
        "height": max(40, min(380, count * 8)),
        "data": {"values": list(rows)},
        "mark": {"type": "square", "filled": True, "size": 24, "opacity": 1},
        "encoding": {
            "x": {
                "field": "x",
                "type": "quantitative",
                "title": titles[0],
                "scale": {"domain": [0, columns]},
                "axis": axis,
            },
            "y": {
                "field": "y",
                "type": "quantitative",
                "title": titles[1],
                "scale": {"zero": False, "reverse": True, "nice": False, "padding": 6},
                "axis": {"grid": True, "format": "d"},
            },
            "color": {"field": "value", "type": "quantitative", "scale": scale, "legend": None},
            "description": _told(),
        },
    }
