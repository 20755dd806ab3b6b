"""What is done of a permuted checkpoint, so that a killed run goes on, and what the finished one says of itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, ValidationError

from planner.errors import InputError, Place, Problem
from planner.export.checkpoint.source import Source
from planner.export.layout import Layout
from planner.files import write_whole
from planner.inputs import documents
from planner.inputs.documents import Frozen

NAME: Final = "ep-plan.permutation.json"
_SCHEMA: Final = "ep-plan/permutation/1"


class OldFile(Frozen):
    """A file of weights as it was when the work began."""

    bytes: int
    """Its size."""
    modified_ns: int
    """When it was last changed."""


class Progress(Frozen):
    """An `ep-plan.permutation.json`, beside the permuted weights."""

    state: Literal["unfinished", "finished"]
    """Whether every file is there."""
    plan_sha256: str
    """Of the plan."""
    router_only: bool
    """Whether only routers were written."""
    experts: dict[str, tuple[int, ...]]
    """For each MoE layer the original expert at each position."""
    source: dict[str, OldFile]
    """The original files of weights."""
    sha256: dict[str, str] = Field(default_factory=dict)
    """Of the files written so far."""

    def same_work(self, other: Progress) -> bool:
        """Whether the other does the same to the same files."""
        hidden = {"state": self.state, "sha256": self.sha256}
        return self == other.model_copy(update=hidden)

    def with_file(self, name: str, digest: str) -> Progress:
        """One more file is there."""
        return self.model_copy(update={"sha256": dict(sorted({**self.sha256, name: digest}.items()))})


def begun(source: Source, layout: Layout, plan_sha256: str, *, router_only: bool) -> Progress:
    """The work before any file is written."""
    old = {}
    for header in source.headers:
        stat = header.path.stat()
        old[header.path.name] = OldFile(bytes=stat.st_size, modified_ns=stat.st_mtime_ns)
    experts = zip(layout.placement.layer_ids, layout.rows(), strict=True)
    return Progress(
        state="unfinished",
        plan_sha256=plan_sha256,
        router_only=router_only,
        experts={str(layer): tuple(row) for layer, row in experts},
        source=old,
    )


def save(progress: Progress, folder: Path) -> None:
    """Write it into the folder of the permuted weights."""
    data = {"schema": _SCHEMA, **progress.model_dump(mode="json")}
    lines = []
    for key, value in data.items():
        text = _text(value, key in ("experts", "source", "sha256"))
        lines.append(f" {json.dumps(key)}: {text}")
    write_whole(folder / NAME, "{\n" + ",\n".join(lines) + "\n}\n")


def _text(value: Any, by_line: bool) -> str:
    if not by_line or not value:
        return json.dumps(value)
    lines = (f"  {json.dumps(key)}: {json.dumps(item)}" for key, item in value.items())
    return "{\n" + ",\n".join(lines) + "\n }"


def load(folder: Path) -> Progress | None:
    """What a folder says of itself; None if it says nothing. Raises `InputError` if it is damaged."""
    path = folder / NAME
    if not path.is_file():
        return None
    data = documents.read_json(path)
    values = {key: value for key, value in data.items() if key != "schema"} if isinstance(data, dict) else data
    try:
        return documents.validated(Progress, values)
    except (ValidationError, ValueError):
        hint = f"remove {folder} and begin again"
        raise InputError(Problem("not a record of a permuted checkpoint", Place(str(path)), hint)) from None
