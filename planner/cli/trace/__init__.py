"""`ep-plan trace`: one file per subcommand."""

from __future__ import annotations

from typing import Final

import click

from planner.cli.group import LazyGroup

# Subcommand -> (module, what it does).
COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "import": ("planner.cli.trace.import_", "Turn what an engine recorded into a trace.npz, and check it."),
}


@click.group("trace", cls=LazyGroup, table=COMMANDS)
def command() -> None:
    """Record, import, check and describe routing traces."""
