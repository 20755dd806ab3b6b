"""docs/commands.md: every command with its options, from the click commands themselves."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from itertools import groupby
from pathlib import PurePath
from typing import Final

import click

from pages.markdown import GENERATED, NOT_RUN_MARK, code, first_sentence, joined, table
from planner.cli.main import COMMANDS
from planner.errors import PlannerError

INTRO = """\
Results go to stdout; progress, warnings and `wrote plan.json` go to stderr. With `--json` stdout holds one
document and nothing else. No command asks questions; `NO_COLOR` is honoured. A file is written under a
temporary name and renamed, so it is whole or not there. `ep-plan --version` prints the version, and
`python -m planner` is the same as `ep-plan`.

The examples of this page can be tried in an empty folder, beside the `examples/` of a checkout, after this:"""
SET_UP = """\
cp examples/decode-two-nodes/* . && mv plan.golden.json plan.json
cp deployment.yaml decode.yaml
sed 's/phase: decode, tokens_per_gpu: 64/phase: prefill, tokens_per_gpu: 4096/' deployment.yaml > prefill.yaml
ep-plan trace synth --like trace.npz --seed 1 -o today.npz
ep-plan trace synth --like trace.npz --seed 2 -o held-out.npz
ep-plan export plan.json --to sglang -o map.json
mkdir serving && cp -r examples/mixtral-4gpu serving/"""
NOT_RUN: Final = {
    "--to checkpoint --weights": "needs the weights of a model",
    "validate plan.json --against": "needs GPUs",
    "probe -o topology.yaml": "needs GPUs",
    "trace record": "needs the weights of a model",
    "trace import": "needs what an engine recorded",
    "topology import topo.txt": "needs what `nvidia-smi topo -m` printed",
    "topology import /etc": "needs Slurm",
    "completion zsh": "needs zsh",
    "completion fish": "needs fish",
}
"""Parts of examples that the tests cannot run, each with the reason."""


def page() -> str:
    """The whole page."""
    listing = [(f"[`ep-plan {name}`](#ep-plan-{name})", text) for name, (_, text) in COMMANDS.items()]
    blocks = [GENERATED, "# Commands", INTRO, code(SET_UP, "bash"), table(("command", "does"), listing), *_exit_codes()]
    for name, (module, _) in COMMANDS.items():
        blocks += _command(name, importlib.import_module(module).command)
    return joined(blocks)


def _exit_codes() -> Iterator[str]:
    yield "## Exit codes"
    rows = {
        0: "Done; also a feasible plan when a limit stopped the search (the gap is printed).",
        1: "A bug in ep-plan: the traceback is shown.",
        130: "Interrupted with nothing to keep.",
    }
    rows |= {error.exit_code: first_sentence(error.__doc__) for error in PlannerError.__subclasses__()}
    yield table(("code", "meaning"), ((str(code), rows[code]) for code in sorted(rows)))


def _command(name: str, command: click.Command) -> Iterator[str]:
    yield f"## ep-plan {name}"
    arguments = [p for p in command.params if isinstance(p, click.Argument)]
    options = [p for p in command.params if isinstance(p, click.Option)]
    if isinstance(command, click.Group):
        yield from _group(name, command)
        return
    with click.Context(command, info_name=f"ep-plan {name}") as context:
        usage = " ".join(["ep-plan", name, "[OPTIONS]", *(a.make_metavar(context) for a in arguments)])
        yield code(usage)
        yield from _paragraphs(command.help or "")
        yield from _examples(command)
        rows = [_option(option, context) for option in options]
    rows.append(("`-h`, `--help`", "", "Show the help and exit."))
    yield table(("option", "value", "meaning"), rows)


def _group(name: str, group: click.Group) -> Iterator[str]:
    """What a group is for, and each of its commands."""
    yield from _paragraphs(group.help or "")
    yield from _examples(group)
    with click.Context(group, info_name=f"ep-plan {name}") as context:
        for inner in group.list_commands(context):
            command = group.get_command(context, inner)
            assert command is not None
            yield from _command(f"{name} {inner}", command)


def _paragraphs(help_text: str) -> Iterator[str]:
    """The help of a command; paragraphs that click must not wrap are examples."""
    for paragraph in inspect.cleandoc(help_text).split("\n\n"):
        if paragraph.startswith("\b"):
            yield from _run_or_not(paragraph.removeprefix("\b").strip("\n"))
        else:
            yield paragraph


def _examples(command: click.Command) -> Iterator[str]:
    """Command lines that stand after the options."""
    if command.epilog:
        yield from _run_or_not(inspect.cleandoc(command.epilog.partition("Examples:\n")[2]))


def _run_or_not(examples: str) -> Iterator[str]:
    """Command lines as blocks: those that the tests run, and those that they do not, by reason."""
    for reason, lines in groupby(examples.splitlines(), _why_not):
        script = "\n".join(lines)
        yield code(f"{NOT_RUN_MARK}{reason}\n{script}", "shell") if reason else code(script, "bash")


def _why_not(line: str) -> str:
    return next((reason for part, reason in NOT_RUN.items() if part in line), "")


def _option(option: click.Option, context: click.Context) -> tuple[str, str, str]:
    names = ", ".join(f"`{name}`" for name in option.opts)
    meaning = option.help or ""
    default = option.default
    if option.show_default and isinstance(default, str | int | float | PurePath) and not option.is_flag:
        meaning = f"{meaning} Default: `{default}`.".lstrip()
    return names, "" if option.is_flag else _value(option, context), meaning


def _value(option: click.Option, context: click.Context) -> str:
    kind = option.type
    if isinstance(kind, click.IntRange):
        upper = "" if kind.max is None else f"{kind.max}"
        return f"whole number, {kind.min}..{upper}" if upper else f"whole number, {kind.min} or more"
    repeatable = ", repeatable" if option.multiple else ""
    return f"`{option.make_metavar(context)}`{repeatable}"
