"""Options and small readers that several commands share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

Function = TypeVar("Function", bound=Callable[..., Any])


def json_option(function: Function) -> Function:
    """`--json`: one document on stdout and nothing else."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(function)


def echo_json(document: Any) -> None:
    """Print that document."""
    click.echo(json.dumps(document, ensure_ascii=False, indent=1))


def verbosity(function: Function) -> Function:
    """`-v` and `-q`, of a command or of a group: given before a command they hold for it, too."""
    function = click.option("-v", "--verbose", is_flag=True, callback=_or_of_the_group, help="Print more.")(function)
    return click.option("-q", "--quiet", is_flag=True, callback=_or_of_the_group, help="Print only errors.")(function)


def _or_of_the_group(ctx: click.Context, param: click.Parameter, value: bool) -> bool:
    return value or (ctx.parent is not None and bool(ctx.parent.params.get(str(param.name))))


def model_option(text: str) -> Callable[[Function], Function]:
    """`--model`, with the shipped models for shells to complete."""
    return click.option("--model", metavar="NAME|FILE", shell_complete=names_of(("models",)), help=text)


def names_of(kinds: tuple[str, ...]) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    """For shells: the shipped profiles of some kinds that begin as typed, and files."""

    def complete(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:  # noqa: ARG001
        from planner.inputs.profiles import folder

        paths = (path for kind in kinds for path in (folder() / kind).glob("*.yaml"))
        found = sorted(path.stem for path in paths if path.stem.startswith(typed))
        # Files first: the script for bash forgets what stands before them, and offers them only if nothing follows.
        return [CompletionItem(typed, type="file"), *(CompletionItem(name) for name in found)]

    return complete


def trace_option(function: Function) -> Function:
    """`--trace`, repeatable."""
    return click.option(
        "--trace",
        "traces",
        multiple=True,
        metavar="FILE",
        help="A recorded trace.npz; may be given several times.",
    )(function)


def judged_work(redundant: str) -> Callable[[Function], Function]:
    """`--phase`, `--step-tokens`, `--ranks` and `--redundant-experts`: for which work a trace is judged.

    Args:
        redundant: what the last is for.
    """

    def added(function: Function) -> Function:
        function = click.option("--redundant-experts", type=click.IntRange(0), help=redundant)(function)
        ranks = click.option("--ranks", type=click.IntRange(1, 65536), help="Expert-parallel ranks; default 8.")
        tokens = click.option(
            "--step-tokens",
            type=click.IntRange(1),
            default=4096,
            show_default=True,
            help="Tokens that one step routes, over all GPUs.",
        )
        phase = click.option(
            "--phase",
            type=click.Choice(["decode", "prefill"]),
            default="decode",
            show_default=True,
            help="How a batch is imitated where the trace names no steps.",
        )
        return phase(tokens(ranks(function)))

    return added


class Quantity(click.ParamType[float]):
    """A value with a unit, such as `60 s` or `1%`."""

    def __init__(self, dimension: str, *, above_0: bool = False, below_1: bool = False) -> None:
        self.dimension, self.above_0, self.below_1 = dimension, above_0, below_1
        self.name = dimension

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse, or fail with what is expected."""
        from pydantic_core import PydanticCustomError

        from planner.inputs.units import parse_quantity

        try:
            number = parse_quantity(value, self.dimension)
        except PydanticCustomError as error:
            context = error.context or {}
            self.fail(f"{context.get('text')}; {context.get('hint')}", param, ctx)
        if number < 0:
            self.fail(f"{value}: must be 0 or more", param, ctx)
        if self.above_0 and number == 0:
            self.fail(f"{value}: must be above 0", param, ctx)
        if self.below_1 and number >= 1:
            self.fail(f"{value}: must be below 100%", param, ctx)
        if self.dimension == "fraction" and number > 1:
            self.fail(f"{value}: must be at most 100%", param, ctx)
        return number


class SplitPins(click.ParamType[dict[str, int]]):
    """`tp=1,ep=32,pp=1`."""

    name = "degrees"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, int]:
        """Parse, or fail with what is expected."""
        from planner.inputs.deployment import parse_split

        try:
            return parse_split(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class CopiesOrAuto(click.ParamType[int | str]):
    """A number of redundant experts, or `auto`."""

    name = "N|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """Parse, or fail with what is expected."""
        from planner.inputs.deployment import LIMIT_COPIES

        text = str(value).strip().lower()
        if text == "auto":
            return text
        if not (text.isascii() and text.isdecimal()) or len(text) > 20 or int(text) > LIMIT_COPIES:
            self.fail(f"{value!r}: expected a whole number from 0 to {LIMIT_COPIES:,}, or auto", param, ctx)
        return int(text)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:  # noqa: ARG002
        """As it is written, not in capitals."""
        return self.name


def options_given(*names: str) -> list[str]:
    """Those of some parameters that the command line gives, as options, even where they say what is the default."""
    from click.core import ParameterSource

    context = click.get_current_context()
    given = [name for name in names if context.get_parameter_source(name) is not ParameterSource.DEFAULT]
    spelled = {
        param.name: max(param.opts, key=len) if isinstance(param, click.Option) else param.human_readable_name
        for param in context.command.params
    }
    return [spelled[name] for name in given]


def refuse_given(names: tuple[str, ...], why: str) -> None:
    """Raise `UsageError` if the command line gives options that would be ignored, with the reason why they would."""
    given = options_given(*names)
    if given:
        raise click.UsageError(f"{', '.join(given)}: {why}")


def paths(texts: tuple[str, ...]) -> list[Path]:
    """Texts as paths."""
    return [Path(text) for text in texts]


def warn(messages: tuple[str, ...]) -> None:
    """Print warnings on stderr."""
    for message in messages:
        click.echo(f"warning: {message}", err=True)
