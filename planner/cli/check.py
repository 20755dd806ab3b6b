"""`ep-plan check`: is a plan right, is a deployment readable."""

from __future__ import annotations

from pathlib import Path

import click

from planner.cli.options import json_option, model_option, paths, trace_option, verbosity


@click.command("check")
@click.argument("files", nargs=-1, required=True, metavar="PATH...")
@click.option("--format", "name", metavar="FORMAT", help="The files are maps of this format (`ep-plan export --list`).")
@model_option("Maps: a shipped model, a config.json or its folder, a model.yaml.")
@click.option("--ep", type=click.IntRange(1, 65536), metavar="N", help="Maps: EP ranks, where the file does not say.")
@click.option("--plan", "plan_file", type=click.Path(path_type=Path), help="Maps: hold them against this plan.")
@trace_option
@json_option
@verbosity
def command(
    files: tuple[str, ...],
    name: str | None,
    model: str | None,
    ep: int | None,
    plan_file: Path | None,
    traces: tuple[str, ...],
    as_json: bool,
    verbose: bool,
    quiet: bool,
) -> int:
    """Re-derive every rule and booked figure of plans; validate the inputs of deployments.

    Deployments with a `checks:` section are also solved and held against it. Folders are searched
    for deployment.yaml and plan*.json. With --format anybody's map of experts is examined: missing
    experts, experts twice on a rank, wrong lengths, wrong layer numbers, expected balance on a trace.
    Exit code 6 if something is wrong, 3 if an input is invalid.

    \b
    ep-plan check plan.json
    ep-plan check examples/
    ep-plan check map.json --format sglang --model deepseek-v3 --ep 32 --trace trace.npz
    """
    import json

    from planner.errors import BadAnswerError, UsageError
    from planner.report.check_report import checked_json, render_checked
    from planner.review.check_files import about_of, check_file, check_map, files_to_check

    override = paths(traces) or None
    if name is not None:
        about = about_of(model, ep, plan_file, override or [])
        results = [check_map(path, name, about) for path in paths(files)]
    elif model is not None or ep is not None or plan_file is not None:
        raise click.UsageError("--model, --ep and --plan are for maps: give their --format")
    else:
        results = [check_file(path, override) for path in files_to_check(paths(files))]
    missing = [
        problem for result in results if isinstance(result.error, UsageError) for problem in result.error.problems
    ]
    if all(isinstance(result.error, UsageError) for result in results):
        raise UsageError.of(missing)
    if as_json:
        click.echo(json.dumps(checked_json(results), ensure_ascii=False, indent=1))
    elif not quiet or not all(result.is_good for result in results):
        render_checked(results, verbose=verbose)
    if any(isinstance(result.error, UsageError) for result in results):
        return UsageError.exit_code
    errors = [result.error.exit_code for result in results if result.error is not None]
    if errors:
        return max(errors)
    return 0 if all(result.is_good for result in results) else BadAnswerError.exit_code
