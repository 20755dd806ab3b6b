"""Finds the shipped profiles: in a wheel inside the package, in a checkout beside it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

from planner.errors import InputError, Place, Problem

Kind = Literal["gpus", "nodes", "fabrics", "models", "engines", "kernels"]

_WHAT: Final[dict[Kind, str]] = {
    "gpus": "GPU",
    "nodes": "node",
    "fabrics": "fabric",
    "models": "model",
    "engines": "engine",
    "kernels": "communication kernel",
}
_SEPARATORS: Final = re.compile(r"[^a-z0-9.]+")
_VENDORS: Final = frozenset({"nvidia", "amd", "instinct", "huawei", "geforce", "tesla", "gpu"})
_ALIKE: Final = 0.6
_ALL_TOLD: Final[tuple[Kind, ...]] = ("fabrics",)
"""Kinds of which all names are told beside the nearest: of fabrics the nearest is often another generation."""
_FEW: Final = 8
_PACKAGE = Path(__file__).resolve().parent.parent


def folder() -> Path:
    """The folder that holds the profiles."""
    packaged = _PACKAGE / "profiles"
    return packaged if packaged.is_dir() else _PACKAGE.parent / "profiles"


def whence() -> str:
    """Whether the profiles are those of an installed package or of a checkout."""
    return "in the installed package" if (_PACKAGE / "profiles").is_dir() else "in the checkout beside the package"


def schemas() -> Path:
    """The folder that holds the JSON Schemas of all files, for editors."""
    packaged = _PACKAGE / "schemas"
    return packaged if packaged.is_dir() else _PACKAGE.parent / "docs" / "schemas"


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
    try:
        return folder() / kind / f"{known(kind, name, inline)}.yaml"
    except ValueError as error:
        message, _, hint = str(error).partition("\n")
        raise InputError(Problem(message, where, hint)) from None


def known(kind: Kind, name: str, inline: str = "") -> str:
    """A profile's name, for fields of files: so what is wrong with it is told with all else.

    Raises:
        ValueError: no such profile; with the nearest names, and what to write instead.
    """
    if name in names(kind):
        return name
    instead = f"\nor describe it: {inline}" if inline else ""
    raise ValueError(f"unknown {_WHAT[kind]} {name!r}\n{hint_for_unknown(kind, name)}{instead}")


def hint_for_unknown(kind: Kind, name: str) -> str:
    """What to write instead of a name that no profile of this kind has: the nearest, else all."""
    every = names(kind)
    close = near_names(name, every)
    if close:
        others = f" known: {', '.join(every)}" if kind in _ALL_TOLD else ""
        return f"did you mean {' or '.join(close)}?{others}"
    if len(every) <= _FEW:
        return f"known: {', '.join(every)}"
    return f"known: {', '.join(every[:_FEW])}, ...; all {len(every)}: ep-plan profiles"


def near_names(name: str, known: Sequence[str]) -> list[str]:
    """Up to four of the known names that a writer of `name` may have meant, the nearest first.

    Case, blanks and vendors' names do not count. A name that shares a whole part with a digit in it
    comes first, so that "NVIDIA H100 80GB HBM3" finds h100-sxm before h800-sxm.
    """
    parts = [part for part in _SEPARATORS.split(name.lower()) if part and part not in _VENDORS]
    telling = {part for part in parts if any(letter.isdigit() for letter in part)}
    plain = "-".join(parts)
    scored = []
    for other in known:
        shared = len(telling & set(other.split("-")))
        ratio = difflib.SequenceMatcher(None, plain, other).ratio()
        if shared or ratio >= _ALIKE:
            scored.append((-shared, -ratio, other))
    return [other for _, _, other in sorted(scored)[:4]]
