"""The report of `ep-plan probe`."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from planner.inputs.units import format_compute, format_percent, format_rate, format_seconds
from planner.measure.drawn import Machine, topology_data
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
    links = plain_table("level", "bandwidth", "latency", "reached by all-to-all", right=(1, 2, 3))
    data = topology_data(machine)
    reached_at = data["calibration"][0]["levels"] if "calibration" in data else {}
    for level in data["links"]:
        if level["bandwidth"]["basis"] == "measured":
            reached = reached_at[level["level"]]["value"] if level["level"] in reached_at else "-"
            links.add_row(level["level"], level["bandwidth"]["value"], level["latency"]["value"], reached)
    if links.row_count:
        console.print(links)
    if verbose:
        pairs = plain_table("from", "to", "", "rate", "latency", right=(3, 4))
        for m in machine.links:
            ends = [f"{rank} ({machine.hosts[rank]})" for rank in (m.rank, m.partner)]
            where = "inside a host" if m.inside else "between hosts"
            pairs.add_row(*ends, Text(where), format_rate(m.send_bytes_per_s), format_seconds(m.latency_s))
        console.print(pairs)
