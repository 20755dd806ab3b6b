"""The report of `ep-plan probe`."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from planner.inputs.units import format_compute, format_percent, format_rate, format_seconds, parse_quantity
from planner.measure.drawn import NOT_REPORTED, Machine, pairs_of_levels, topology_data
from planner.report.style import plain_table


def render_probe(machine: Machine, console: Console, *, verbose: bool = False) -> None:
    """Hosts, links and devices; with `verbose` every pair."""
    table = plain_table("rank", "host", "device", "memory read", "GEMM", "spread", right=(3, 4, 5))
    for rank, result in enumerate(machine.results):
        memory = result["memory_bytes_per_s"]
        rates = ", ".join(f"{name} {format_compute(rate['median'])}" for name, rate in result["compute"].items())
        spread = format_percent((memory["high"] - memory["low"]) / memory["median"])
        cells = (result["host"], result["smoke"]["device"], format_rate(memory["median"]), rates, spread)
        table.add_row(str(rank), *cells)
    console.print(table)
    headers = ("level", "joined by", "line rate", "measured", "of it", "latency", "reached by all-to-all")
    links = plain_table(*headers, right=range(2, len(headers)))
    data = topology_data(machine)
    reached_at = data["calibration"][0]["levels"] if "calibration" in data else {}
    pairs_of = pairs_of_levels(machine)
    for level in data["links"]:
        if level["level"] not in pairs_of:
            continue
        said, measured = machine.joined(pairs_of[level["level"]]), level["bandwidth"]["value"]
        rate, part = NOT_REPORTED, "-"
        if said.bytes_per_s is not None:
            rate = format_rate(said.bytes_per_s)
            part = format_percent(parse_quantity(measured, "rate") / said.bytes_per_s)
        reached = reached_at[level["level"]]["value"] if level["level"] in reached_at else "-"
        links.add_row(level["level"], said.by, rate, measured, part, level["latency"]["value"], reached)
    if links.row_count:
        console.print(links)
    if verbose:
        pairs = plain_table("from", "to", "", "rate", "latency", right=(3, 4))
        for m in machine.links:
            ends = [f"{rank} ({machine.hosts[rank]})" for rank in (m.rank, m.partner)]
            where = "inside a host" if m.inside else "between hosts"
            pairs.add_row(*ends, Text(where), format_rate(m.send_bytes_per_s), format_seconds(m.latency_s))
        console.print(pairs)
