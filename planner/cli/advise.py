"""`ep-plan advise`: is balancing worth it, how often, and is the plan in force still good?"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from planner.cli.options import (
    Quantity,
    echo_json,
    json_option,
    judged_work,
    options_given,
    paths,
    refuse_given,
    trace_option,
    verbosity,
    warn,
)

_OF_THE_PLAN = ("phase", "step_tokens", "ranks", "redundant_experts")


@click.command("advise")
@trace_option
@click.option("--plan", type=click.Path(path_type=Path), help="Watch for drift: is this plan still good?")
@click.option(
    "--threshold",
    type=Quantity("fraction"),
    default="5%",
    show_default=True,
    help="With --plan: exit 6 if placing anew would save more of a step.",
)
@judged_work("Copies per layer; default: one on each rank.")
@json_option
@verbosity
def command(
    traces: tuple[str, ...],
    plan: Path | None,
    threshold: float,
    phase: Literal["decode", "prefill"],
    step_tokens: int,
    ranks: int | None,
    redundant_experts: int | None,
    as_json: bool,
    verbose: bool,  # noqa: ARG001
    quiet: bool,
) -> int:
    """Tell whether balancing experts is worth it, once or again and again, on windows that planning has not seen.

    With --plan a fresh recording is held against the plan in force instead, with the plan's own ranks and work;
    exit code 6 says that it has gone stale (for cron and CI).

    \b
    ep-plan advise --trace trace.npz --ranks 16 --redundant-experts 16
    ep-plan advise --trace today.npz --plan plan.json --threshold 5%
    """
    from planner.capacity.advise import Work, advise, drift_watch
    from planner.errors import BadAnswerError
    from planner.plan.plan_file import read_plan
    from planner.report.advice_report import advice_json, render_advice, render_watch
    from planner.report.progress import ProgressWatch
    from planner.report.style import console

    if not traces:
        raise click.UsageError("give at least one --trace")
    if plan is not None:
        refuse_given(_OF_THE_PLAN, "where --plan is given, the plan's own ranks and work hold")
        with ProgressWatch(console(stderr=True), quiet=quiet) as progress:
            watched = drift_watch(read_plan(plan), plan, paths(traces), threshold, progress)
        if not quiet:
            warn(watched.warnings)
        if as_json:
            echo_json(advice_json(None, watched))
        elif not quiet:
            render_watch(watched, console())
        return BadAnswerError.exit_code if watched.state == "stale" else 0
    refuse_given(("threshold",), "it is for --plan, which tells whether that is still good")
    work = Work(phase, step_tokens, ranks, redundant_experts)
    advice, warnings = advise(paths(traces), work, options_given("phase", "step_tokens"))
    if not quiet:
        warn(warnings)
    if as_json:
        echo_json(advice_json(advice, None))
    elif not quiet:
        render_advice(advice, console())
    return 0
