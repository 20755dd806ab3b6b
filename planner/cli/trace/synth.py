"""`ep-plan trace synth`: synthetic routing with stated figures, or like a recorded trace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from planner.cli.options import Quantity, options_given, verbosity, warn


class Correlation(click.ParamType[float]):
    """A correlation from 0 to 1, or a word that stands for one."""

    def __init__(self, **words: float) -> None:
        self._words = words
        self.name = "|".join([*words, "0..1"])

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse, or fail with what is expected."""
        try:
            number = self._words[value] if value in self._words else float(value)
        except ValueError:
            number = -1.0
        if not 0 <= number <= 1:
            expected = ", ".join([*self._words, "a correlation from 0 to 1"])
            self.fail(f"{value!r}: expected {expected}", param, ctx)
        return number


@click.command("synth")
@click.option(
    "--like", metavar="TRACE", type=click.Path(path_type=Path), help="Fit to this trace instead of stated figures."
)
@click.option("--experts", type=click.IntRange(1, 1 << 16), default=64, show_default=True, help="Logical experts.")
@click.option("--top-k", type=click.IntRange(1, 1 << 10), default=8, show_default=True, help="Experts per token.")
@click.option("--layers", type=click.IntRange(1, 10_000), default=8, show_default=True, help="MoE layers.")
@click.option(
    "--tokens", type=click.IntRange(16, 1 << 27), default=65_536, show_default=True, help="Length of the trace."
)
@click.option("--length", type=click.IntRange(1, 1 << 20), default=256, show_default=True, help="Tokens of a sequence.")
@click.option(
    "--skew",
    type=float,
    default=4.0,
    show_default=True,
    help="Hottest expert over the mean one, in one domain at one time.",
)
@click.option("--domains", type=click.IntRange(1, 1024), default=4, show_default=True, help="Kinds of text.")
@click.option(
    "--domain-correlation",
    type=Correlation(),
    default=0.5,
    show_default=True,
    help="How alike the loads of domains are.",
)
@click.option(
    "--order",
    type=click.Choice(["mixed", "blocks"]),
    default="mixed",
    show_default=True,
    help="Domains take turns, or come one after the other.",
)
@click.option(
    "--drift",
    type=Correlation(none=1.0, slow=0.99, fast=0.8),
    default="none",
    show_default=True,
    help="How alike loads stay from one sixteenth of the trace to the next; slow is 0.99, fast 0.8.",
)
@click.option(
    "--lift",
    type=float,
    default=2.0,
    show_default=True,
    help="How much more often partners are chosen together than by chance; 1: none.",
)
@click.option(
    "--persistence",
    type=Quantity("fraction"),
    default="50%",
    show_default=True,
    help="Chance that a token keeps the topic of the one before.",
)
@click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Another one, another trace."
)
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("trace.npz"), show_default=True)
@verbosity
def command(
    like: Path | None,
    seed: int,
    output: Path,
    order: str,
    verbose: bool,  # noqa: ARG001 - there is nothing more to say
    quiet: bool,
    **figures: Any,
) -> None:
    """Write a synthetic trace with stated skew, domains, drift and co-activation, or one like a recorded trace.

    Like a recorded trace: the same loads, domains, drift and affinity, but drawn anew, so that a problem can be
    shared without the recording. The same options give the same file.

    \b
    ep-plan trace synth --experts 128 --skew 6 --drift slow -o synthetic.npz
    ep-plan trace synth --like trace.npz -o shareable.npz
    """
    from planner.files import check_target, refuse_overwriting
    from planner.inputs.units import format_number_of
    from planner.trace.native import read_trace
    from planner.trace.synthesis.fitted import routing_like
    from planner.trace.synthesis.routing import write_trace
    from planner.trace.synthesis.stated import Stated, routing_of

    check_target(output)
    if like is None:
        routing = routing_of(Stated(**figures, mixed=order == "mixed", seed=seed))
    else:
        refuse_overwriting(output, [like])
        _nothing_else_given()
        read = read_trace(like)
        if not quiet:
            warn(read.warnings)
        routing = routing_like(read.trace)
    tokens = write_trace(routing, output, seed)
    if not quiet:
        layers = format_number_of(len(routing.layer_ids_L), "layer")
        experts = format_number_of(routing.num_experts, "expert")
        click.echo(f"wrote {output}: {tokens:,} tokens, {layers}, {experts}", err=True)


def _nothing_else_given() -> None:
    """With --like the figures come from the trace: saying them as well is a mistake."""
    from planner.errors import UsageError

    free = {"like", "seed", "output", "verbose", "quiet"}
    names = (str(param.name) for param in click.get_current_context().command.params if param.name not in free)
    given = options_given(*names)
    if given:
        raise UsageError(f"{', '.join(given)} cannot be given with --like", hint="its figures come from the trace")
