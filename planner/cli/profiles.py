"""`ep-plan profiles`: what is shipped, with sources."""

from __future__ import annotations

import click

from planner.cli.options import echo_json, json_option, names_of, verbosity

KINDS = ("gpus", "nodes", "fabrics", "models", "engines", "kernels")


@click.command("profiles")
@click.argument("name", required=False, shell_complete=names_of(KINDS))
@json_option
@verbosity
def command(name: str | None, as_json: bool, verbose: bool, quiet: bool) -> None:
    """List the shipped GPUs, nodes, fabrics, models, engines and kernels, or show NAME with its sources.

    \b
    ep-plan profiles
    ep-plan profiles h100-sxm
    """
    from planner.report.profiles_report import profile_data, profile_listing, render_listing, render_profile
    from planner.report.style import console

    if as_json:
        data = profile_listing() if name is None else profile_data(name)
        echo_json(data)
    elif name is None:
        if not quiet:
            render_listing(console(), verbose=verbose)
    else:
        render_profile(name, console(quiet=quiet), verbose=verbose)
