"""docs/export.md: maps, permuted checkpoints, launches and their doctors, with the tables of formats."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pages.markdown import GENERATED, joined, table
from planner.export.checkpoint.families import FAMILIES
from planner.export.table import LAUNCHES, MAPS, Format

HERE: Final = Path(__file__).resolve().parent


def page() -> str:
    """The whole page."""
    text = (HERE / "export.md").read_text(encoding="utf-8").rstrip("\n")
    cannot = ((f"`{name}`", need, why) for name, kind in MAPS.items() for need, why in kind.cannot.items())
    text = text.replace("<!-- maps -->", _formats(MAPS))
    text = text.replace("<!-- cannot -->", table(("`--to`", "cannot say", "because"), cannot))
    text = text.replace("<!-- launches -->", _formats(LAUNCHES))
    text = text.replace("<!-- families -->", ", ".join(f"`{name}`" for name in FAMILIES))
    return joined([GENERATED, "# Export", text])


def _formats(formats: Mapping[str, Format]) -> str:
    rows = (
        (f"`{name}`", "; ".join(filter(None, (kind.what, kind.needs))), ", ".join(kind.versions) or "-")
        for name, kind in formats.items()
    )
    return table(("`--to`", "what", "versions known"), rows)
