"""One command line, judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from planner.export.lint import sglang, tensorrt_llm, vllm
from planner.export.lint.arithmetic import About, Grid
from planner.export.lint.command import Command, EngineName, Parsed, Remark, command_of

_LINTS: Final[dict[EngineName, Callable[[Command, About], tuple[Parsed, Grid]]]] = {
    "vllm": vllm.lint,
    "sglang": sglang.lint,
    "tensorrt-llm": tensorrt_llm.lint,
}
VERSIONS: Final[dict[EngineName, str]] = {"vllm": "0.33.0", "sglang": "0.5.23", "tensorrt-llm": "1.3"}


@dataclass(frozen=True)
class Linted:
    """What the engine makes of a command."""

    engine: EngineName
    version: str
    grid: Grid
    remarks: tuple[Remark, ...]
    not_examined: tuple[str, ...]
    """Flags that are not known here, and what could not be judged for lack of a model or a topology."""

    @property
    def is_good(self) -> bool:
        """Whether it starts, and does what it says."""
        return all(remark.level == "note" for remark in self.remarks)


def lint_command(command: Command, about: About) -> Linted:
    """Judge a command that was taken apart already."""
    found, grid = _LINTS[command.engine](command, about)
    missing = [] if about.model else ["heads, widths, experts and groups (give --model)"]
    missing += [] if about.topology else ["GPUs and nodes (give --topology)"]
    unknown = tuple(dict.fromkeys(found.unknown))
    return Linted(command.engine, VERSIONS[command.engine], grid, tuple(found.remarks), (*unknown, *missing))


def lint_text(text: str, about: About) -> Linted:
    """Judge a line of shell; raises `UsageError` if no known engine is started in it."""
    return lint_command(command_of(text), about)
