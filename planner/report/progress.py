"""A progress bar on stderr while solving."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from planner.inputs.units import format_percent, format_seconds


class ProgressWatch:
    """Shows what is being done, the best plan and the bound; silent where stderr is no terminal."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[found]}"),
            console=console,
            transient=True,
            disable=quiet or not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=None, found="")
        self._found = ""

    def __enter__(self) -> ProgressWatch:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def begin(self, what: str, total: int) -> None:
        """A piece of work with so many parts begins."""
        self._progress.reset(self._task, description=what, total=total or None, found=self._found)

    def advance(self) -> None:
        """One part is done."""
        self._progress.advance(self._task)

    def stoppable(self) -> AbstractContextManager[None]:
        """Nothing: a progress bar ends no work."""
        return nullcontext()

    def status(self, best_s: float | None, bound_s: float) -> None:
        """The best plan's step time and the proven bound so far."""
        if best_s is None:
            return
        gap = f", gap {format_percent(1 - bound_s / best_s, 2)}" if bound_s > 0 else ""
        self._found = f"best {format_seconds(best_s)}{gap}"
        self._progress.update(self._task, found=self._found)
