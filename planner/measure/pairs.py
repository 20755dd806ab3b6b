"""Links pair by pair: every rank with ceil(log2 n) partners, then those of slow pairs with others.

In round k rank i talks to i xor 2^k, so all pairs of a round are apart and run at once, and after
ceil(log2 n) rounds every rank has met near and far ones. A slow pair does not say which of its ends is slow:
two more rounds join each end with a rank whose pairs were fast.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import torch
import torch.distributed as dist

from planner.measure import store as stores
from planner.measure.job import Identity
from planner.measure.watch import Watch

SLOW: Final = 0.6
"""A pair below this part of the fast ones of its kind is slow."""
_NEAR: Final = 1.6
"""GPUs in a row whose links among them are this much faster than those beyond them are joined otherwise."""
_PINGS: Final = 20
_PROBE_BYTES: Final = 1 << 16
_AIM_S: Final = 0.1
"""A message of the bandwidth test should take about so long."""
_MOST_BYTES: Final = {"cpu": 1 << 24, "cuda": 1 << 28}
_MESSAGES: Final = 4
_EXTRA_ROUNDS: Final = 2


@dataclass(frozen=True)
class Measured:
    """What one rank measured with a partner."""

    rank: int
    partner: int
    inside: bool
    """Both on one host."""
    latency_s: float
    """Half of a round trip, median."""
    send_bytes_per_s: float
    """To the partner; the receiver's clock decides."""
    spread: float
    """Of the messages' rates, as a part of the median."""
    points: tuple[tuple[int, float], ...] = ()
    """Bytes and seconds, one way, of messages of several sizes."""


def measured_from(data: dict[str, Any]) -> Measured:
    """From plain data."""
    points = tuple((int(num_bytes), float(seconds)) for num_bytes, seconds in data["points"])
    return Measured(**{**data, "points": points})


def rounds(ranks: int) -> list[list[tuple[int, int]]]:
    """Pairs of each round: i with i xor 2^k; ranks whose partner does not exist rest."""
    found = []
    distance = 1
    while distance < ranks:
        found.append([(i, i ^ distance) for i in range(ranks) if i < i ^ distance < ranks])
        distance *= 2
    return found


def repaired(measured: Sequence[Measured], hosts: Sequence[str]) -> list[tuple[int, int]]:
    """A further round: each end of a slow pair with a rank of only fast pairs that it has not met.

    Of the same kind (on its host, or on another) as the slow pair, where there is such a rank.
    """
    slow = slow_pairs(measured, hosts)
    suspects = sorted({end for pair in slow for end in pair})
    good = [rank for rank in range(len(hosts)) if rank not in suspects]
    met = {(m.rank, m.partner) for m in measured} | {(m.partner, m.rank) for m in measured}
    pairs = []
    for suspect in suspects:
        kinds = {hosts[one] == hosts[other] for one, other in slow if suspect in (one, other)}
        fresh = [rank for rank in good if (suspect, rank) not in met]
        alike = [rank for rank in fresh if (hosts[rank] == hosts[suspect]) in kinds]
        choice = next(iter(alike or fresh), None)
        if choice is not None:
            good.remove(choice)
            pairs.append((min(suspect, choice), max(suspect, choice)))
    return pairs


