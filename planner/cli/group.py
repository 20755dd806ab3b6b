"""A group of commands that are imported one by one, when they are called."""

from __future__ import annotations

import copy
import importlib
import inspect
from collections.abc import Mapping

import click


def examples_apart(text: str | None) -> tuple[str | None, str | None]:
    """A help text without its last paragraph of command lines (`\\b`), and these, to stand after the options."""
    told, mark, examples = inspect.cleandoc(text or "").rpartition("\n\n\b\n")
    if not mark:
        return text, None
    indented = "\n".join(f"  {line}" for line in examples.splitlines())
    return told, f"\b\nExamples:\n{indented}"


class LazyGroup(click.Group):
    """A group made from a table: command -> (module, what it does).

    Listing the commands imports none of them, so that help stays fast. Each module has its `command`.
    """

    def __init__(self, *args: object, table: Mapping[str, tuple[str, str]] | None = None, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]  # click's own arguments, passed on
        self.table = dict(table or {})
        self.help, self.epilog = examples_apart(self.help)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Names in the order of the table."""
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import the module of a command."""
        if cmd_name not in self.table:
            return None
        module = importlib.import_module(self.table[cmd_name][0])
        command: click.Command = copy.copy(module.command)
        if command.epilog is None:
            command.help, command.epilog = examples_apart(command.help)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the table of commands into the help."""
        if self.table:
            with formatter.section("Commands"):
                formatter.write_dl([(name, text) for name, (_, text) in self.table.items()])
