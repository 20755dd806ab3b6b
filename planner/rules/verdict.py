"""One rule applied to one split, as a row of the table that people draw by hand."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """A rule with the figure examined, what it is held against, and whether it holds."""

    rule: str
    """What is examined: "attention heads"."""
    value: str
    """The figure: "64", "1536/8 = 192"."""
    limit: str
    """What it must fit: "mod tp 3", "mod 128", "at most 1024"."""
    holds: bool
    """Whether it does."""
    detail: str
    """The arithmetic, and what would mend it."""
    source: str = ""
    """The thread or the source file that the rule comes from; empty for arithmetic of the grid."""

    def __str__(self) -> str:
        return f"{self.rule}: {self.detail}" if self.detail else self.rule


def divides(rule: str, value: int, degree: str, modulus: int, source: str = "") -> Verdict:
    """Whether a degree of parallelism divides a figure of the model."""
    rest = value % modulus
    limit = f"mod {degree} {modulus}"
    return Verdict(rule, f"{value}", limit, rest == 0, f"{value} {limit} = {rest}", source)
