"""A topology file from what ranks measured: levels, groups of hosts, a GPU with what its kernels reach.

Legend: N samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import yaml

from planner.errors import MissingEnvironmentError
from planner.inputs.documents import validated
from planner.inputs.topology import resolve
from planner.inputs.topology_file import TopologyFile
from planner.inputs.units import format_compute, format_percent, format_rate, format_seconds, parse_quantity
from planner.measure.fit import KernelSamples, Line, alpha_beta, fit_roofline
from planner.measure.pairs import SLOW, Measured, measured_from, near_block
from planner.measure.reported import Joined, joined, reported_of

_WORKS: Final = {"gemm": None, "experts": None, "attention_decode": "gqa", "attention_prefill": "gqa"}
_DIGITS: Final = 4
NOT_REPORTED: Final = "not reported by the driver"
_NAMED: Final = 3
"""Links of a level that are named."""

Results = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Machine:
    """What all ranks measured."""

    results: Results
    device: str
    """cpu or cuda."""
    version: str

    @property
    def hosts(self) -> tuple[str, ...]:
        """Host of each rank."""
        return tuple(result["host"] for result in self.results)

    @property
    def host_names(self) -> tuple[str, ...]:
        """Hosts in order of their first rank."""
        return tuple(dict.fromkeys(self.hosts))

    def joined(self, measured: Sequence[Measured]) -> Joined:
        """What the driver says joins these pairs: all that it names, and the median of the line rates."""
        said, over = reported_of(self.results), [result["interface"] for result in self.results]
        every = [
            joined(said[m.rank], said[m.partner], inside=m.inside, interfaces=(over[m.rank], over[m.partner]))
            for m in measured
        ]
        names = sorted({one.by for one in every})
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        rates = [one.bytes_per_s for one in every if one.bytes_per_s is not None]
        return Joined(", ".join(names[:_NAMED]) + more, float(np.median(rates)) if len(rates) == len(every) else None)

    @property
    def links(self) -> list[Measured]:
        """Everything measured in pairs."""
        return [measured_from(one) for result in self.results for one in result["links"]]


def topology_text(machine: Machine) -> str:
    """The topology file, checked by reading it.

    Raises:
        MissingEnvironmentError: ranks do not sit host by host, so that no file could number them so.
    """
    data = topology_data(machine)
    resolve(validated(TopologyFile, {key: value for key, value in data.items() if key != "schema"}))
    names = ", ".join(f"node {number}: {host}" for number, host in enumerate(machine.host_names))
    head = f"# Measured by ep-plan probe {machine.version} on {len(machine.hosts)} ranks; {names}.\n"
    return head + yaml.safe_dump(data, sort_keys=False, width=120, allow_unicode=True)


def topology_data(machine: Machine) -> dict[str, Any]:
    """The same as plain data."""
    hosts, names = machine.hosts, machine.host_names
    if list(hosts) != sorted(hosts, key=names.index):
        hint = "start ranks host by host: the ranks of a host must be consecutive"
        raise MissingEnvironmentError(f"ranks are not in order of hosts: {', '.join(hosts)}", hint=hint)
    data: dict[str, Any] = {"schema": "ep-plan/topology/1"}
    sizes = [hosts.count(host) for host in names]
    own = _own_links(machine)
    groups = _groups(machine, sizes, own)
    if len(groups) == 1 and not groups[0].get("links"):
        (group,) = groups
        data |= {"gpu": group["gpu"], "nodes": len(names), "gpus_per_node": group["gpus_per_node"]}
    else:
        data["groups"] = groups
    data["links"] = _levels(machine)
    calibration = _calibration(machine)
    return data | {"calibration": calibration} if calibration else data


# --- links ----------------------------------------------------------------------------------------


def _own_links(machine: Machine) -> dict[str, Line]:
    """For hosts whose links to others are slower than usual: what they have."""
    between = [m for m in machine.links if not m.inside]
    if not between or len(machine.host_names) < 3:
        return {}
    best = {
        host: max(m.send_bytes_per_s for m in between if host in (machine.hosts[m.rank], machine.hosts[m.partner]))
        for host in machine.host_names
    }
    fast = float(np.median(list(best.values())))
    slow = [host for host, rate in best.items() if rate < SLOW * fast]
    return {host: _line([m for m in between if _touches(m, host, machine)]) for host in slow}


def _touches(measured: Measured, host: str, machine: Machine) -> bool:
    return host in (machine.hosts[measured.rank], machine.hosts[measured.partner])


def _line(measured: Sequence[Measured]) -> Line:
    return alpha_beta([point for m in measured for point in m.points])


def pairs_of_levels(machine: Machine) -> dict[str, list[Measured]]:
    """The pairs that each level is drawn from, innermost level first."""
    slow_hosts = _own_links(machine)
    inside = [m for m in machine.links if m.inside]
    near = near_block(machine.links, machine.hosts)
    close = [] if near is None else [m for m in inside if m.rank // near == m.partner // near]
    between = [m for m in machine.links if not m.inside and not any(_touches(m, host, machine) for host in slow_hosts)]
    found = {"bridge": close, "node": [m for m in inside if m not in close], "cluster": between}
    return {name: pairs for name, pairs in found.items() if pairs}


def _levels(machine: Machine) -> list[dict[str, Any]]:
    """Levels inside a host and between hosts, as far as there are several GPUs or hosts."""
    pairs = pairs_of_levels(machine)
    levels = [_level(name, measured, machine) for name, measured in pairs.items()]
    if "bridge" in pairs:
        levels[0]["gpus"] = near_block(machine.links, machine.hosts)
    return levels if {"bridge", "node"} & set(pairs) else [_alone(), *levels]


def _alone() -> dict[str, Any]:
    """The level inside hosts of one GPU each: nothing passes it."""
    note = {"basis": "assumed", "source": "one GPU in each host: nothing passes this level"}
    return {
        "level": "node",
        "bandwidth": {"value": "100 GB/s", **note},
        "latency": {"value": "1 us", **note},
    }


def _level(name: str, measured: Sequence[Measured], machine: Machine) -> dict[str, Any]:
    line = _line(measured)
    rates = [m.send_bytes_per_s for m in measured]
    low, high = np.quantile(rates, [0.1, 0.9]).tolist()
    what = "ranks of a host" if measured[0].inside else "hosts"
    spread = f"middle 80 % {format_rate(low)} to {format_rate(high)}"
    source = f"ep-plan probe: pairs of {what}, all pairs of a round at once, {len(measured)} samples, {spread}"
    said = machine.joined(measured)
    line_rate = NOT_REPORTED if said.bytes_per_s is None else format_rate(said.bytes_per_s)
    value = _plain(format_rate(line.bytes_per_s, _DIGITS))
    return {
        "level": name,
        "bandwidth": _measured(value, f"{source}; by {said.by}, line rate {line_rate}"),
        "latency": _measured(_plain(format_seconds(line.alpha_s, _DIGITS)), source),
    }


def _calibration(machine: Machine) -> list[dict[str, Any]]:
    """What an all-to-all reaches: part of the bandwidth by level, and the constant time beyond the latency."""
    entry: dict[str, Any] = {"kernel": "all-to-all"}
    launches: list[tuple[float, str]] = []
    levels = [level for level in _levels(machine) if level["bandwidth"]["basis"] == "measured"]
    slow = list(_own_links(machine).values())
    for inside in (True, False):
        on = [level for level in levels if (level["level"] != "cluster") is inside]
        found = [
            exchange for result in machine.results for exchange in result["exchanges"] if exchange["inside"] is inside
        ]
        if not found or not on:
            continue
        # all wait for the slowest link: the outermost level's, and between hosts that of a host with a slower one
        bandwidth = parse_quantity(on[-1]["bandwidth"]["value"], "rate")
        latency_s = parse_quantity(on[-1]["latency"]["value"], "time")
        if not inside:
            bandwidth = min([bandwidth, *(line.bytes_per_s for line in slow)])
            latency_s = max([latency_s, *(line.alpha_s for line in slow)])
        near = on[0].get("gpus", 1) if inside and len(on) > 1 else 1
        fits = [_exchange_line(exchange, machine.hosts, near=near, inside=inside) for exchange in found]
        reached = float(np.median([min(1.0, fit.bytes_per_s / bandwidth) for fit in fits]))
        constant = float(np.median([fit.alpha_s for fit in fits]))
        words = f"ep-plan probe: all-to-all of {len(found[0]['ranks'])} ranks, {len(found)} samples"
        entry.setdefault("levels", {}).update({level["level"]: _measured(_percent(reached), words) for level in on})
        launches.append((max(0.0, constant - latency_s), words))
    if not launches:
        return []
    launch_s, words = max(launches)
    value = {"launch": _plain(format_seconds(launch_s, _DIGITS))}
    return [entry | {"dispatch": _measured(value, words), "combine": _measured(dict(value), words)}]


def _exchange_line(exchange: Mapping[str, Any], hosts: Sequence[str], *, near: int, inside: bool) -> Line:
    """Seconds of an all-to-all over the bytes that a rank sends by the level's links, to all but the `near` ranks."""
    on = [hosts[rank] for rank in exchange["ranks"]]
    crossing = len(on) - (near if inside else min(on.count(host) for host in set(on)))
    return alpha_beta([(num_bytes * crossing, seconds) for num_bytes, seconds in exchange["points"]])


