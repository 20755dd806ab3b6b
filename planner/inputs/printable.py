"""Names that stand in files, fit to be shown in a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """Text on one line: control characters of names and values as escapes."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)
