"""`ep-plan check`: is a plan right, is a deployment readable."""

from __future__ import annotations

import click

from planner.cli.options import json_option, paths, trace_option, verbosity


@click.command("check")
@click.argument("files", nargs=-1, required=True, metavar="PATH...")
@trace_option
@json_option
@verbosity
def command(files: tuple[str, ...], traces: tuple[str, ...], as_json: bool, verbose: bool, quiet: bool) -> int:
    """Re-derive every rule and booked figure of plans; validate the inputs of deployments.

    Deployments with a `checks:` section are also solved and held against it. Folders are searched
    for deployment.yaml and plan*.json. Exit code 6 if something is wrong, 3 if an input is invalid.

    \b
    ep-plan check plan.json
    ep-plan check examples/
    """
    import json

    from planner.errors import BadAnswerError, UsageError
    from planner.report.check_report import checked_json, render_checked
    from planner.review.check_files import check_file, files_to_check

    override = paths(traces) or None
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
