"""docs/profiles.md: everything that is shipped, value by value, with its basis and source."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from pages.markdown import GENERATED, joined, table
from planner.inputs import profiles
from planner.inputs.model import Model
from planner.inputs.model_files import read_model
from planner.inputs.parameters import count_parameters
from planner.inputs.profiles import Kind
from planner.inputs.strict_yaml import read_yaml
from planner.inputs.units import format_count

INTRO = """\
A profile is a YAML file under [`profiles/`](../profiles). Each physical value carries its *basis* and its source:

- **measured**: on the very machine; **fitted**: to published measurements of such a machine;
  **datasheet**: the vendor's figure; **given**: written by the user; **assumed**: nobody measured it here.

Compute rates are dense, without structured sparsity (datasheets often headline the sparse rate, twice as high).
Bandwidth is per GPU and per direction (datasheets often headline both directions together). The keys are
explained in [formats.md](formats.md); `ep-plan profiles NAME` prints a profile as it is written."""

SECTIONS: Final[dict[Kind, tuple[str, str]]] = {
    "gpus": ("GPUs", "Named by `gpu:` in a topology or a node profile."),
    "nodes": ("Nodes", 'Named by `topology: "4 x hgx-h100"` in a deployment.'),
    "fabrics": (
        "Fabrics",
        "Named by `fabric:` of a link: one direction of all links of a GPU, of a slot of the host, or of a NIC port.",
    ),
    "kernels": ("Communication kernels", "Named by `communication: {kernel: ...}`; the default comes from the engine."),
    "engines": ("Engines", "Named by `engine:`; without one, `any` is taken."),
}

EFFICIENCY = """\
What kernels reach on a GPU whose profile has no curve of its own for a kind of work or a number format: one curve for
all GPUs that were measured. See [model.md](model.md), "Compute", for the formula, and [accuracy.md](accuracy.md) for
how far such curves are off."""

MODELS = """\
Named by `model:`. Parameters are counted from the shape; *active* is what one token passes (the embedding is a look-up
and not counted, multi-token-prediction heads are left out). *Published* is what the authors say, in 1e9 (total and
active; they round, and some count the embedding); totals agree within 1 %, without vision towers."""


def page() -> str:
    """The whole page."""
    blocks = [GENERATED, "# Shipped profiles", INTRO]
    for kind, (title, where) in SECTIONS.items():
        blocks += [f"## {title}", where]
        for name in profiles.names(kind):
            blocks += [f"### {name}", *_profile(read_yaml(profiles.path_of(kind, name)).data)]
    blocks += ["## Default efficiency", EFFICIENCY]
    blocks += _profile(read_yaml(profiles.folder() / "efficiency.yaml").data)
    blocks += ["## Models", MODELS, *_models()]
    return joined(blocks)


def _profile(data: dict[str, Any]) -> Iterator[str]:
    """Plain settings as a list, sourced values as a table, then source and note."""
    rows = list(_leaves({key: value for key, value in data.items() if key not in ("schema", "note", "source")}, ""))
    yield "\n".join(f"- {key}: `{value}`" for key, value, basis, _ in rows if not basis)
    sourced = [(f"`{key}`", value, basis, source) for key, value, basis, source in rows if basis]
    yield table(("key", "value", "basis", "source"), sourced)
    yield from (f"{label}: {data[key]}." for label, key in (("Source", "source"), ("Note", "note")) if data.get(key))


_ABOUT: Final = {"name", "kind", "basis", "source"}
"""What stands beside several figures that share a source."""


def _leaves(value: Any, key: str) -> Iterator[tuple[str, str, str, str]]:
    """Every value with its key path, basis and source; no basis for plain settings."""
    if isinstance(value, dict) and "basis" in value:
        figures = value.get("value", {name: figure for name, figure in value.items() if name not in _ABOUT})
        yield key, _shown(figures), value["basis"], value["source"] + _errors(value)
    elif isinstance(value, dict):
        for name, inner in value.items():
            if name != "level":
                yield from _leaves(inner, f"{key}.{name}" if key else name)
    elif isinstance(value, list) and any(isinstance(inner, dict | list) for inner in value):
        for index, inner in enumerate(value):
            label = inner.get("level", inner.get("name", index)) if isinstance(inner, dict) else index
            yield from _leaves(inner, f"{key}[{label}]")
    else:
        yield key, _shown(value), "", ""


def _errors(value: dict[str, Any]) -> str:
    """How far a fitted curve is off, median / p90."""
    names = {"fit": "fit", "held_out": "held out"}
    return "".join(
        f"; {words} {value[key]['median']} / {value[key]['p90']}" for key, words in names.items() if key in value
    )


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _models() -> Iterator[str]:
    models = [(name, read_model(profiles.path_of("models", name))) for name in profiles.names("models")]
    sizes = ("model", "parameters", "active", "published", "published in", "source")
    headers = ("model", "layers (MoE)", "hidden", "experts", "top-k", "expert width", "shared width", "weights")
    yield table(headers, (_shape(name, model) for name, model in models))
    yield table(sizes, (_size(name, model) for name, model in models))


def _shape(name: str, model: Model) -> tuple[str, ...]:
    moe = model.moe
    weights: str = model.expert_weights
    if model.dense_weights != weights:
        weights = f"{weights}, dense parts {model.dense_weights}"
    counts = (model.hidden_size, moe.num_experts, moe.top_k, moe.intermediate_size, moe.shared_intermediate_size)
    layers = f"{model.num_layers} ({len(model.moe_layer_ids)})"
    return (f"`{name}`", layers, *(f"{count:,}" if count else "-" for count in counts), weights)


def _size(name: str, model: Model) -> tuple[str, ...]:
    count = count_parameters(model)
    said = read_yaml(profiles.path_of("models", name)).data["published"]
    figures = f"{said['total_billion']:g}, {said['active_billion']:g}"
    return f"`{name}`", format_count(count.total), format_count(count.active), figures, said["source"], model.source
