"""`ep-plan size`: the fewest nodes that do what is wanted."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import click

from planner.cli.options import Quantity, echo_json, json_option, trace_option, verbosity, warn

if TYPE_CHECKING:
    from planner.capacity.size import Kind, Wanted
    from planner.inputs.deployment import Deployment
    from planner.report.size_report import Rates

_NUMBER: Final = r"\s*(\d+(?:\.\d+)?(?:[eE]\d{1,2})?)\s*"


class TokenRate(click.ParamType[float]):
    """`20000 tok/s`."""

    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse, or fail with what is expected."""
        found = re.fullmatch(_NUMBER + r"(k?)\s*(?:tok|tokens)/s\s*", str(value))
        if found is None or float(found[1]) <= 0:
            self.fail(f'{value!r}: expected a rate such as "20000 tok/s" or "20k tok/s"', param, ctx)
        return float(found[1]) * (1000 if found[2] else 1)


class PerSecond(click.ParamType[float]):
    """`5/s`."""

    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse, or fail with what is expected."""
        found = re.fullmatch(_NUMBER + r"/\s*s\s*", str(value))
        if found is None or float(found[1]) <= 0:
            self.fail(f'{value!r}: expected requests per second such as "5/s"', param, ctx)
        return float(found[1])


class PerGpu(click.ParamType[tuple[str, float]]):
    """`h100-sxm=2.50/h` or `gpu=700 W`."""

    def __init__(self, unit: str, example: str) -> None:
        self.name, self.unit, self.example = "GPU=VALUE", unit, example

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, float]:
        """Parse, or fail with what is expected."""
        found = re.fullmatch(r"\s*([A-Za-z0-9._-]+)\s*=" + _NUMBER + self.unit + r"\s*", str(value))
        if found is None:
            self.fail(f"{value!r}: expected such as {self.example}", param, ctx)
        return found[1], float(found[2])


@click.command("size")
@click.argument("deployment", type=click.Path(path_type=Path))
@click.option("--target", type=TokenRate(), help='Throughput to reach, e.g. "20000 tok/s".')
@click.option("--concurrency", type=click.IntRange(1), metavar="N", help="Sequences to serve at the same time.")
@click.option("--max-step", type=Quantity("time", above_0=True), help='Longest time per output token, e.g. "50 ms".')
@click.option(
    "--max-ttft", type=Quantity("time", above_0=True), help='Longest time to the first token, e.g. "2 s" (of prefill).'
)
@click.option("--catalogue", multiple=True, metavar="NODE|FILE", help="Kinds of nodes; default: the deployment's own.")
@click.option("--max-nodes", type=click.IntRange(1, 4096), default=16, show_default=True, help="Look at no more nodes.")
@click.option(
    "--price", "prices", multiple=True, type=PerGpu("/h", "gpu=2.50/h"), help="Price of a GPU, e.g. gpu=2.50/h."
)
@click.option("--watts", "powers", multiple=True, type=PerGpu("W", "gpu=700 W"), help="Power of a GPU, e.g. gpu=700 W.")
@click.option(
    "--least",
    type=click.Choice(["gpus", "cost", "watts"]),
    help="What to keep least among kinds; default: cost with --price, else watts with --watts, else gpus.",
)
@click.option("--prefill", type=click.Path(path_type=Path), help="Size a pair: this is prefill, DEPLOYMENT decode.")
@click.option("--input-tokens", type=click.IntRange(1, 10**8), metavar="N", help="Of a request, with --prefill.")
@click.option("--output-tokens", type=click.IntRange(1, 10**8), metavar="N", help="Of a request, with --prefill.")
@click.option("--rate", type=PerSecond(), help='Requests, e.g. "5/s", with --prefill.')
@click.option("--plot", type=click.Path(path_type=Path), help="Draw throughput per GPU against time per token.")
@click.option("--dask", metavar="ADDRESS", help="Plan on the workers of this Dask scheduler.")
@trace_option
@json_option
@verbosity
def command(
    deployment: Path,
    traces: tuple[str, ...],
    as_json: bool,
    verbose: bool,  # noqa: ARG001
    quiet: bool,
    **given: Any,
) -> int:
    """Find the fewest nodes with which DEPLOYMENT reaches a throughput, or serves so many sequences.

    Node counts rise from one until a plan does what is wanted; for each kind of node the reason is told why one
    node less does not do. With --prefill both phases are sized as a pair, and compared with one machine for both.

    \b
    ep-plan size deployment.yaml --target "20000 tok/s" --max-step "50 ms" --catalogue hgx-h100 --catalogue hgx-h200
    ep-plan size decode.yaml --prefill prefill.yaml --input-tokens 2000 --output-tokens 500 --rate 5/s
    """
    from planner.capacity.size import Wanted, kinds_of, refuse_unjoined
    from planner.cost.prepare import load
    from planner.files import refuse_overwriting
    from planner.inputs.deployment import Overrides
    from planner.report.plots import check_plot
    from planner.report.size_report import Rates

    _refuse(given)
    if given["plot"] is not None:
        check_plot(given["plot"])
    loaded = load(deployment, Overrides(traces=traces))
    if given["plot"] is not None:
        refuse_overwriting(given["plot"], loaded.read_paths)
    if not quiet:
        warn(loaded.warnings)
    kinds = kinds_of(loaded, given["catalogue"])
    if given["prefill"] is not None:
        refuse_unjoined(kinds)  # the KV cache moves from one machine to another
    elif given["max_nodes"] > 1:
        refuse_unjoined(kinds, "or look at one node alone, with --max-nodes 1")
    _of_these_gpus(given, kinds)
    rates = Rates(dict(given["prices"]), dict(given["powers"]))
    shown = Shown(as_json=as_json, quiet=quiet)
    if given["prefill"] is not None:
        return _pair(loaded, kinds, given, shown)
    if given["max_ttft"] is not None and loaded.workload.phase == "decode":
        raise click.UsageError("--max-ttft limits prefill, and DEPLOYMENT is decode: give both phases, with --prefill")
    wanted = Wanted(given["target"], given["concurrency"], given["max_step"], given["max_ttft"])
    return _size(loaded, kinds, wanted, rates, given, shown)


@dataclass(frozen=True)
class Shown:
    """What goes to stdout."""

    as_json: bool
    quiet: bool


def _size(
    loaded: Deployment, kinds: list[Kind], wanted: Wanted, rates: Rates, given: dict[str, Any], shown: Shown
) -> int:
    from planner.capacity.size import size
    from planner.files import write_whole
    from planner.report.plots import picture
    from planner.report.progress import ProgressWatch
    from planner.report.size_report import front_plot, render_sizes, sizes_json
    from planner.report.style import console

    with ProgressWatch(console(stderr=True), quiet=shown.quiet) as progress:
        found = size(loaded, kinds, wanted, given["max_nodes"], progress, given["dask"])
    least: Literal["gpus", "cost", "watts"] = given["least"] or _default(rates)
    if given["plot"] is not None:
        write_whole(given["plot"], picture(*front_plot(found), given["plot"].suffix))
    if shown.as_json:
        echo_json(sizes_json(found, rates, least))
    elif not shown.quiet:
        render_sizes(found, rates, least, console())
    if given["plot"] is not None and not shown.quiet:
        click.echo(f"wrote {given['plot']}", err=True)
    return _exit_code(all(answer.point is None for answer in found.answers))


def _pair(loaded: Deployment, kinds: list[Kind], given: dict[str, Any], shown: Shown) -> int:
    from planner.capacity.pair import Requests, pair
    from planner.cost.prepare import load
    from planner.report.progress import ProgressWatch
    from planner.report.size_report import pairs_json, render_pairs
    from planner.report.style import console

    first = load(given["prefill"])
    if (first.workload.phase, loaded.workload.phase) != ("prefill", "decode"):
        raise click.UsageError("--prefill needs a deployment with phase: prefill, DEPLOYMENT phase: decode")
    asked = Requests(given["input_tokens"], given["output_tokens"], given["rate"], given["max_step"], given["max_ttft"])
    with ProgressWatch(console(stderr=True), quiet=shown.quiet) as progress:
        pairs = pair(first, loaded, kinds, asked, given["max_nodes"], progress, given["dask"])
    if shown.as_json:
        echo_json(pairs_json(pairs))
    elif not shown.quiet:
        render_pairs(pairs, console())
    apart = any(one.prefill.point is not None and one.decode.point is not None for one in pairs)
    return _exit_code(not apart and all(one.aggregated.point is None for one in pairs))


def _exit_code(nothing_does: bool) -> int:
    """4 where no count that was looked at does what is wanted."""
    from planner.errors import InfeasibleError

    return InfeasibleError.exit_code if nothing_does else 0


def _default(rates: Rates) -> Literal["gpus", "cost", "watts"]:
    return "cost" if rates.per_hour else "watts" if rates.watts else "gpus"


def _of_these_gpus(given: dict[str, Any], kinds: list[Kind]) -> None:
    """Prices and powers are of GPUs that are looked at; some of them may have none.

    Raises:
        UsageError: others are named, such as a node, or one twice; all of them at once.
    """
    from planner.errors import Place, Problem, UsageError
    from planner.inputs.profiles import names
    from planner.inputs.topology import load_node

    twice = [
        Problem(f"the GPU {name} has two values", Place(option))
        for option, pairs in (("--price", given["prices"]), ("--watts", given["powers"]))
        for name in dict.fromkeys(name for name, _ in pairs)
        if [other for other, _ in pairs].count(name) > 1
    ]
    if twice:
        raise UsageError.of(twice)
    gpu_of = {kind.name: kind.of(1).gpu.name for kind in kinds}
    known = list(dict.fromkeys([*gpu_of.values(), "gpu"]))
    problems = []
    for option, pairs in (("--price", given["prices"]), ("--watts", given["powers"])):
        for name in dict.fromkeys(name for name, _ in pairs if name not in known):
            hint = f"expected one of: {', '.join(known[:-1])}; or gpu, which stands for any other"
            if name in gpu_of or name in names("nodes"):
                hint = f"that is a node, its GPUs are {gpu_of.get(name) or load_node(name).gpu}\n{hint}"
            problems.append(Problem(f"none of the nodes looked at has a GPU {name}", Place(option), hint))
    if problems:
        raise UsageError.of(problems)


def _refuse(given: dict[str, Any]) -> None:
    """Options that go together, and those that do not."""
    of_pair = {name: given[name] for name in ("input_tokens", "output_tokens", "rate")}
    if given["prefill"] is None:
        if given["target"] is None and given["concurrency"] is None:
            raise click.UsageError("nothing is wanted: give --target or --concurrency")
        if any(value is not None for value in of_pair.values()):
            raise click.UsageError("--input-tokens, --output-tokens and --rate go with --prefill")
    elif any(value is None for value in of_pair.values()):
        raise click.UsageError("--prefill needs --input-tokens, --output-tokens and --rate")
    elif given["target"] is not None or given["concurrency"] is not None:
        raise click.UsageError("with --prefill the rate says what is wanted: leave --target and --concurrency out")
    elif given["plot"] is not None or given["prices"] or given["powers"] or given["least"]:
        raise click.UsageError("--plot, --price, --watts and --least do not go with --prefill")
    missing = {"cost": not given["prices"], "watts": not given["powers"]}
    if missing.get(given["least"] or ""):
        raise click.UsageError(f"--least {given['least']} needs --{'price' if given['least'] == 'cost' else 'watts'}")
