"""`ep-plan env`: versions and devices."""

from __future__ import annotations

import click


@click.command("env")
def command() -> None:
    """Print versions and devices, to paste into an issue.

    \b
    ep-plan env
    """
    import os
    import platform
    from importlib import metadata

    from planner import __version__

    lines = {"ep-plan": __version__, "python": platform.python_version(), "platform": platform.platform()}
    lines["cores"] = str(os.cpu_count())
    for package in ("numpy", "ortools", "pydantic", "click", "rich", "pyyaml", "torch", "transformers"):
        try:
            lines[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            lines[package] = "not installed"
    for name, value in lines.items():
        click.echo(f"{name:<14} {value}")
