"""`ep-plan check`: is a plan right, is a deployment readable, is its plan still as good as the golden one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from planner.cli.options import echo_json, json_option, model_option, paths, trace_option, verbosity

if TYPE_CHECKING:
    from datetime import datetime

    from planner.review.checked import Checked


@click.command("check")
@click.argument("files", nargs=-1, required=True, metavar="PATH...")
@click.option("--update", is_flag=True, help="Write the golden plans of deployments anew, and tell what changed.")
@click.option("--github", is_flag=True, help="Also GitHub annotations, and a summary of the step.")
@click.option("--junit", type=click.Path(path_type=Path), metavar="FILE", help="Also write JUnit XML.")
@click.option("--markdown", type=click.Path(path_type=Path), metavar="FILE", help="Also write a Markdown page.")
@click.option("--format", "name", metavar="FORMAT", help="The files are maps of this format (`ep-plan export --list`).")
@model_option("Maps: a shipped model, a config.json or its folder, a model.yaml.")
@click.option("--ep", type=click.IntRange(1, 65536), metavar="N", help="Maps: EP ranks, where the file does not say.")
@click.option("--plan", "plan_file", type=click.Path(path_type=Path), help="Maps: hold them against this plan.")
@trace_option
@json_option
@verbosity
def command(
    files: tuple[str, ...],
    update: bool,
    github: bool,
    junit: Path | None,
    markdown: Path | None,
    name: str | None,
    model: str | None,
    ep: int | None,
    plan_file: Path | None,
    traces: tuple[str, ...],
    as_json: bool,
    verbose: bool,
    quiet: bool,
) -> int:
    """Re-derive every rule and booked figure of plans; hold deployments against their golden plans.

    A deployment with a plan.golden.json beside it, or with `checks:`, is solved again: its plan must
    miss no threshold and be no worse than the golden plan; what changed is told as a diff, with its
    cause. Folders are searched for deployment.yaml and plan*.json. With --format anybody's map of
    experts is examined: missing experts, experts twice on a rank, wrong lengths, wrong layer numbers,
    expected balance on a trace. Exit code 6 if something is wrong, 3 if an input is invalid.

    \b
    ep-plan check plan.json
    ep-plan check serving/ --junit check.xml
    ep-plan check serving/ --update
    ep-plan check map.json --format sglang --model gpt-oss-20b --ep 16 --trace trace.npz
    """
    from datetime import UTC, datetime

    from planner.errors import BadAnswerError, UsageError
    from planner.files import check_target, refuse_overwriting
    from planner.review.check_files import about_of, check_map, files_to_check

    if github and as_json:
        raise click.UsageError("--github prints annotations on stdout, where --json prints one document: choose one")
    if name is None and (model is not None or ep is not None or plan_file is not None):
        raise click.UsageError("--model, --ep and --plan are for maps: give their --format")
    if name is not None and update:
        raise click.UsageError("--update makes golden plans of deployments, --format examines maps: choose one")
    started, override = datetime.now(UTC), paths(traces) or None
    looked_at = paths(files) if name is not None else list(files_to_check(paths(files), update=update))
    for target in filter(None, (junit, markdown)):
        check_target(target)
        refuse_overwriting(target, looked_at)
    if name is not None:
        about = about_of(model, ep, plan_file, override or [])
        results = [check_map(path, name, about) for path in looked_at]
    else:
        results = _checked(looked_at, override, update=update, quiet=quiet)
    wrong_usage = [result.error for result in results if isinstance(result.error, UsageError)]
    if len(wrong_usage) == len(results):
        raise UsageError.of([problem for error in wrong_usage for problem in error.problems])
    _written(results, junit, markdown, started)
    _shown(results, github=github, as_json=as_json, verbose=verbose, quiet=quiet)
    errors = [result.error.exit_code for result in results if result.error is not None]
    if errors:
        return UsageError.exit_code if wrong_usage else max(errors)
    return 0 if all(result.is_good for result in results) else BadAnswerError.exit_code


def _checked(files: Sequence[Path], traces: list[Path] | None, *, update: bool, quiet: bool) -> list[Checked]:
    """Every file checked; what is being done is shown on stderr."""
    from planner.inputs.printable import printable
    from planner.report.progress import ProgressWatch
    from planner.report.style import console
    from planner.review.check_files import check_file

    results = []
    with ProgressWatch(console(stderr=True), quiet=quiet) as watch:
        for path in files:
            results.append(check_file(path, traces, watch, update=update))
            compared = results[-1].compared
            if compared is not None and compared.status in ("created", "renewed") and not quiet:
                click.echo(f"wrote {printable(str(compared.path))}", err=True)
    return results


def _written(results: Sequence[Checked], junit: Path | None, markdown: Path | None, started: datetime) -> None:
    import platform

    from planner.files import write_whole
    from planner.report.check_junit import junit_xml
    from planner.report.check_markdown import markdown as page

    if junit is not None:
        write_whole(junit, junit_xml(results, started, platform.node() or "localhost"))
    if markdown is not None:
        write_whole(markdown, page(results))


def _shown(results: Sequence[Checked], *, github: bool, as_json: bool, verbose: bool, quiet: bool) -> None:
    import contextlib

    from planner.report.check_github import annotation_lines, append_summary, without_commands, workspace
    from planner.report.check_report import checked_json, render_checked
    from planner.report.style import console

    if as_json:
        echo_json(checked_json(results))
        return
    with without_commands() if github else contextlib.nullcontext():
        render_checked(results, console(), verbose=verbose, quiet=quiet)
    if github:
        for line in annotation_lines(results, workspace()):
            click.echo(line)
        append_summary(results)
