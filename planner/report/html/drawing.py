"""From a Vega-Lite specification to SVG that can stand in a page.

Charts are drawn once, here: the page holds no script. Colours are CSS variables of the page, so light, dark
and print need no second drawing. What Vega writes for screen readers becomes a `<title>`, which browsers show
as a tooltip as well.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final
from xml.etree import ElementTree as ET

import vl_convert

_SVG: Final = "http://www.w3.org/2000/svg"
_LONG_FRACTION: Final = re.compile(r"-?\d+\.\d{3,}")
_IDENTIFIER: Final = re.compile(r"url\(#([^)]+)\)")
_DROPPED: Final = ("role", "aria-roledescription", "aria-hidden", "font-family")

_AXIS: Final = {
    "labelColor": "var(--soft)",
    "titleColor": "var(--soft)",
    "domainColor": "var(--line)",
    "tickColor": "var(--line)",
    "gridColor": "var(--line)",
    "labelFontSize": 11,
    "titleFontSize": 11,
    "titleFontWeight": "normal",
    "labelLimit": 220,
}
CONFIG: Final = {
    "background": "transparent",
    "font": "sans-serif",
    "view": {"stroke": None},
    "axis": _AXIS,
    "legend": {"labelColor": "var(--ink)", "titleColor": "var(--soft)", "titleFontWeight": "normal"},
    "header": {"labelColor": "var(--ink)", "titleColor": "var(--soft)", "labelFontSize": 12},
    "text": {"color": "var(--ink)", "fontSize": 11},
}


def drawn(specification: Mapping[str, Any], name: str, label: str) -> str:
    """A chart as an SVG element.

    Args:
        specification: Vega-Lite, data inline, without schema and configuration.
        name: unlike that of all other charts of the page.
        label: what it shows, for those who cannot see it.
    """
    whole = {"config": CONFIG, "padding": 4, **specification}
    text = vl_convert.vegalite_to_svg(whole, allowed_base_urls=[])
    ET.register_namespace("", _SVG)
    svg = ET.fromstring(text)  # noqa: S314  # not from outside: Vega has just written it
    for element in svg.iter():
        _adapt(element, name)
    svg.set("role", "img")
    svg.set("aria-label", label)
    svg.set("class", "chart")
    return ET.tostring(svg, encoding="unicode")


def _adapt(element: ET.Element, name: str) -> None:
    """Tooltips instead of labels, two digits instead of fifteen, identifiers that no other chart has."""
    told = element.attrib.pop("aria-label", None)
    is_mark = element.get("role") == "graphics-symbol"
    if told and is_mark:
        title = ET.Element(f"{{{_SVG}}}title")
        title.text = told
        element.insert(0, title)
    for attribute in _DROPPED:
        element.attrib.pop(attribute, None)
    for attribute, value in element.attrib.items():
        short = _LONG_FRACTION.sub(lambda found: f"{float(found[0]):.2f}", value)
        short = _IDENTIFIER.sub(rf"url(#{name}-\1)", short)
        element.set(attribute, f"{name}-{short}" if attribute == "id" else short)
