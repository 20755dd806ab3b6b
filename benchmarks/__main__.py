"""`python -m benchmarks [NAME...] [--data FOLDER]`: runs the benchmarks and prints their tables."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

import click
from rich.console import Console

from benchmarks import (
    affinity,
    bounds,
    calibration,
    ceiling,
    drift,
    generalisation,
    held_out,
    nearest,
    pairs,
    predictions,
    replanning,
    routing,
    scale,
    scaling,
    speed,
    traces,
)
from benchmarks.accuracy import page as accuracy

_ALL = {
    "speed": speed.run,
    "held-out": held_out.run,
    "generalisation": generalisation.run,
    "ceiling": ceiling.run,
    "affinity": affinity.run,
    "nearest": nearest.run,
    "bounds": bounds.run,
    "scale": scale.run,
    "scaling": scaling.run,
    "drift": drift.run,
    "routing": routing.run,
    "replanning": replanning.run,
    "predictions": predictions.run,
    "pairs": pairs.run,
    "calibration": calibration.run,
}
_NAMES = [*_ALL, "traces", "accuracy"]


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(_NAMES))
@click.option(
    "--data",
    envvar="EP_PLAN_DATA",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of recorded traces and measurements (benchmarks/README.md names the files).",
)
@click.option("--fit", is_flag=True, help="Of `accuracy`: write the fitted curves into profiles/.")
@click.option("--tokens", type=click.IntRange(1000), default=200_000, show_default=True, help="Tokens of `traces`.")
def main(names: tuple[str, ...], data: Path | None, fit: bool, tokens: int) -> None:
    """Run the named benchmarks, or all."""
    console = Console(width=140, highlight=False)
    versions = f"Python {platform.python_version()}, numpy {version('numpy')}, ortools {version('ortools')}"
    console.print(f"{os.cpu_count()} cores, {platform.machine()}, {versions}\n")
    for name in names or _NAMES:
        if name == "traces":
            traces.run_with(tokens, console)
        elif name == "accuracy":
            accuracy.run(data, console, write_fits=fit)
        else:
            _ALL[name](data, console)


if __name__ == "__main__":
    main()
