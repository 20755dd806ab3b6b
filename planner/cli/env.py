"""`ep-plan env`: versions and devices."""

from __future__ import annotations

import click

from planner.cli.options import echo_json, json_option, verbosity

_ALWAYS = ("numpy", "ortools", "pydantic", "click", "rich", "pyyaml")


@click.command("env")
@json_option
@verbosity
def command(as_json: bool, verbose: bool, quiet: bool) -> None:
    """Print versions, extras and devices, to paste into an issue; with -v also where files lie.

    \b
    ep-plan env
    ep-plan env --json
    """
    import os
    import platform
    import sys

    from planner import __version__
    from planner.inputs import profiles
    from planner.measure.environment import accelerators, extras, version_of
    from planner.processes import available_cores

    lines = {"ep-plan": __version__, "python": platform.python_version(), "platform": platform.platform()}
    lines["cores"] = f"{available_cores()} of {os.cpu_count()}"
    lines |= {package: version_of(package) or "not installed" for package in _ALWAYS}
    for name, packages in extras().items():
        known = (f"{package} {version_of(package) or 'not installed'}" for package in packages)
        lines[f"[{name}]"] = ", ".join(known)
    lines["gpus"] = accelerators()
    lines["profiles"] = profiles.whence()
    if verbose:
        lines |= {
            "executable": sys.executable,
            "profiles in": str(profiles.folder()),
            "schemas in": str(profiles.schemas()),
        }
    if as_json:
        echo_json({"schema": "ep-plan/env/1", **lines})
    elif not quiet:
        for name, value in lines.items():
            click.echo(f"{name:<14} {value}")
