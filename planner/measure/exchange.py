"""Dispatch and combine: rows go to the ranks that hold their experts, and results come back the same way.

A `Hop` is one all-to-all there and its mirror image back. Without forwarding there is one hop, from home
to the ranks; with it two: from home to one rank of each scale-up domain, then inside. What a receiver
holds it has read off the wire: slots and weights travel with the rows, counts go ahead of them.

Legend: N rows, H hidden size, K choices that travel with a row, R ranks of the group, C copies sent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from planner.cost.wires import Wires
from planner.inputs.precision import ActivationName
from planner.measure.clock import Clock
from planner.measure.wire_format import Rows, decode, encode


@dataclass(frozen=True)
class Lane:
    """One rank in its all-to-all group."""

    group: dist.ProcessGroup
    me: int
    wires: Wires
    slots_per_rank: int
    dispatch: ActivationName
    combine: ActivationName
    order: tuple[int, ...] | None = None
    """EP rank of each member of the group, which torch numbers by rank of the run; None: as they are."""

    def swap(self, raw: Tensor, sent_R: Sequence[int], arriving_R: Sequence[int]) -> Tensor:
        """Rows of bytes to and from every EP rank, in the order of EP ranks."""
        if self.order is None:
            return all_to_all(raw, sent_R, arriving_R, self.group)
        parts = raw.split(list(sent_R))
        sent, arriving = [sent_R[rank] for rank in self.order], [arriving_R[rank] for rank in self.order]
        found = all_to_all(torch.cat([parts[rank] for rank in self.order]), sent, arriving, self.group).split(arriving)
        return torch.cat([found[self.order.index(rank)] for rank in range(len(found))])

    def counts(self, sent_R: Sequence[int], device: torch.device) -> tuple[int, ...]:
        """How many rows each EP rank will send here."""
        if self.order is None:
            return counts_from(sent_R, self.group, device)
        found = counts_from([sent_R[rank] for rank in self.order], self.group, device)
        return tuple(found[self.order.index(rank)] for rank in range(len(found)))


@dataclass(frozen=True)
class Copies:
    """Which copies a rank sends: row and receiver of each, sorted by receiver, with the choices left to it."""

    row_C: Tensor
    counts_R: tuple[int, ...]
    slot_CK: Tensor
    weight_CK: Tensor


@dataclass(frozen=True)
class Hop:
    """An all-to-all that was done: enough to send results back."""

    lane: Lane
    copies: Copies
    arrived_R: tuple[int, ...]
    num_rows: int

    def back(self, y_NH: Tensor, clock: Clock) -> Tensor:
        """Results of the rows that arrived, summed at the rows that were sent."""
        lane, hidden = self.lane, y_NH.shape[1]
        with clock.phase("combine", lane.group):
            raw = lane.swap(encode(y_NH, lane.combine), self.arrived_R, self.copies.counts_R)
            result_CH = decode(raw, lane.combine, hidden, y_NH.dtype)
            home_NH = torch.zeros((self.num_rows, hidden), dtype=y_NH.dtype, device=y_NH.device)
            return home_NH.index_add_(0, self.copies.row_C, result_CH)


def all_to_all(raw: Tensor, sent_R: Sequence[int], arriving_R: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    """Rows of bytes to and from every rank of a group, in the group's own order."""
    arrived = raw.new_empty((sum(arriving_R), raw.shape[1]))
    dist.all_to_all_single(arrived, raw.contiguous(), list(arriving_R), list(sent_R), group=group)
    return arrived


def counts_from(sent_R: Sequence[int], group: dist.ProcessGroup, device: torch.device) -> tuple[int, ...]:
    """How many rows each rank will send here."""
    sent = torch.tensor(sent_R, dtype=torch.int64, device=device)
    arriving = torch.empty_like(sent)
    dist.all_to_all_single(arriving, sent, group=group)
    return tuple(arriving.tolist())


def dispatch(
    rows: Rows, first: int, lane: Lane, clock: Clock, on_sent: Callable[[Sequence[int]], None]
) -> tuple[Rows, list[Hop]]:
    """Bring rows to the ranks of their experts.

    Args:
        rows: the tokens at home, with all their choices.
        first: number of the first of them at home, by which they take turns among the ways into a domain.
        lane: this rank's group.
        clock: times it.
        on_sent: told how many rows go to each rank, once per hop.

    Returns:
        The rows that this rank must serve, and the hops by which they came.
    """
    hops = []
    for to_domains in [True, False] if lane.wires.forwards else [False]:
        with clock.phase("arrange"):
            copies = _to_domains(rows, first, lane) if to_domains else _to_ranks(rows, lane)
        on_sent(copies.counts_R)
        rows, hop = _send(rows, copies, lane, clock)
        hops.append(hop)
    return rows, hops


