"""Who looks on while solving, and may end it: a progress bar, Ctrl-C, or nobody."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class GaveUpError(KeyboardInterrupt):
    """Ctrl-C for the second time: the best plan is not wanted either."""


class Watch(Protocol):
    """Who looks on while solving."""

    def begin(self, what: str, total: int) -> None:
        """A piece of work with so many parts begins."""

    def advance(self) -> None:
        """One part is done."""

    def status(self, best_s: float | None, bound_s: float) -> None:
        """The best plan's step time and the proven bound so far."""

    def stoppable(self) -> AbstractContextManager[None]:
        """Work that may be ended by `KeyboardInterrupt` with the best plan so far as answer."""


class NoWatch:
    """Nobody looks on."""

    def begin(self, what: str, total: int) -> None:
        """Nothing."""

    def advance(self) -> None:
        """Nothing."""

    def status(self, best_s: float | None, bound_s: float) -> None:
        """Nothing."""

    def stoppable(self) -> AbstractContextManager[None]:
        """Nothing."""
        return nullcontext()
