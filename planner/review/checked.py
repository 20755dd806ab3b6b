"""What a check of one file found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from planner.errors import PlannerError
from planner.review.compare_golden import Compared
from planner.review.map_doctor import Balance


@dataclass(frozen=True)
class Checked:
    """One file and what was found in it."""

    path: Path
    kind: str
    findings: tuple[str, ...] = ()
    error: PlannerError | None = None
    notes: tuple[str, ...] = ()
    """What else there is to say."""
    balance: Balance | None = None
    """How a map balances on a trace."""
    summary: str = ""
    """What is good about it, in a few words."""
    compared: Compared | None = None
    """How a deployment's plan stands against its golden plan."""
    seconds: float = 0.0
    """How long the check took."""

    @property
    def all_findings(self) -> tuple[str, ...]:
        """Everything that is wrong, the golden plan included."""
        return (*self.findings, *(self.compared.findings if self.compared else ()))

    @property
    def all_notes(self) -> tuple[str, ...]:
        """Everything else there is to say."""
        return (*self.notes, *(self.compared.notes if self.compared else ()))

    @property
    def is_good(self) -> bool:
        """Whether nothing is wrong."""
        return not self.all_findings and self.error is None
