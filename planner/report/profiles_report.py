"""The shipped profiles as text and as data."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from planner.errors import UsageError
from planner.inputs import profiles
from planner.inputs.strict_yaml import read_yaml

_KINDS: Final[tuple[profiles.Kind, ...]] = ("gpus", "nodes", "models", "engines", "kernels")


def profile_listing() -> dict[str, list[str]]:
    """Names by kind."""
    return {kind: profiles.names(kind) for kind in _KINDS}


def _paths(name: str) -> list[Path]:
    found = [profiles.path_of(kind, name) for kind in _KINDS if name in profiles.names(kind)]
    if not found:
        known = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in profile_listing().items())
        raise UsageError(f"no profile is called {name!r}", hint=known)
    return found


def profile_text(name: str) -> str:
    """The profile as it is written, sources and comments included."""
    return "".join(path.read_text(encoding="utf-8") for path in _paths(name))


def profile_data(name: str) -> Any:
    """The profile as data."""
    return read_yaml(_paths(name)[0]).data