def combine(y_NH: Tensor, hops: Sequence[Hop], clock: Clock) -> Tensor:
    """Bring the results of served rows home."""
    for hop in reversed(hops):
        y_NH = hop.back(y_NH, clock)
    return y_NH


def _send(rows: Rows, copies: Copies, lane: Lane, clock: Clock) -> tuple[Rows, Hop]:
    device, choices, hidden = rows.x_NH.device, copies.slot_CK.shape[1], rows.x_NH.shape[1]
    with clock.phase("counts", lane.group):
        arriving_R = lane.counts(copies.counts_R, device)
    with clock.phase("dispatch", lane.group):
        sent = Rows(rows.x_NH[copies.row_C], copies.slot_CK, copies.weight_CK)
        raw = lane.swap(sent.packed(lane.dispatch), copies.counts_R, arriving_R)
        arrived = Rows.unpacked(raw, lane.dispatch, hidden, choices, rows.x_NH.dtype)
    return arrived, Hop(lane, copies, arriving_R, len(rows))


def _to_ranks(rows: Rows, lane: Lane) -> Copies:
    """Copies for the ranks of the experts: one per choice, or one per rank visited."""
    ranks = len(lane.wires.domain_R)
    rank_NK = torch.where(rows.slot_NK < 0, -1, rows.slot_NK // lane.slots_per_rank).long()
    if lane.wires.dedup == "expert":
        row_C, choice_C = torch.nonzero(rank_NK >= 0, as_tuple=True)
        to_C, order_C = torch.sort(rank_NK[row_C, choice_C], stable=True)
        row_C, choice_C = row_C[order_C], choice_C[order_C]
        slot_CK, weight_CK = rows.slot_NK[row_C, choice_C, None], rows.weight_NK[row_C, choice_C, None]
        return Copies(row_C, _counted(to_C, ranks), slot_CK, weight_CK)
    to_C, row_C = torch.nonzero(_visited(rank_NK, ranks).T, as_tuple=True)
    keep_CK = rank_NK[row_C] == to_C[:, None]
    return Copies(row_C, _counted(to_C, ranks), torch.where(keep_CK, rows.slot_NK[row_C], -1), rows.weight_NK[row_C])


def _to_domains(rows: Rows, first: int, lane: Lane) -> Copies:
    """Copies for one rank of each scale-up domain visited; for the own domain the token stays."""
    wires, device = lane.wires, rows.x_NH.device
    ranks, domains = len(wires.domain_R), wires.num_domains
    domain_R = torch.from_numpy(wires.domain_R).to(device)
    rank_NK = torch.where(rows.slot_NK < 0, -1, rows.slot_NK // lane.slots_per_rank).long()
    domain_NK = torch.where(rank_NK < 0, -1, domain_R[rank_NK.clamp_min(0)])
    domain_C, row_C = torch.nonzero(_visited(domain_NK, domains).T, as_tuple=True)
    most = max(len(wires.entries(lane.me, domain)) for domain in range(domains))
    entry_DX = torch.zeros((domains, most), dtype=torch.int64)
    size_D = torch.zeros(domains, dtype=torch.int64)
    for domain in range(domains):
        entries = torch.from_numpy(wires.entries(lane.me, domain))
        entry_DX[domain, : len(entries)], size_D[domain] = entries, len(entries)
    turn_C = (lane.me + first + row_C) % size_D.to(device)[domain_C]
    to_C, order_C = torch.sort(entry_DX.to(device)[domain_C, turn_C], stable=True)
    row_C, domain_C = row_C[order_C], domain_C[order_C]
    keep_CK = domain_NK[row_C] == domain_C[:, None]
    return Copies(row_C, _counted(to_C, ranks), torch.where(keep_CK, rows.slot_NK[row_C], -1), rows.weight_NK[row_C])


def _visited(place_NK: Tensor, places: int) -> Tensor:
    """Whether each row visits each place [N, places]; -1 is nowhere."""
    found = torch.zeros((len(place_NK), places + 1), dtype=torch.bool, device=place_NK.device)
    found.scatter_(1, torch.where(place_NK < 0, places, place_NK), value=True)
    return found[:, :places]


def _counted(to_C: Tensor, ranks: int) -> tuple[int, ...]:
    return tuple(torch.bincount(to_C, minlength=ranks).tolist())
