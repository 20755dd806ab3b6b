"""`ep-plan env`: versions and devices."""

from __future__ import annotations

import click

from planner.cli.options import json_option, verbosity


@click.command("env")
@json_option
@verbosity
def command(as_json: bool, verbose: bool, quiet: bool) -> None:
    """Print versions and devices, to paste into an issue; with -v also where Python and the profiles lie.

    \b
    ep-plan env
    """
    import json
    import os
    import platform
    import sys
    from importlib import metadata

    from planner import __version__
    from planner.inputs.profiles import folder
    from planner.processes import available_cores

    lines = {"ep-plan": __version__, "python": platform.python_version(), "platform": platform.platform()}
    lines["cores"] = f"{available_cores()} of {os.cpu_count()}"
    for package in ("numpy", "ortools", "pydantic", "click", "rich", "pyyaml", "torch", "transformers"):
        try:
            lines[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            lines[package] = "not installed"
    if verbose:
        lines |= {"executable": sys.executable, "profiles": str(folder())}
    if as_json:
        click.echo(json.dumps({"schema": "ep-plan/env/1", **lines}, ensure_ascii=False, indent=1))
    elif not quiet:
        for name, value in lines.items():
            click.echo(f"{name:<14} {value}")
