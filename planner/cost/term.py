"""One part of a step's time, its speed of light, and what it rests on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from planner.inputs.efficiency import Errors
from planner.inputs.sourced import Basis


@dataclass(frozen=True)
class Term:
    """One part of a step's time, and what it rests on."""

    name: str
    seconds: float
    light_s: float
    """Speed of light: the same work at datasheet rates."""
    basis: Basis
    source: str
    errors: Errors | None = None
    """How far the constants are off on measurements that they were not fitted to; None: nobody knows."""

    def times(self, factor: float) -> Term:
        """The same part so many times over."""
        return replace(self, seconds=self.seconds * factor, light_s=self.light_s * factor)

    def named(self, name: str) -> Term:
        """The same under another name."""
        return replace(self, name=name)


NOTHING = Term("", 0.0, 0.0, "assumed", "")


def merged(terms: Sequence[Term]) -> tuple[Term, ...]:
    """Terms of the same name added up, in order of first appearance."""
    total: dict[str, Term] = {}
    for term in terms:
        known = total.get(term.name)
        if known is None:
            total[term.name] = term
        else:
            seconds, light = known.seconds + term.seconds, known.light_s + term.light_s
            total[term.name] = replace(known, seconds=seconds, light_s=light)
    return tuple(total.values())
