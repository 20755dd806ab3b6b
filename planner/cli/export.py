"""`ep-plan export`: what engines load, written from a plan and read again."""

from __future__ import annotations

from pathlib import Path

import click

from planner.cli.options import json_option, verbosity, warn


@click.command("export")
@click.argument("plan", type=click.Path(path_type=Path), required=False)
@click.option("--to", "name", metavar="FORMAT", help="What to write; --list names the formats.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File (checkpoint: folder) to write.")
@click.option("--engine-version", metavar="VERSION", help="Version of the engine; default: the one that is known.")
@click.option("--list", "listing", is_flag=True, help="Name the formats, with the engine versions known.")
@json_option
@verbosity
def command(
    plan: Path | None,
    name: str | None,
    output: Path | None,
    engine_version: str | None,
    listing: bool,
    as_json: bool,
    verbose: bool,
    quiet: bool,
) -> None:
    """Write what an engine loads from PLAN, and read it again before it takes its name.

    \b
    ep-plan export plan.json --to sglang -o map.json
    ep-plan export --list
    """
    import json

    from planner.export.layout import layout_of
    from planner.export.write import write_map
    from planner.plan.plan import read_plan
    from planner.report.export_report import formats_json, render_formats, written_json
    from planner.report.style import console

    if listing:
        if as_json:
            click.echo(json.dumps(formats_json(), ensure_ascii=False, indent=1))
        else:
            render_formats(console(), verbose=verbose)
        return
    if plan is None or name is None or output is None:
        raise click.UsageError("give PLAN, --to FORMAT and -o PATH, or --list")
    written = write_map(layout_of(read_plan(plan), plan), name, plan, output, engine_version)
    if as_json:
        click.echo(json.dumps(written_json(written), ensure_ascii=False, indent=1))
    elif not quiet:
        click.echo(f"load it with: {written.how_to_load}")
    if not quiet:
        warn(written.notes)
        click.echo(f"wrote {written.path}", err=True)
