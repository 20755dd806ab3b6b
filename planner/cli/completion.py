"""`ep-plan completion`: what a shell needs to complete commands, options and names."""

from __future__ import annotations

import click

from planner.cli.options import verbosity

SHELLS = ("bash", "zsh", "fish")


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
@verbosity
def command(shell: str, verbose: bool, quiet: bool) -> None:  # noqa: ARG001  # all commands take both
    """Print the script that makes SHELL complete ep-plan: commands, options, names of profiles, files.

    bash (4.4 or newer) and zsh load it with `eval`, in ~/.bashrc or ~/.zshrc; fish from
    ~/.config/fish/completions/ep-plan.fish.

    \b
    eval "$(ep-plan completion bash)"
    eval "$(ep-plan completion zsh)"
    ep-plan completion fish > ~/.config/fish/completions/ep-plan.fish
    """
    from click.shell_completion import get_completion_class

    from planner.cli.main import cli

    kind = get_completion_class(shell)
    assert kind is not None
    completion = kind(cli, {}, "ep-plan", "_EP_PLAN_COMPLETE")
    click.echo(completion.source_template % completion.source_vars())
