"""`ep-plan`: the commands, loaded one by one when they are called, and the one error boundary."""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any, Final

import click

from planner import __version__
from planner.errors import PlannerError

# Command -> (module, what it does). Modules are imported only when needed: help stays fast.
COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "solve": ("planner.cli.solve", "Find the best split and placement; write plan.json; print the report."),
    "check": ("planner.cli.check", "Re-derive every rule and figure of plans; validate deployments."),
    "compare": ("planner.cli.compare", "Score plans and baselines on a trace, window by window."),
    "show": ("planner.cli.show", "Print the report of a plan."),
    "profiles": ("planner.cli.profiles", "List and show the shipped GPUs, nodes, fabrics, models, engines."),
    "topology": ("planner.cli.topology", "Make a topology.yaml from what other tools say about a machine."),
    "env": ("planner.cli.env", "Versions and devices, to paste into an issue."),
}
CONTEXT: Final = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class Commands(click.Group):
    """A group whose commands are imported on demand; the list of them needs no import."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import the module of a command."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(COMMANDS[cmd_name][0])
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the table of commands into the help."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=Commands, context_settings=CONTEXT)
@click.version_option(__version__, "--version", prog_name="ep-plan")
def cli() -> None:
    """Placement and capacity planning for Mixture-of-Experts models.

    \b
    ep-plan solve examples/tiny-moe/deployment.yaml
    """


def run() -> None:
    """Entry point: expected failures become one message and an exit code, bugs keep their traceback."""
    sys.exit(call(sys.argv[1:]))


def call(arguments: list[str]) -> int:
    """Run a command line and return its exit code."""
    as_json = "--json" in arguments
    try:
        code = cli.main(arguments, prog_name="ep-plan", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except PlannerError as error:
        _report(error, as_json)
        return error.exit_code
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return 2
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted; nothing was written", err=True)
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader has gone (`| head`): no further complaint
        return 0


def _report(error: PlannerError, as_json: bool) -> None:
    click.echo(str(error), err=True)
    if as_json:
        click.echo(json.dumps(_as_data(error), ensure_ascii=False, indent=1))


def _as_data(error: PlannerError) -> dict[str, Any]:
    problems = []
    for problem in error.problems:
        where = problem.where
        problems.append(
            {
                "message": problem.message,
                "hint": problem.hint,
                "file": where.file if where else None,
                "line": where.line if where else None,
                "column": where.column if where else None,
                "key": where.key if where else None,
            }
        )
    return {"schema": "ep-plan/error/1", "exit_code": error.exit_code, "problems": problems}
