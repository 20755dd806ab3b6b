"""`ep-plan lint-launch`: what an engine would do with a command line."""

from __future__ import annotations

import click

from planner.cli.options import echo_json, json_option, model_option, verbosity


@click.command("lint-launch")
@click.argument("words", nargs=-1, required=True, metavar='"COMMAND"')
@model_option("A shipped model, a config.json or its folder, a model.yaml.")
@click.option("--topology", metavar="NODES|FILE", help='Nodes such as "4 x hgx-h100", or a topology.yaml.')
@click.option("--engine-version", metavar="VERSION", help="Version of the engine, or pr-41141 and the like for vLLM.")
@json_option
@verbosity
def command(
    words: tuple[str, ...],
    model: str | None,
    topology: str | None,
    engine_version: str | None,
    as_json: bool,
    verbose: bool,
    quiet: bool,
) -> int:
    """Tell which flags of COMMAND an engine would refuse, ignore or change, for this model and machine.

    Exit code 6 if there is anything of the kind. Flags that are not examined are named.

    \b
    ep-plan lint-launch "vllm serve m -tp 8 --enable-eplb" --model deepseek-v3 --topology "2 x hgx-h100"  # exit code 6
    """
    from planner.errors import BadAnswerError
    from planner.report.lint_report import linted_json, render_linted
    from planner.report.style import console
    from planner.review.lint_launch import lint_launch

    linted = lint_launch(words, model, topology, engine_version)
    if as_json:
        echo_json(linted_json(linted))
    elif not quiet or not linted.is_good:
        render_linted(linted, console(), verbose=verbose)
    return 0 if linted.is_good else BadAnswerError.exit_code
