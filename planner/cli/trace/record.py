"""`ep-plan trace record`: run texts through a local model and write what its routers choose."""

from __future__ import annotations

from pathlib import Path

import click

from planner.cli.options import verbosity, warn


@click.command("record")
@click.argument("model", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("more", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="[FILE]...")
@click.option(
    "--text",
    "texts",
    multiple=True,
    metavar="FILE...",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    help="Text files; each is a domain of its own.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("trace.npz"), show_default=True)
@click.option("--length", type=click.IntRange(2, 1 << 20), default=512, show_default=True, help="Tokens of a sequence.")
@click.option(
    "--batch", type=click.IntRange(1, 1 << 16), default=8, show_default=True, help="Sequences of one forward pass."
)
@click.option(
    "--tokens-per-file",
    type=click.IntRange(1),
    default=100_000,
    show_default=True,
    help="At most so many tokens from the beginning of each file.",
)
@click.option(
    "--order",
    type=click.Choice(["mixed", "files"]),
    default="mixed",
    show_default=True,
    help="Files take turns, as mixed traffic does, or one comes after the other.",
)
@click.option(
    "--device",
    metavar="NAME",
    help="cpu, cuda, cuda:1, ..., or auto: all GPUs (needs accelerate); default: a GPU if any.",
)
@click.option("--trust-remote-code", is_flag=True, help="Run Python files that the model folder brings.")
@verbosity
def command(
    model: Path,
    more: tuple[Path, ...],
    texts: tuple[Path, ...],
    output: Path,
    length: int,
    batch: int,
    tokens_per_file: int,
    order: str,
    device: str | None,
    trust_remote_code: bool,
    verbose: bool,
    quiet: bool,
) -> None:
    """Record the routing of MODEL, a folder of Hugging Face transformers, on text files.

    The routers' own choices are written as trace.npz: expert ids and weights of every token in every MoE
    layer, with sequences, positions and domains. Nothing is fetched; needs torch and transformers.

    \b
    ep-plan trace record ./OLMoE-1B-7B --text code.txt prose.txt -o trace.npz
    """
    from planner.files import check_target, refuse_overwriting
    from planner.inputs.units import format_number_of
    from planner.record.local_model import load, record_passages
    from planner.record.texts import passages_of, read_texts
    from planner.report.progress import ProgressWatch
    from planner.report.style import console

    check_target(output)
    refuse_overwriting(output, [*texts, *more])
    contents = read_texts([*texts, *more])
    loaded = load(model, device=device, trust_remote_code=trust_remote_code)
    found = passages_of(
        contents, loaded.tokenizer, length=length, tokens_per_file=tokens_per_file, mixed=order == "mixed"
    )
    if not quiet:
        warn(found.warnings)
    with ProgressWatch(console(stderr=True), quiet=quiet) as watch:
        watch.begin(f"recording on {loaded.device}", -(-len(found.sequences) // batch))
        recorder = record_passages(loaded, found.sequences, batch=batch, advance=watch.advance)
    recorder.save(output)
    if verbose:
        for router in recorder.routers:
            click.echo(
                f"layer {router.layer}: {router.name}, {format_number_of(router.num_experts, 'expert')}", err=True
            )
    if not quiet:
        size = (
            f"{format_number_of(recorder.num_tokens, 'token')} in {format_number_of(len(found.sequences), 'sequence')}"
        )
        layers = format_number_of(len(recorder.layer_ids), "MoE layer")
        experts = format_number_of(recorder.num_experts, "expert")
        click.echo(f"wrote {output}: {size}, {layers} of {experts}", err=True)
