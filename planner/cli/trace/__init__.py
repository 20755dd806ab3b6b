"""`ep-plan trace`: one file per subcommand."""

from __future__ import annotations

from typing import Final

import click

from planner.cli.group import LazyGroup

# Subcommand -> (module, what it does).
COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "record": ("planner.cli.trace.record", "Record the routing of a Hugging Face model on text files."),
    "import": ("planner.cli.trace.import_", "Turn what an engine recorded into a trace.npz, and check it."),
    "info": ("planner.cli.trace.info", "Describe a trace: skew, drift, domains, co-activation, verdict."),
    "split": ("planner.cli.trace.split", "Part a trace for planning and for judging: by time, sequence or domain."),
    "synth": ("planner.cli.trace.synth", "Write a synthetic trace with stated figures, or like a recorded one."),
}


@click.group("trace", cls=LazyGroup, table=COMMANDS)
def command() -> None:
    """Record, import, check and describe routing traces.

    \b
    ep-plan trace info trace.npz
    """
