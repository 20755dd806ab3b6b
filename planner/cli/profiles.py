"""`ep-plan profiles`: what is shipped, with sources."""

from __future__ import annotations

import click

from planner.cli.options import json_option


@click.command("profiles")
@click.argument("name", required=False)
@json_option
def command(name: str | None, as_json: bool) -> None:
    """List the shipped GPUs, nodes, models, engines and kernels, or show NAME.

    \b
    ep-plan profiles
    ep-plan profiles h100-sxm
    """
    import json

    from planner.report.profiles_report import profile_data, profile_listing, profile_text

    if name is None:
        listing = profile_listing()
        if as_json:
            click.echo(json.dumps(listing, indent=1))
        else:
            for kind, names in listing.items():
                click.echo(f"{kind}: {', '.join(names)}")
    elif as_json:
        click.echo(json.dumps(profile_data(name), ensure_ascii=False, indent=1))
    else:
        click.echo(profile_text(name), nl=False)