# --- GPUs and their hosts -------------------------------------------------------------------------


def _groups(machine: Machine, sizes: Sequence[int], own: Mapping[str, Line]) -> list[dict[str, Any]]:
    """Consecutive hosts that are alike."""
    groups: list[dict[str, Any]] = []
    keys: list[Any] = []
    for host, size in zip(machine.host_names, sizes, strict=True):
        ranks = [rank for rank, where in enumerate(machine.hosts) if where == host]
        device = machine.results[ranks[0]]["smoke"]["device"]
        key = (device, size, host if host in own else None)
        if keys and keys[-1] == key:
            groups[-1]["nodes"] += 1
            continue
        same = [rank for rank, result in enumerate(machine.results) if result["smoke"]["device"] == device]
        group: dict[str, Any] = {"gpu": _gpu(machine, same, size), "nodes": 1, "gpus_per_node": size}
        if host in own:
            source = f"ep-plan probe: pairs of host {host}, slower than those of other hosts"
            line = own[host]
            group["links"] = [
                {
                    "level": "cluster",
                    "bandwidth": _measured(_plain(format_rate(line.bytes_per_s, _DIGITS)), source),
                    "latency": _measured(_plain(format_seconds(line.alpha_s, _DIGITS)), source),
                }
            ]
        keys.append(key)
        groups.append(group)
    return groups


