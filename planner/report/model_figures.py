"""What is counted from a shipped model's shape: parameters by component, and what a token keeps."""

from __future__ import annotations

from typing import Any, Final

from rich.console import Console
from rich.text import Text

from planner.cost.kv_cache import cache_name, kv_bytes_per_sequence, kv_bytes_per_token, state_bytes_per_sequence
from planner.inputs import profiles
from planner.inputs.model import Attention, CompressedAttention, GroupedAttention, Model, NoAttention
from planner.inputs.model_files import read_model
from planner.inputs.parameters import ParameterCount, count_parameters
from planner.inputs.units import format_count
from planner.report.style import plain_table

COMPONENTS: Final = ("experts", "shared", "routers", "attention", "dense", "embedding", "lm_head", "norms")


def model_figures(name: str) -> dict[str, Any]:
    """Shape, parameters by component, and cache by kind (bytes in bf16 on a GPU that holds all heads)."""
    model = read_model(profiles.path_of("models", name))
    count, moe = count_parameters(model), model.moe
    return {
        "family": model.family,
        "layers": model.num_layers,
        "moe_layers": len(model.moe_layer_ids),
        "experts": moe.num_experts,
        "top_k": moe.top_k,
        "weights": {"experts": model.expert_weights, "dense": model.dense_weights},
        "parameters": {"total": count.total, "active": count.active, **_components(count)},
        "cache": _cache(model),
    }


def _components(count: ParameterCount) -> dict[str, int]:
    return {part: getattr(count, part) for part in COMPONENTS}


def _cache(model: Model) -> list[dict[str, Any]]:
    """By kind of attention: its layers, and the bytes of all of them per token and per sequence."""
    kinds: dict[str, dict[str, Any]] = {}
    for run in model.layers:
        attention = run.attention
        if isinstance(attention, NoAttention):
            continue
        window = attention.window if isinstance(attention, GroupedAttention) else None
        empty = {"layers": 0, "window": window, "bytes_per_token": 0.0, "bytes_per_sequence": 0}
        kind = kinds.setdefault(cache_name(attention), {"kind": cache_name(attention), **empty})
        kind["layers"] += run.count
        kind["bytes_per_token"] += run.count * kv_bytes_per_token(attention, 1, "bf16")
        kind["bytes_per_sequence"] += run.count * _fixed_bytes(attention)
    return list(kinds.values())


def _fixed_bytes(attention: Attention) -> int:
    """Bytes that do not grow with the sequence: a recurrent state, or the window beside compressed entries."""
    if isinstance(attention, CompressedAttention):
        window_only = attention.model_copy(update={"compress_rate": None, "indexer": None})
        return kv_bytes_per_sequence(window_only, 1, "bf16", attention.window)
    return state_bytes_per_sequence(attention, 1)


def render_models(console: Console) -> None:
    """Print one model a line."""
    table = plain_table("model", "family", "layers", "experts", "parameters", "active", "weights", right=(2, 3, 4, 5))
    for name in profiles.names("models"):
        figures = model_figures(name)
        parameters, weights = figures["parameters"], figures["weights"]
        table.add_row(
            name,
            figures["family"],
            f"{figures['layers']} ({figures['moe_layers']})",
            f"{figures['experts']} ({figures['top_k']})",
            format_count(parameters["total"]),
            format_count(parameters["active"]),
            weights["experts"],
        )
    console.print(table)
    note = "layers (MoE layers), experts (per token); active without the embedding, which is a look-up"
    console.print(Text(note, style="dim"))


def render_figures(name: str, console: Console) -> None:
    """Print the counts of one model under its profile."""
    figures = model_figures(name)
    parameters = figures["parameters"]
    table = plain_table("counted from the shape", "parameters", "", right=(1, 2))
    for part in COMPONENTS:
        if parameters[part]:
            share = f"{parameters[part] / parameters['total']:.1%}"
            table.add_row(part.replace("lm_head", "LM head"), f"{parameters[part]:,}", share)
    table.add_row(Text("total", style="bold"), f"{parameters['total']:,}", "")
    table.add_row("active per token, without the embedding", f"{parameters['active']:,}", "")
    console.print()
    console.print(table)
    table = plain_table("kept for a sequence, bf16", "layers", "per token", "whatever its length", right=(1, 2, 3))
    for kind in figures["cache"]:
        window = f", {kind['window']:,} tokens" if kind["window"] else ""
        token, sequence = kind["bytes_per_token"], kind["bytes_per_sequence"]
        shown = (f"{value:,.0f} B" if value else "-" for value in (token, sequence))
        table.add_row(kind["kind"] + window, str(kind["layers"]), *shown)
    console.print()
    console.print(table)
