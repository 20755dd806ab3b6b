"""docs/traces.md: importing, checking and aggregating traces, with the tables of formats and faults."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pages.markdown import GENERATED, joined, table
from planner.trace.faults import FAULTS, NEVER
from planner.trace.importers.table import FORMATS

HERE: Final = Path(__file__).resolve().parent


def page() -> str:
    """The whole page."""
    text = (HERE / "traces.md").read_text(encoding="utf-8").rstrip("\n")
    formats = ((f"`{name}`", kind.what, kind.record, kind.lost) for name, kind in FORMATS.items())
    faults = ((f"`{name}`", what, "no" if name in NEVER else "yes") for name, what in FAULTS.items())
    text = text.replace("<!-- formats -->", table(("`--from`", "what", "how to record it", "what is lost"), formats))
    text = text.replace("<!-- faults -->", table(("name", "the trap", "may be accepted"), faults))
    return joined([GENERATED, "# Traces", text])
