"""`ep-plan`: the commands, loaded one by one when they are called, and the one error boundary."""

from __future__ import annotations

import errno
import signal
import sys
from collections.abc import Sequence
from typing import Any, Final

import click

from planner import __version__
from planner.cli.group import LazyGroup
from planner.cli.options import echo_json, verbosity
from planner.cli.streams import discard, steady_output
from planner.errors import InputError, MissingEnvironmentError, PlannerError, Problem

# Command -> (module, what it does). Modules are imported only when needed: help stays fast.
COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "solve": ("planner.cli.solve", "Find the best split and placement; write plan.json; print the report."),
    "check": ("planner.cli.check", "Re-derive every rule and figure of plans; validate deployments."),
    "compare": ("planner.cli.compare", "Score plans and baselines on a trace, window by window."),
    "size": ("planner.cli.size", "Find the fewest nodes that reach a throughput, and why one less does not do."),
    "what-if": ("planner.cli.what_if", "Change inputs of a plan, solve again, show only what changes; sweeps."),
    "replan": ("planner.cli.replan", "Move few experts of a plan for recent routing, if that pays."),
    "advise": ("planner.cli.advise", "Is balancing worth it, how often, and is the plan in force still good?"),
    "export": ("planner.cli.export", "Write what an engine loads, permuted checkpoints and launch lines."),
    "lint-launch": ("planner.cli.lint_launch", "Tell what an engine would refuse, ignore or change in a command."),
    "validate": ("planner.cli.validate", "Run a plan's ranks, replay its routing, judge counts, results, times."),
    "probe": ("planner.cli.probe", "Measure this machine or a cluster; write a topology file."),
    "show": ("planner.cli.show", "Print the report of a plan."),
    "profiles": ("planner.cli.profiles", "List and show the shipped GPUs, nodes, fabrics, models, engines."),
    "trace": ("planner.cli.trace", "Record, import, check and describe routing traces."),
    "topology": ("planner.cli.topology", "Make a topology.yaml from what other tools say about a machine."),
    "completion": ("planner.cli.completion", "Print what bash, zsh or fish need to complete commands."),
    "env": ("planner.cli.env", "Versions and devices, to paste into an issue."),
}
_WRITING: Final = {"solve", "what-if", "replan", "export", "validate", "probe", "import", "record", "split", "synth"}
"""Commands, also in groups, that would have written a file."""
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
CONTEXT: Final = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(cls=LazyGroup, table=COMMANDS, context_settings=CONTEXT)
@click.version_option(__version__, "--version", prog_name="ep-plan")
@verbosity
def cli(**_: bool) -> None:
    """Placement and capacity planning for Mixture-of-Experts models.

    \b
    ep-plan solve examples/tiny-moe/deployment.yaml
    """


def run() -> None:
    """Entry point: expected failures become one message and an exit code, bugs keep their traceback."""
    steady_output()
    code = call(sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is done: a Ctrl-C while Python ends changes nothing
    sys.exit(code)


def call(arguments: list[str]) -> int:
    """Run a command line and return its exit code."""
    problems: Sequence[Problem]
    words = [word for word in arguments if not word.startswith("-")]
    writes = not _WRITING.isdisjoint(words[:2])
    data: dict[str, Any] = {}
    try:
        code = cli.main(arguments, prog_name="ep-plan", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except PlannerError as error:
        tail = "" if not isinstance(error, InputError) else "; nothing was written." if writes else "."
        click.echo(f"{error}{tail}", err=True)
        exit_code, problems, data = error.exit_code, error.problems, error.data
    except click.ClickException as error:
        error.show()
        exit_code, problems = 2, (Problem(error.format_message()),)
    except (click.Abort, KeyboardInterrupt) as error:
        exit_code, problems = 130, (Problem(_interrupted(error, writes)),)
        click.echo(problems[0].message, err=True)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        discard(sys.stdout.fileno())
        click.echo(f"error: cannot write the output: {error.strerror}", err=True)
        return MissingEnvironmentError.exit_code
    if "--json" in arguments:
        try:
            echo_json(_as_data(exit_code, problems) | data)
        except OSError:  # stderr has told it
            discard(sys.stdout.fileno())
    return exit_code


def _interrupted(error: BaseException, writes: bool) -> str:
    """What to say after Ctrl-C: what the command itself says was kept, or that nothing was written."""
    if isinstance(error, KeyboardInterrupt) and str(error):
        return str(error)
    return "interrupted; nothing was written" if writes else "interrupted"


def _as_data(exit_code: int, all_problems: Sequence[Problem]) -> dict[str, Any]:
    problems = []
    for problem in all_problems:
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
    return {"schema": "ep-plan/error/1", "exit_code": exit_code, "problems": problems}
