"""Ctrl-C while a plan is made: the first keeps the best plan, the second gives up.

Before there is a plan the first gives up, too. Once there is one, it ends the work that may be ended
(`Watch.stoppable`); at any other moment it is remembered until such work begins, so that it cannot
hit between the search and the file and take the plan with it.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Final

from planner.solve.watch import GaveUpError, Watch

MESSAGE: Final = "stopping, keeping the best plan; Ctrl-C again gives up"
_CLEAR_LINE: Final = "\r\x1b[2K"


class Interrupts:
    """A watch that passes everything on to another one and handles SIGINT while it is entered."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._plan_found = self._stoppable = self._pending = False
        self._pressed = 0
        self._before: signal.Handlers | int | object = None

    def __enter__(self) -> Interrupts:
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self._pressed += 1
        if not self._plan_found:
            raise KeyboardInterrupt
        if self._pressed > 1:
            raise GaveUpError
        _say(MESSAGE)
        if self._stoppable:
            raise KeyboardInterrupt
        self._pending = True

    def begin(self, what: str, total: int) -> None:
        """A piece of work with so many parts begins."""
        self._watch.begin(what, total)

    def advance(self) -> None:
        """One part is done."""
        self._watch.advance()

    def status(self, best_s: float | None, bound_s: float) -> None:
        """The best plan's step time and the proven bound so far."""
        self._plan_found = self._plan_found or best_s is not None
        self._watch.status(best_s, bound_s)

    @contextmanager
    def stoppable(self) -> Iterator[None]:
        """Ctrl-C inside ends the work with `KeyboardInterrupt`; one that came before does so at once."""
        self._stoppable = True
        try:
            if self._pending:
                self._pending = False
                raise KeyboardInterrupt
            yield
        finally:
            self._stoppable = False


@contextmanager
def held_back() -> Iterator[None]:
    """A Ctrl-C inside takes effect at the end: for work that must not be left half done."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    pressed: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        signal.raise_signal(signal.SIGINT)


def _say(message: str) -> None:
    """One line on standard error, past all buffers: the signal may have come while one was being written."""
    clear = _CLEAR_LINE if os.isatty(2) and os.environ.get("TERM") != "dumb" else ""
    try:
        os.write(2, f"{clear}{message}\n".encode())
    except OSError:  # nobody reads it
        return
