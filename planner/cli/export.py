"""`ep-plan export`: what engines load, written from a plan and read again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from planner.cli.options import echo_json, json_option, refuse_given, verbosity, warn


def _formats(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:  # noqa: ARG001
    """For shells: the formats that begin as typed."""
    from planner.export.table import FORMATS

    return [CompletionItem(name, help=kind.what) for name, kind in FORMATS.items() if name.startswith(typed)]


@click.command("export")
@click.argument("plan", type=click.Path(path_type=Path), required=False)
@click.option("--to", "name", metavar="FORMAT", shell_complete=_formats, help="What to write (--list).")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File (checkpoint: folder) to write.")
@click.option("--engine-version", metavar="VERSION", help="Version of the engine; default: the one that is known.")
@click.option("--weights", metavar="DIR", type=click.Path(path_type=Path), help="checkpoint: the original.")
@click.option("--router-only", is_flag=True, help="checkpoint: write the permuted routers alone.")
@click.option("--dry-run", is_flag=True, help="checkpoint: check everything, show the permutation, write nothing.")
@click.option("--model", metavar="NAME", help="Launches: what the engine is to load.")
@click.option("--host", "hosts", metavar="NAME", multiple=True, help="Launches: host of each node, in order.")
@click.option("--map", "map_path", metavar="PATH", help="Launches: the exported map, as the engine finds it.")
@click.option("--image", metavar="NAME", help="kubernetes: container image.")
@click.option("--program", metavar="COMMAND", help="kubernetes: what every rank runs.")
@click.option("--port", type=click.IntRange(1, 65535), help="Launches: where ranks meet; default 29500.")
@click.option("--list", "listing", is_flag=True, help="Name the formats, with the engine versions known.")
@json_option
@verbosity
def command(plan: Path | None, listing: bool, as_json: bool, verbose: bool, quiet: bool, **given: Any) -> None:
    """Write what an engine loads from PLAN, and read it again before it takes its name.

    \b
    ep-plan export plan.json --to sglang -o map.json
    ep-plan export plan.json --to launch-sglang --model MODEL --map map.json --host node-a --host node-b -o launch.sh
    ep-plan export plan.json --to checkpoint --weights MODEL -o MODEL-permuted
    ep-plan export --list
    """
    from planner.export.request import export
    from planner.files import check_target, refuse_overwriting
    from planner.plan.plan_file import read_plan
    from planner.report.export_report import formats_json, render_formats, render_written, written_json
    from planner.report.style import console

    if listing:
        refuse_given(("plan", *given), "--list names the formats, and nothing is exported")
        if as_json:
            echo_json(formats_json())
        else:
            render_formats(console(), verbose=verbose)
        return
    if plan is None or given["name"] is None:
        raise click.UsageError("give PLAN and --to FORMAT, or --list")
    request = _request(given)
    if request.output is not None and request.name != "checkpoint":
        check_target(request.output)
        refuse_overwriting(request.output, [plan])
    written = export(read_plan(plan), plan, request)
    if as_json:
        echo_json(written_json(written))
    elif not quiet:
        render_written(written, console(), verbose=verbose)
    if not quiet:
        warn(written.notes)
        if written.path is not None:
            click.echo(f"wrote {written.path}", err=True)


def _request(given: dict[str, Any]) -> Any:
    import shlex

    from planner.errors import UsageError
    from planner.export.launch.options import LaunchOptions
    from planner.export.request import Request

    try:
        program = tuple(shlex.split(given["program"] or ""))
    except ValueError as error:
        raise UsageError(f"--program: {error}") from None
    names = {key: given[key] for key in ("model", "hosts", "map_path", "image", "port") if given[key]}
    launch = LaunchOptions(**names, program=program)
    options = {key: given[key] for key in ("name", "output", "weights", "router_only", "dry_run")}
    return Request(**options, version=given["engine_version"], launch=launch)