def of_each_kind(measured: Sequence[Measured], hosts: Sequence[str]) -> list[list[Measured]]:
    """Pairs that should be equally fast: inside hosts (blocks of faster links apart from the others), between hosts."""
    inside, size = [m for m in measured if m.inside], near_block(measured, hosts)
    close = [] if size is None else [m for m in inside if m.rank // size == m.partner // size]
    kinds = [close, [m for m in inside if m not in close], [m for m in measured if not m.inside]]
    return [kind for kind in kinds if kind]


def near_block(measured: Sequence[Measured], hosts: Sequence[str]) -> int | None:
    """GPUs in a row that are joined by faster links than all GPUs of their host."""
    inside, per_host = [m for m in measured if m.inside], max(hosts.count(host) for host in hosts)
    for size in (2, 4, 8):
        if size >= per_host or per_host % size:
            continue
        close = [m.send_bytes_per_s for m in inside if m.rank // size == m.partner // size]
        far = [m.send_bytes_per_s for m in inside if m.rank // size != m.partner // size]
        if close and far and min(close) > _NEAR * max(far):
            return size
    return None


def slow_pairs(measured: Sequence[Measured], hosts: Sequence[str]) -> set[tuple[int, int]]:
    """Pairs whose slower direction is below `SLOW` times what fast ones of their kind reach."""
    slow = set()
    for of_kind in of_each_kind(measured, hosts):
        if len({frozenset((m.rank, m.partner)) for m in of_kind}) < 2:
            continue  # one pair alone: there is nothing to compare it with
        limit = SLOW * fast_rate(of_kind)
        slow |= {(min(m.rank, m.partner), max(m.rank, m.partner)) for m in of_kind if m.send_bytes_per_s < limit}
    return slow


def fast_rate(of_kind: Sequence[Measured]) -> float:
    """What fast pairs reach: one slow host of three spoils most pairs, so the median would not do."""
    return float(np.quantile([m.send_bytes_per_s for m in of_kind], 0.9))


def test_links(identity: Identity, device: torch.device, store: Any, watch: Watch) -> list[dict[str, Any]]:
    """Measure this rank's pairs in all rounds; every rank must call this.

    Returns:
        What this rank sent, as plain data.
    """
    ranks = identity.world_size
    hosts = [stores.read(store, f"hello/{rank}")["host"] for rank in range(ranks)]
    mine: list[Measured] = []
    plan = rounds(ranks)
    for number in range(len(plan) + _EXTRA_ROUNDS):
        watch.window(f"links, round {number}")
        if number >= len(plan):
            plan.append(repaired(_shared(mine, identity, store, number), hosts))
        dist.barrier()
        partner = next((a ^ b ^ identity.rank for a, b in plan[number] if identity.rank in (a, b)), None)
        if partner is not None:
            watch.phase(f"links with rank {partner} ({hosts[partner]})", waits=True)
            inside = hosts[partner] == hosts[identity.rank]
            mine.append(_measure(identity.rank, partner, device, inside=inside))
    return [asdict(measured) for measured in mine]


test_links.__test__ = False  # type: ignore[attr-defined]  # not a test of pytest's


def _shared(mine: Sequence[Measured], identity: Identity, store: Any, number: int) -> list[Measured]:
    """What all ranks have measured so far."""
    stores.put(store, f"links/{number}/{identity.rank}", [asdict(measured) for measured in mine])
    dist.barrier()
    return [
        measured_from(one)
        for rank in range(identity.world_size)
        for one in stores.read(store, f"links/{number}/{rank}")
    ]


def _measure(me: int, partner: int, device: torch.device, *, inside: bool) -> Measured:
    """Ping-pong, then messages in each direction, the lower rank first."""
    first = me < partner
    small = torch.zeros(8, dtype=torch.uint8, device=device)
    trips = []
    for _ in range(_PINGS):
        begin = time.perf_counter()
        _turn(small, partner, first=first)
        _synchronise(device)
        trips.append(time.perf_counter() - begin)
    latency = float(np.median(trips[2:])) / 2
    points: list[tuple[int, float]] = []
    for sending in (first, not first):
        if sending:
            points = _send_many(partner, device, latency)
        else:
            _receive_many(partner, device)
    rates = [num_bytes / seconds for num_bytes, seconds in points[1:]]
    low, median, high = np.quantile(rates, [0.1, 0.5, 0.9]).tolist()
    kept = ((small.numel(), latency), *points)
    return Measured(me, partner, inside, latency, median, (high - low) / median, kept)


def _turn(tensor: torch.Tensor, partner: int, *, first: bool) -> None:
    for sending in (first, not first):
        if sending:
            dist.send(tensor, partner)
        else:
            dist.recv(tensor, partner)


def _send_many(partner: int, device: torch.device, latency_s: float) -> list[tuple[int, float]]:
    """Bytes and seconds of some messages, by the answer that each gets; their size is chosen from a first one."""

    def seconds_of(message: torch.Tensor) -> float:
        begin = time.perf_counter()
        _acknowledged(message, partner)
        whole = time.perf_counter() - begin
        return max(whole - latency_s, whole / 2)  # the answer's way back is not the message's

    first = seconds_of(torch.zeros(_PROBE_BYTES, dtype=torch.uint8, device=device))
    size = int(min(_MOST_BYTES[device.type], max(_PROBE_BYTES, _PROBE_BYTES / first * _AIM_S)))
    dist.send(torch.tensor([size], dtype=torch.int64, device=device), partner)
    message = torch.zeros(size, dtype=torch.uint8, device=device)
    return [(_PROBE_BYTES, first), *((size, seconds_of(message)) for _ in range(_MESSAGES))]


def _acknowledged(message: torch.Tensor, partner: int) -> None:
    dist.send(message, partner)
    answer = torch.zeros(1, dtype=torch.uint8, device=message.device)
    dist.recv(answer, partner)
    _synchronise(message.device)


def _receive_many(partner: int, device: torch.device) -> None:
    answer = torch.zeros(1, dtype=torch.uint8, device=device)
    message = torch.zeros(_PROBE_BYTES, dtype=torch.uint8, device=device)
    dist.recv(message, partner)
    dist.send(answer, partner)
    size = torch.zeros(1, dtype=torch.int64, device=device)
    dist.recv(size, partner)
    message = torch.zeros(int(size), dtype=torch.uint8, device=device)
    for _ in range(_MESSAGES):
        dist.recv(message, partner)
        dist.send(answer, partner)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
