"""`ep-plan trace import`: a recording of an engine becomes a native trace."""

from __future__ import annotations

from pathlib import Path

import click

from planner.cli.options import echo_json, json_option, verbosity, warn
from planner.trace.faults import FAULTS, NEVER
from planner.trace.importers.table import FORMATS

_ACCEPTABLE = [fault for fault in FAULTS if fault not in NEVER]


@click.command("import")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("trace.npz"), show_default=True)
@click.option("--from", "name", type=click.Choice(list(FORMATS)), help="Format; default: told by content.")
@click.option("--model", metavar="NAME|PATH", help="Checks against it; tells experts, top-k and which layers are MoE.")
@click.option("--num-experts", type=click.IntRange(1, 65536), help="Logical experts, where no model is given.")
@click.option("--top-k", type=click.IntRange(1, 1024), help="Experts per token of counts, where no model is given.")
@click.option("--physical-map", type=click.Path(path_type=Path), help="The map of that run: turns slots into experts.")
@click.option("--phase", type=click.Choice(["prefill", "decode"]), help="Take only the tokens of one phase.")
@click.option("--filler", "fillers", type=int, multiple=True, metavar="ID", help="An id that stands for no expert.")
@click.option("--rows", type=click.Choice(["hidden", "moe"]), help="Rows are hidden layers, or MoE layers only.")
@click.option("--layer-offset", type=click.IntRange(0, 10_000), default=0, help="First layer of a pipeline stage.")
@click.option("--accept", "accepted", type=click.Choice(_ACCEPTABLE), multiple=True, help="Only warn of a trap.")
@json_option
@verbosity
def command(
    paths: tuple[Path, ...],
    output: Path,
    name: str | None,
    model: str | None,
    num_experts: int | None,
    top_k: int | None,
    physical_map: Path | None,
    phase: str | None,
    fillers: tuple[int, ...],
    rows: str | None,
    layer_offset: int,
    accepted: tuple[str, ...],
    as_json: bool,
    verbose: bool,
    quiet: bool,
) -> None:
    """Turn what an engine recorded into a trace.npz, and check it. Formats: docs/traces.md.

    \b
    ep-plan trace import router_trace_rank*.jsonl --model qwen3-30b-a3b -o trace.npz
    ep-plan trace import expert_distribution_recorder_*.pt --model deepseek-v3 --phase decode
    ep-plan trace import statistics/ --physical-map eplb.yaml --model deepseek-v3
    """
    from planner.files import check_target, refuse_overwriting
    from planner.inputs.model_files import model_named
    from planner.inputs.units import format_number_of
    from planner.trace.importers.convert import import_trace
    from planner.trace.importers.found import Given
    from planner.trace.importers.physical_map import read_physical_map

    check_target(output)
    refuse_overwriting(output, [*paths, *([physical_map] if physical_map else [])])
    given = Given(
        model=None if model is None else model_named(model),
        num_experts=num_experts,
        top_k=top_k,
        physical_map=None if physical_map is None else read_physical_map(physical_map),
        phase=phase,  # type: ignore[arg-type]  # one of the two, click has checked it
        fillers=fillers,
        rows=rows,  # type: ignore[arg-type]  # likewise
        layer_offset=layer_offset,
        accepted=frozenset(accepted),
    )
    made = import_trace(paths, name, given, output)
    if not quiet:
        warn(made.warnings)
    if as_json:
        document = {"schema": "ep-plan/import/1", "output": str(output), **vars(made)}
        echo_json(document)
    if not quiet:
        rows = format_number_of(made.rows, "token" if made.kind == "tokens" else "counted window")
        layers = format_number_of(len(made.layer_ids), "layer")
        shape = f"{rows}, {layers}, {format_number_of(made.num_experts, 'expert')}, top-{made.top_k}"
        click.echo(f"wrote {output}: {shape} (from {made.format})", err=True)
        if verbose:
            click.echo(f"layers {', '.join(map(str, made.layer_ids))}", err=True)
