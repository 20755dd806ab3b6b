"""Finds the shipped profiles: in a wheel inside the package, in a checkout beside it."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Final, Literal

from planner.errors import InputError, Place, Problem

Kind = Literal["gpus", "nodes", "models", "engines", "kernels"]

_WHAT: Final[dict[Kind, str]] = {
    "gpus": "GPU",
    "nodes": "node",
    "models": "model",
    "engines": "engine",
    "kernels": "communication kernel",
}
_PACKAGE = Path(__file__).resolve().parent.parent


def folder() -> Path:
    """The folder that holds the profiles."""
    packaged = _PACKAGE / "profiles"
    return packaged if packaged.is_dir() else _PACKAGE.parent / "profiles"


def names(kind: Kind) -> list[str]:
    """All profiles of a kind, sorted."""
    return sorted(path.stem for path in (folder() / kind).glob("*.yaml"))


def path_of(kind: Kind, name: str, where: Place | None = None, inline: str = "") -> Path:
    """The file of a profile.

    Args:
        kind: the folder.
        name: the profile's name, as listed by `ep-plan profiles`.
        where: the place that names it, for the message.
        inline: what to write instead, for the message.

    Raises:
        InputError: no such profile; with the nearest names.
    """
    known = names(kind)
    if name in known:
        return folder() / kind / f"{name}.yaml"
    close = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known)}"
    if inline:
        hint += f"\nor describe it: {inline}"
    raise InputError(Problem(f"unknown {_WHAT[kind]} {name!r}", where, hint))
