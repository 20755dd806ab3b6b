"""Small pieces of Markdown that all pages share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

NOT_RUN_MARK = "# not run by the tests: "
"""Begins a shell block, before the reason."""
GENERATED = "<!-- Written by docs/generate.py. Change what it is made from, then run `make docs`. -->"


def cell(text: str) -> str:
    """Text for one table cell: one line, no bare pipes."""
    return " ".join(text.split()).replace("|", "\\|")


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; nothing if there are no rows."""
    lines = ["| " + " | ".join(cell(value) for value in row) + " |" for row in rows]
    if not lines:
        return ""
    head = "| " + " | ".join(headers) + " |"
    return "\n".join([head, "|" + " --- |" * len(headers), *lines])


def code(text: str, language: str = "") -> str:
    """A fenced block."""
    return f"```{language}\n{text.rstrip()}\n```"


def first_sentence(text: str | None) -> str:
    """The first paragraph of a docstring on one line."""
    return " ".join((text or "").strip().split("\n\n")[0].split())


def anchor(title: str) -> str:
    """The link target that GitHub gives a heading."""
    kept = (character for character in title.lower() if character.isalnum() or character in " -_")
    return "".join(kept).replace(" ", "-")


def joined(blocks: Iterable[str]) -> str:
    """Blocks with one empty line between them, ending in a newline."""
    return "\n\n".join(block.strip("\n") for block in blocks if block.strip()) + "\n"
