"""What is wrong with the machine: slow pairs put down to a rank or a host, slow devices, stragglers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from planner.inputs.units import format_rate, format_seconds
from planner.measure.pairs import Measured, fast_rate, of_each_kind, slow_pairs

_SLOW_DEVICE: Final = 0.8
"""A device below this part of the median of its kind is slow."""
_LATE: Final = 0.1
"""A rank for which the others wait longer than this part of the run, net of its own waiting, is late."""


@dataclass(frozen=True)
class MachineFinding:
    """Something slow, with the hosts it speaks against."""

    message: str
    hosts: tuple[str, ...]


def link_findings(measured: Sequence[Measured], hosts: Sequence[str]) -> list[MachineFinding]:
    """Slow pairs, put down to one rank or host where all its pairs are slow and those of others are not."""
    slow = slow_pairs(measured, hosts)
    found: list[MachineFinding] = []
    for of_kind in of_each_kind(measured, hosts):
        inside = of_kind[0].inside
        bad = {pair for pair in slow if any({m.rank, m.partner} == set(pair) for m in of_kind)}
        if not bad:
            continue
        fast = fast_rate(of_kind)
        blamed: set[int] = set()
        for host in dict.fromkeys(hosts):
            ranks = {rank for rank, where in enumerate(hosts) if where == host}
            if not inside and _all_slow(ranks, of_kind, bad):
                worst = _slowest(ranks, of_kind)
                what = f"rank {min(ranks)}" if len(ranks) == 1 else f"ranks {', '.join(map(str, sorted(ranks)))}"
                message = f"slow NIC or link of host {host} ({what}): {_rates(worst, fast)}"
                found.append(MachineFinding(message, (host,)))
                blamed |= ranks
        for rank in sorted({end for pair in bad for end in pair} - blamed):
            if _all_slow({rank}, of_kind, bad) and not _partners(rank, of_kind) <= blamed:
                what = "GPU or its link" if inside else "NIC or link"
                message = f"slow {what} of rank {rank} ({hosts[rank]}): {_rates(_slowest({rank}, of_kind), fast)}"
                found.append(MachineFinding(message, (hosts[rank],)))
                blamed.add(rank)
        for one, other in sorted(bad):
            if not {one, other} & blamed:
                rate = min(m.send_bytes_per_s for m in of_kind if {m.rank, m.partner} == {one, other})
                ends = f"rank {one} ({hosts[one]}) and rank {other} ({hosts[other]})"
                message = f"slow link between {ends}: {_rates(rate, fast)}"
                found.append(MachineFinding(message, tuple(dict.fromkeys((hosts[one], hosts[other])))))
    return found


def _all_slow(ranks: set[int], of_kind: Sequence[Measured], bad: set[tuple[int, int]]) -> bool:
    """Whether these ranks have met at least two others, every such pair is slow, and some pair without them is not."""
    pairs = {
        (min(m.rank, m.partner), max(m.rank, m.partner)) for m in of_kind if (m.rank in ranks) != (m.partner in ranks)
    }
    others = {(min(m.rank, m.partner), max(m.rank, m.partner)) for m in of_kind} - pairs
    return len(pairs) > 1 and pairs <= bad and not others <= bad


def _partners(rank: int, of_kind: Sequence[Measured]) -> set[int]:
    return {m.partner for m in of_kind if m.rank == rank}


def _slowest(ranks: set[int], of_kind: Sequence[Measured]) -> float:
    return min(m.send_bytes_per_s for m in of_kind if m.rank in ranks or m.partner in ranks)


def _rates(found: float, fast: float) -> str:
    return f"{format_rate(found)}, fast ones of its kind {format_rate(fast)}"


def device_findings(results: Sequence[Mapping[str, Any]]) -> list[MachineFinding]:
    """Devices that compute or read slower than most of their kind."""
    found = []
    for key, what in (("gemm_flop_per_s", "computes"), ("memory_bytes_per_s", "reads memory")):
        by_kind: dict[str, list[tuple[int, float]]] = {}
        for rank, result in enumerate(results):
            rates = result["smoke"]["rates"]
            if rates is not None:
                by_kind.setdefault(result["smoke"]["device"], []).append((rank, rates[key]["median"]))
        for pairs in by_kind.values():
            median = float(np.median([rate for _, rate in pairs]))
            for rank, rate in pairs:
                if len(pairs) > 2 and rate < _SLOW_DEVICE * median:
                    host = results[rank]["host"]
                    message = f"rank {rank} ({host}) {what} at {rate / median:.0%} of the median of its kind"
                    found.append(MachineFinding(message, (host,)))
    return found


def stragglers(results: Sequence[Mapping[str, Any]], stage_of: Sequence[int], passes_s: float) -> list[MachineFinding]:
    """Ranks for which the others of their stage wait, again and again.

    A rank that comes late waits little itself. What it keeps the others waiting is the median of their
    waiting less its own, summed over all exchanges and compared with the other ranks: chance hits all alike.
    """
    found = []
    for stage in sorted(set(stage_of)):
        ranks = [rank for rank, where in enumerate(stage_of) if where == stage]
        if len(ranks) < 3:
            continue
        waits = np.array([_waits(results[rank]) for rank in ranks])  # [ranks, exchanges]
        late = (np.median(waits, axis=0) - waits).sum(axis=1)
        late -= np.median(late)
        usual = float(np.median(np.abs(late)))
        for position, rank in enumerate(ranks):
            if late[position] > max(_LATE * passes_s, 5 * usual):
                host = results[rank]["host"]
                message = f"rank {rank} ({host}) comes late: others wait {format_seconds(late[position])} for it"
                found.append(MachineFinding(f"{message} in {format_seconds(passes_s)}", (host,)))
    return found


def _waits(result: Mapping[str, Any]) -> list[float]:
    """Waiting before every exchange of the replay, in the same order on all ranks of a stage."""
    return [
        seconds
        for phase in sorted(result["runs"]["plan"]["counted"])
        for layer in sorted(result["runs"]["plan"]["counted"][phase], key=int)
        for seconds in result["runs"]["plan"]["counted"][phase][layer]["wait_s"]
    ]
