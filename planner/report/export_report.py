"""What `ep-plan export` says: the formats, and what was written."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from planner.export.table import FORMATS
from planner.export.write import Written
from planner.inputs.units import format_number_of
from planner.report.style import plain_table


def render_formats(console: Console, *, verbose: bool = False) -> None:
    """A table of all formats; `verbose` adds what each cannot say."""
    table = plain_table("--to", "versions", "what")
    table.columns[0].no_wrap = True
    for name, kind in FORMATS.items():
        what = f"{kind.what}; {kind.needs}" if kind.needs else kind.what
        table.add_row(name, ", ".join(kind.versions) or "-", Text(what))
        if verbose:
            for need, why in kind.cannot.items():
                table.add_row("", "", Text(f"  not: {need} ({why})", "dim"))
    console.print(table)


def formats_json() -> dict[str, Any]:
    """The same as plain data."""
    formats = [
        {
            "name": name,
            "what": kind.what,
            "suffix": kind.suffix,
            "versions": list(kind.versions),
            "engine": kind.engine,
            "needs": kind.needs,
            "cannot": dict(kind.cannot),
            "gone": dict(kind.gone),
        }
        for name, kind in FORMATS.items()
    ]
    return {"schema": "ep-plan/formats/1", "formats": formats}


def render_written(written: Written, console: Console, *, verbose: bool = False) -> None:
    """How it is loaded; of a checkpoint what was moved, and with `verbose` (or nothing written) the permutation."""
    facts = written.facts
    if facts:
        renamed = format_number_of(facts["renamed"], "tensor")
        moved = f"{renamed} renamed, {facts['reordered']} reordered by rows, of {facts['tensors']}"
        console.print(Text(moved))
        if verbose or written.path is None:
            console.print(Text("original expert at each position:", "dim"))
            for layer, experts in facts["experts"].items():
                console.print(Text(f"  layer {layer}: {' '.join(map(str, experts))}"))
    console.print(Text(f"load: {written.how_to_load}"), soft_wrap=True)


def written_json(written: Written) -> dict[str, Any]:
    """What was written, as plain data."""
    return {
        "schema": "ep-plan/export/1",
        "path": None if written.path is None else str(written.path),
        "format": written.format,
        "engine_version": written.version or None,
        "load_with": written.how_to_load,
        "notes": list(written.notes),
        **written.facts,
    }
