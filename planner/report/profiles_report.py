"""The shipped profiles as tables and as data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from rich.console import Console
from rich.text import Text

from planner.errors import UsageError
from planner.inputs import profiles
from planner.inputs.fabrics import load_fabric, with_fabric
from planner.inputs.gpu import load_gpu
from planner.inputs.precision import COMPUTE_ORDER
from planner.inputs.strict_yaml import read_yaml
from planner.inputs.topology import load_node
from planner.inputs.units import format_bytes, format_compute, format_rate, format_seconds
from planner.report.model_figures import model_figures, render_figures, render_models
from planner.report.style import plain_table

_KINDS: Final[tuple[profiles.Kind, ...]] = ("gpus", "nodes", "fabrics", "models", "engines", "kernels")
_SHOWN_RATES: Final = ("bf16", "fp8", "fp4")


def profile_listing() -> dict[str, dict[str, dict[str, Any]]]:
    """Kind -> name -> key figures (bytes, bytes/s per direction, FLOP/s dense, seconds).

    Engines and kernels have no key figures: their entries are empty. Models: see `model_figures`.
    """
    listing: dict[str, dict[str, dict[str, Any]]] = {kind: {n: {} for n in profiles.names(kind)} for kind in _KINDS}
    listing["gpus"] = {name: _gpu_figures(name) for name in listing["gpus"]}
    listing["nodes"] = {name: _node_figures(name) for name in listing["nodes"]}
    listing["fabrics"] = {name: _fabric_figures(name) for name in listing["fabrics"]}
    listing["models"] = {name: model_figures(name) for name in listing["models"]}
    return listing


def _gpu_figures(name: str) -> dict[str, Any]:
    gpu = load_gpu(name)
    return {
        "memory_bytes": gpu.memory.value,
        "hbm_bytes_per_s": gpu.hbm_bandwidth.value,
        "flop_per_s": {key: gpu.compute[key].value for key in reversed(COMPUTE_ORDER) if key in gpu.compute},
    }


def _node_figures(name: str) -> dict[str, Any]:
    node = load_node(name)
    links = [
        {
            "level": link.level,
            "fabric": link.fabric,
            "bytes_per_s": link.bandwidth.value,
            "latency_s": link.latency.value,
            "nodes": link.nodes,
            "shared_by": link.shared_by,
        }
        for link in node.links
    ]
    return {"gpu": node.gpu, "gpus_per_node": node.gpus_per_node, "links": links}


def _fabric_figures(name: str) -> dict[str, Any]:
    fabric = load_fabric(name)
    return {
        "joins": fabric.joins,
        "bytes_per_s": fabric.bandwidth.value,
        "latency_s": fabric.latency.value,
        "links": fabric.num_links,
    }


def render_listing(console: Console, *, verbose: bool = False) -> None:
    """Print all profiles, a table for each kind with figures; `verbose`: the sources of the other kinds, too."""
    listing = profile_listing()
    table = plain_table("GPU", "memory", "HBM", *_SHOWN_RATES, right=(1, 2, 3, 4, 5))
    for name, gpu in listing["gpus"].items():
        rates = [format_compute(gpu["flop_per_s"][key]) if key in gpu["flop_per_s"] else "-" for key in _SHOWN_RATES]
        table.add_row(name, format_bytes(gpu["memory_bytes"]), format_rate(gpu["hbm_bytes_per_s"]), *rates)
    console.print(table)
    table = plain_table("node", "GPUs", "innermost link", "further links")
    for name, node in listing["nodes"].items():
        first, *others = (_link_text(link) for link in node["links"])
        table.add_row(name, f"{node['gpus_per_node']} x {node['gpu']}", first, ", ".join(others))
    console.print()
    console.print(table)
    table = plain_table("fabric", "joins", "rate", "latency", right=(2, 3))
    for name, fabric in listing["fabrics"].items():
        table.add_row(name, fabric["joins"], format_rate(fabric["bytes_per_s"]), format_seconds(fabric["latency_s"]))
    console.print()
    console.print(table)
    console.print()
    render_models(console)
    if verbose:
        _sources("models", console)
    plain: tuple[profiles.Kind, ...] = ("engines", "kernels")
    for kind in plain:
        if verbose:
            _sources(kind, console)
        else:
            console.print(Text(f"\n{kind}  ", style="dim").append(", ".join(listing[kind]), "not dim"))
    console.print("\nRates are dense and in one direction. Values with basis and source: ep-plan profiles NAME")


def _sources(kind: profiles.Kind, console: Console) -> None:
    """One profile a line, with the version or address that it was written from."""
    table = plain_table(kind.removesuffix("s"), "written from")
    for name in profiles.names(kind):
        data = read_yaml(profiles.path_of(kind, name)).data
        table.add_row(name, Text(str(data.get("version") or data.get("source") or "-"), overflow="fold"))
    console.print()
    console.print(table)


def _link_text(link: dict[str, Any]) -> str:
    reach = f", {link['nodes']} nodes" if link["nodes"] else ""
    shared = f" for {link['shared_by']} GPUs" if link["shared_by"] > 1 else ""
    return f"{format_rate(link['bytes_per_s'])} {link['fabric'] or link['level']}{shared}{reach}"


def _found(name: str) -> list[tuple[profiles.Kind, dict[str, Any]]]:
    kinds = [kind for kind in _KINDS if name in profiles.names(kind)]
    if not kinds:
        known = [other for kind in _KINDS for other in profiles.names(kind)]
        close = profiles.near_names(name, known)
        hint = f"did you mean {' or '.join(close)}?" if close else "`ep-plan profiles` lists them all"
        raise UsageError(f"no profile is called {name!r}", hint=hint)
    return [(kind, _spelled_out(read_yaml(profiles.path_of(kind, name)).data)) for kind in kinds]


def _spelled_out(data: dict[str, Any]) -> dict[str, Any]:
    """The profile with the figures of fabrics that its links name."""
    links = data.get("links")
    if not isinstance(links, list):
        return data
    return {**data, "links": [with_fabric(link) for link in links]}


def profile_data(name: str) -> dict[str, Any]:
    """The profile as data, as it is written; links with the figures of their fabrics, models with their counts."""
    kind, data = _found(name)[0]
    return {**data, "counted": model_figures(name)} if kind == "models" else data


def render_profile(name: str, console: Console, *, verbose: bool = False) -> None:
    """Print every value of a profile with its basis and source; `verbose`: its file, too."""
    for kind, data in _found(name):
        console.print(Text(f"{name} ({kind.removesuffix('s')})", style="bold"))
        if verbose:
            console.print(Text(str(profiles.path_of(kind, name)), style="dim"))
        table = plain_table("value", "", "basis", "source")
        table.columns[1].no_wrap = table.columns[3].no_wrap = False
        table.columns[1].overflow = table.columns[3].overflow = "fold"
        for key, value, basis, source in _rows(data):
            table.add_row(Text(key), Text(value), basis, Text(source))
        console.print(table)
        if kind == "models":
            render_figures(name, console)


def _rows(data: Any, key: str = "") -> Iterator[tuple[str, str, str, str]]:
    """(key path, value, basis, source) of every leaf."""
    if isinstance(data, dict) and "value" in data:
        for path, value, _, _ in _rows(data["value"], key):
            yield path, value, str(data.get("basis", "")), str(data.get("source", ""))
    elif isinstance(data, dict) and "basis" in data:
        for name, figure in data.items():
            if name not in ("name", "kind", "basis", "source"):
                for path, value, _, _ in _rows(figure, f"{key}.{name}"):
                    yield path, value, str(data["basis"]), str(data.get("source", ""))
    elif isinstance(data, dict):
        for name, value in data.items():
            if key or name != "schema":
                yield from _rows(value, f"{key}.{name}" if key else str(name))
    elif isinstance(data, list) and any(isinstance(item, dict | list) for item in data):
        for index, item in enumerate(data):
            label = item.get("level", item.get("name", index)) if isinstance(item, dict) else index
            yield from _rows(item, f"{key}[{label}]")
    else:
        yield key, ", ".join(map(str, data)) if isinstance(data, list) else str(data), "", ""