def _gpu(machine: Machine, ranks: Sequence[int], per_host: int) -> dict[str, Any]:
    """The device of some ranks: medians of what they measured at the same time."""
    results = [machine.results[rank] for rank in ranks]
    name = results[0]["smoke"]["device"]
    where = f"ep-plan probe {machine.version} on {name}, {len(ranks)} ranks at once"
    memory = min(result["smoke"]["memory_bytes"] for result in results)
    share = memory if machine.device == "cuda" else memory // per_host
    hbm = _median(results, "memory_bytes_per_s")
    gpu: dict[str, Any] = {
        "memory": _measured(f"{share >> 20} MiB", where),
        "hbm_bandwidth": _measured(
            _plain(format_rate(hbm, _DIGITS)), f"{where}: {_spread(results, 'memory_bytes_per_s')}"
        ),
        "compute": {},
        "efficiency": {},
    }
    for weights in results[0]["compute"]:
        rates = [result["compute"][weights] for result in results]
        peak = float(np.median([rate["median"] for rate in rates]))
        spread = _spread_of(rates)
        gpu["compute"][weights] = _measured(_plain(format_compute(peak, _DIGITS)), f"{where}: large GEMM, {spread}")
        for work, curve_name in _WORKS.items():
            if curve_name is not None and weights != list(results[0]["compute"])[-1]:
                continue  # attention has one curve, of the format that is computed in
            samples = [sample for result in results for sample in result["kernels"][weights][work]]
            gpu["efficiency"].setdefault(work, {})[curve_name or weights] = _curve(samples, peak, hbm, where)
    gpu["efficiency"]["overlap"] = _measured("0%", "dispatch, experts and combine follow one another in the micro-run")
    return gpu


def _curve(samples: Sequence[Mapping[str, float]], peak: float, hbm: float, where: str) -> dict[str, Any]:
    columns = {key: np.array([sample[key] for sample in samples]) for key in samples[0]}
    fit = fit_roofline(KernelSamples(**columns), peak, hbm)
    value: dict[str, Any] = {
        "base": _plain(format_seconds(fit.base_s, _DIGITS)),
        "compute": _percent(fit.compute),
        "memory": _percent(fit.memory),
        "exponent": fit.exponent,
    }
    if columns["experts"].any():
        value["per_expert"] = _plain(format_seconds(fit.per_expert_s, _DIGITS))
    if columns["moved_bytes"].any():
        value["activation"] = _percent(fit.activation)
    middle, most = np.quantile(fit.errors, [0.5, 0.9]).tolist()
    errors = {"median": _percent(middle), "p90": _percent(most)}
    return {**_measured(value, f"{where}, {len(samples)} samples"), "fit": errors}


def _median(results: Results, key: str) -> float:
    return float(np.median([result[key]["median"] for result in results]))


def _spread(results: Results, key: str) -> str:
    return _spread_of([result[key] for result in results])


def _spread_of(rates: Sequence[Mapping[str, float]]) -> str:
    low, high = min(rate["low"] for rate in rates), max(rate["high"] for rate in rates)
    median = float(np.median([rate["median"] for rate in rates]))
    return f"samples from {format_percent(low / median - 1)} to +{format_percent(high / median - 1)} of the median"


def _measured(value: Any, source: str) -> dict[str, Any]:
    return {"value": value, "basis": "measured", "source": source}


def _plain(text: str) -> str:
    """A figure for people as a file takes it: no thousands separators."""
    return text.replace(",", "")


def _percent(part: float) -> str:
    return f"{float(f'{100 * part:.{_DIGITS}g}'):g}%"
