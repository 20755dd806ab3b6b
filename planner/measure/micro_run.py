"""The micro-run of one rank: the MoE layers of its stage, window after window.

Per layer: attention-shaped work between an all-gather and a reduce-scatter of the tensor-parallel group,
dispatch, experts (gathered and scattered again among the GPUs that share them), combine. Stages pass
hidden states on, one micro-batch after the other.

Legend: T tokens of a window, N tokens of this rank, L traced layers, K choices, H hidden size, P slots.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from planner.cost.sharing import Sharing
from planner.inputs.precision import ActivationName
from planner.measure.clock import Clock
from planner.measure.compute import (
    AttentionWeights,
    Held,
    Reference,
    attend,
    attention_weights,
    compute_dtype,
    held_experts,
    normalised,
    reference_attention,
    serve,
)
from planner.measure.exchange import Hop, Lane, all_to_all, combine, counts_from, dispatch
from planner.measure.groups import Groups
from planner.measure.replay import RecordedWindow, serving_slots
from planner.measure.seats import Seat
from planner.measure.shape import Shape
from planner.measure.wire_format import ROUNDING, Rows, decode, encode
from planner.plan.placement import Placement
from planner.plan.split import Split
from planner.trace.homes import Spread

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Worst:
    """The largest deviation from the reference that was seen in a layer."""

    error: float
    """Norm of the difference over the norm of the reference."""
    allowed: float
    part: str
    token: int


@dataclass
class Found:
    """What a rank counted and compared."""

    served_LP: dict[int, Ints]
    """Choices that each of the rank's slots served, by hidden layer."""
    sent_LV: dict[int, Ints]
    """Copies that it handed to each link level in dispatch, by hidden layer."""
    worst: dict[int, Worst] = field(default_factory=dict)
    sums: list[int] = field(default_factory=list)
    """Sums of the hidden states that came from the stage before, or went to the next."""
    passes_s: list[float] = field(default_factory=list)
    """Seconds of each whole pass over a window."""
    windows_LS: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    """Choices that the rank served in each window, by hidden layer."""

    def end_window(self) -> None:
        """Note what was served since the window before."""
        for layer, served_P in self.served_LP.items():
            before = self.windows_LS[layer]
            before.append(int(served_P.sum()) - sum(before))


@dataclass
class MicroRun:
    """One rank with everything it needs; `run_window` is a step."""

    seat: Seat
    split: Split
    groups: Groups
    lane: Lane | None
    placement: Placement
    sharing: Sharing
    """How copies of an expert share its tokens."""
    layers: tuple[int, ...]
    """MoE hidden layers of this stage that are replayed."""
    column_of: Mapping[int, int]
    """Column of each of them in the trace."""
    shape: Shape
    device: torch.device
    clock: Clock
    on_layer: Callable[[int], None]
    sample: int | None
    """Tokens of each layer that are computed again as reference; None: all."""
    num_levels: int
    sequences: int
    """Tokens of a data-parallel rank at most."""
    held: dict[int, Held] = field(default_factory=dict)
    attention: dict[int, AttentionWeights | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._reference = Reference(self.shape, self.device)

    # --- weights ----------------------------------------------------------------------------------

    def _slots(self, layer: int) -> Ints:
        """Logical experts of this rank, slot by slot; -1: empty."""
        first = self.seat.ep_rank * self.placement.slots_per_rank
        return self._expert_P(layer)[first : first + self.placement.slots_per_rank]

    def _local(self, slot_NK: Tensor) -> Tensor:
        """The rank's own slot of each choice; -1: none of its own."""
        base, slots = self.seat.ep_rank * self.placement.slots_per_rank, self.placement.slots_per_rank
        mine = (slot_NK >= base) & (slot_NK < base + slots)
        return torch.where(mine, slot_NK - base, -1).long()

    def _held(self, layer: int, local_NK: Tensor) -> Tensor:
        """Which of the weights held serve each choice: empty slots hold none."""
        filled = self._slots(layer) >= 0
        held = np.where(filled, np.cumsum(filled) - 1, -1)
        table = torch.from_numpy(np.append(held, -1)).to(self.device)  # the last entry is for -1
        return table[local_NK]

    def make_weights(self, layer: int) -> None:
        """Make the weights and the cache of a layer."""
        shape, seat, slots = self.shape, self.seat, self._slots(layer)
        experts = slots[slots >= 0].tolist()
        self.held[layer] = held_experts(layer, experts, seat.etp_rank, shape, self.device)
        of = shape.attention[layer]
        self.attention[layer] = (
            None if of is None else attention_weights(layer, seat.tp_rank, of, shape, self.sequences, self.device)
        )

    # --- a pass over a window ---------------------------------------------------------------------

    def run_window(self, window: RecordedWindow, found: Found | None) -> float:
        """One step over a window; counts and compares into `found` where given. Returns its seconds."""
        mine, tokens = self._my_tokens(window)
        home_T = Spread(self.split.ep, self.split.etp).home(np.arange(window.num_tokens))
        slots_LNK = {
            layer: serving_slots(
                window.ids_TLK[:, self.column_of[layer]],
                self._expert_P(layer),
                self.shape.num_experts,
                self.sharing,
                home_T,
            )[mine]
            for layer in self.layers
        }
        batches = self._batches(tokens)
        dist.barrier(self.groups.stage)
        begin = self.clock.now()
        for first, end in batches:
            self._batch(window, mine, slots_LNK, (first, end), found)
        seconds = self.clock.now() - begin
        if found is not None:
            found.passes_s.append(seconds)
        return seconds

    def _expert_P(self, layer: int) -> Ints:
        row = self.placement.layer_ids.index(layer)
        expert_P: Ints = self.placement.expert_LP[row]
        return expert_P

    def _my_tokens(self, window: RecordedWindow) -> tuple[Ints, int]:
        """Indices of this GPU's tokens, and how many places every GPU of the stage has."""
        per_stage = self.split.stage_gpus
        return np.arange(self.seat.index, window.num_tokens, per_stage), -(-window.num_tokens // per_stage)

    def _batches(self, tokens: int) -> list[tuple[int, int]]:
        count = self.split.micro_batches
        edges = [index * tokens // count for index in range(count + 1)]
        return list(pairwise(edges))

    def _batch(
        self,
        window: RecordedWindow,
        mine: Ints,
        slots_LNK: Mapping[int, Ints],
        batch: tuple[int, int],
        found: Found | None,
    ) -> None:
        first, end = batch
        tokens = mine[first:end]
        x_NH = self._received(tokens, end - first, found)
        for layer in self.layers:
            self.on_layer(layer)
            if layer not in self.held:
                self.make_weights(layer)
            column = self.column_of[layer]
            rows = self._rows(x_NH, slots_LNK[layer][first:end], window.weights_TLK[tokens, column])
            x_NH = self._layer(layer, rows, first, window.ids_TLK[tokens, column], found)
            self.clock.close_event(layer)
        self._send_on(x_NH, found)
        self.clock.close_event(-1)

    def _rows(self, x_NH: Tensor, slot_NK: Ints, weight_NK: NDArray[np.float32]) -> Rows:
        """Tokens with their choices; places without a token choose nothing."""
        missing = ((0, len(x_NH) - len(slot_NK)), (0, 0))
        slots = torch.from_numpy(np.pad(slot_NK, missing, constant_values=-1).astype(np.int32))
        weights = torch.from_numpy(np.pad(weight_NK, missing).astype(np.float32))
        return Rows(x_NH, slots.to(self.device), weights.to(self.device))

    def _layer(self, layer: int, rows: Rows, first: int, ids_NK: NDArray[np.integer], found: Found | None) -> Tensor:
        x_NH = rows.x_NH
        attended_NH = self._attention(layer, x_NH)
        if found is not None and self.attention[layer] is not None:
            self._compare_attention(layer, x_NH, attended_NH, found)
        x_NH = normalised(x_NH + attended_NH)
        width = self.shape.expert_hidden
        y_NH = self._moe(layer, Rows(x_NH[:, :width], rows.slot_NK, rows.weight_NK), first, found)
        if found is not None:
            self._compare_moe(layer, x_NH[:, :width], ids_NK, rows.weight_NK, y_NH, found)
        total_NH = x_NH.clone()
        total_NH[:, :width] += y_NH
        return normalised(total_NH)

    def _attention(self, layer: int, x_NH: Tensor) -> Tensor:
        held = self.attention[layer]
        if held is None:
            return torch.zeros_like(x_NH)
        group = self.groups.tp
        if group is None:
            with self.clock.phase("attention"):
                return attend(x_NH, held)
        parts = [len(x_NH)] * self.split.tp
        hidden = x_NH.shape[1]
        with self.clock.phase("attention all-reduce", group):
            raw = encode(x_NH, self._inner_format).repeat(self.split.tp, 1)
            gathered = decode(all_to_all(raw, parts, parts, group), self._inner_format, hidden, x_NH.dtype)
        with self.clock.phase("attention"):
            part = attend(gathered, held)
        with self.clock.phase("attention all-reduce", group):
            raw = all_to_all(encode(part, self._inner_format), parts, parts, group)
            summed = decode(raw, self._inner_format, hidden, x_NH.dtype)
            return summed.reshape(self.split.tp, len(x_NH), hidden).sum(dim=0)

    @property
    def _inner_format(self) -> ActivationName:
        return "fp32" if compute_dtype(self.shape.experts) == torch.float32 else "bf16"

    def _moe(self, layer: int, rows: Rows, first: int, found: Found | None) -> Tensor:
        lane = self.lane
        hops: list[Hop] = []
        if lane is not None:
            rows, hops = dispatch(rows, first, lane, self.clock, lambda sent_R: self._count_sent(layer, sent_R, found))
        local_NK = self._local(rows.slot_NK)
        if found is not None:
            served = torch.bincount(local_NK[local_NK >= 0], minlength=self.placement.slots_per_rank)
            found.served_LP[layer] += served.cpu().numpy()
        y_NH = self._shared_serve(layer, rows, local_NK)
        return combine(y_NH, hops, self.clock)

    def _count_sent(self, layer: int, sent_R: Sequence[int], found: Found | None) -> None:
        if found is None or self.lane is None:
            return
        for rank, count in enumerate(sent_R):
            if rank != self.lane.me:
                found.sent_LV[layer][self.lane.wires.level_RR[self.lane.me, rank]] += count

    def _shared_serve(self, layer: int, rows: Rows, local_NK: Tensor) -> Tensor:
        """The experts; with etp > 1 on the rows of all GPUs that share them, each its shard."""
        held, group, clock = self.held[layer], self.groups.etp, self.clock
        if group is None:
            with clock.phase("experts"):
                return serve(rows, held, self._held(layer, local_NK), self.shape)
        etp, hidden, choices = self.split.etp, rows.x_NH.shape[1], rows.slot_NK.shape[1]
        own_E = [len(rows)] * etp
        with clock.phase("counts", group):
            all_E = counts_from(own_E, group, self.device)
        with clock.phase("dispatch", group):
            raw = all_to_all(rows.packed(self.shape.dispatch).repeat(etp, 1), own_E, all_E, group)
            every = Rows.unpacked(raw, self.shape.dispatch, hidden, choices, rows.x_NH.dtype)
        with clock.phase("experts"):
            part = serve(every, held, self._held(layer, self._local(every.slot_NK)), self.shape)
        with clock.phase("combine", group):
            raw = all_to_all(encode(part, self.shape.combine), all_E, own_E, group)
            shares = decode(raw, self.shape.combine, hidden, part.dtype)
            return shares.reshape(etp, len(rows), hidden).sum(dim=0)

    # --- between stages ---------------------------------------------------------------------------

    def _received(self, tokens: Ints, places: int, found: Found | None) -> Tensor:
        """Hidden states of a micro-batch: made up by token in the first stage, else from the stage before."""
        dtype = compute_dtype(self.shape.experts)
        if self.groups.before is None:
            x_NH = torch.zeros((places, self.shape.hidden), dtype=dtype, device=self.device)
            x_NH[: len(tokens)] = made_up(torch.from_numpy(tokens).to(self.device), self.shape.hidden).to(dtype)
            return x_NH
        x_NH = torch.empty((places, self.shape.hidden), dtype=dtype, device=self.device)
        with self.clock.phase("pipeline receive"):
            dist.recv(x_NH, self.groups.before)
        if found is not None:
            found.sums.append(sum_of(x_NH))
        return x_NH

    def _send_on(self, x_NH: Tensor, found: Found | None) -> None:
        if self.groups.after is None:
            return
        with self.clock.phase("pipeline send"):
            dist.send(x_NH.contiguous(), self.groups.after)
        if found is not None:
            found.sums.append(sum_of(x_NH))

    # --- comparing --------------------------------------------------------------------------------

    def _picked(self, count: int) -> Tensor:
        most = count if self.sample is None else min(self.sample, count)
        return torch.linspace(0, count - 1, most, device=self.device).round().long()

    def _compare_attention(self, layer: int, x_NH: Tensor, got_NH: Tensor, found: Found) -> None:
        of = self.shape.attention[layer]
        if of is None or not len(x_NH):
            return
        picked = self._picked(len(x_NH))
        wanted = reference_attention(x_NH[picked], layer, of, self.shape, self.device)
        self._note(layer, "attention", picked, wanted, got_NH[picked], ROUNDING[self._inner_format], found)

    def _compare_moe(
        self,
        layer: int,
        x_NH: Tensor,
        ids_NK: NDArray[np.integer],
        weight_NK: Tensor,
        got_NH: Tensor,
        found: Found,
    ) -> None:
        if not len(ids_NK):
            return
        picked = self._picked(len(ids_NK))
        ids = torch.from_numpy(ids_NK.astype(np.int64)).to(self.device)[picked]
        wanted = self._reference.moe(layer, x_NH[picked], ids, weight_NK[picked])
        formats = (self.shape.dispatch, self.shape.combine, self._inner_format)
        self._note(layer, "experts", picked, wanted, got_NH[picked], max(ROUNDING[name] for name in formats), found)

    def _note(
        self, layer: int, part: str, picked: Tensor, wanted: Tensor, got: Tensor, allowed: float, found: Found
    ) -> None:
        error_N = (got.float() - wanted).norm(dim=1) / wanted.norm(dim=1).clamp_min(1e-6)
        error_N = torch.nan_to_num(error_N, nan=torch.inf)
        worst = int(error_N.argmax())
        known = found.worst.get(layer)
        error = float(error_N[worst])
        if known is None or error / allowed > known.error / known.allowed:
            found.worst[layer] = Worst(error, allowed, part, int(picked[worst]))

    def new_found(self) -> Found:
        """Zero counts for the layers of this rank."""
        slots, levels = self.placement.slots_per_rank, self.num_levels
        served = {layer: np.zeros(slots, dtype=np.int64) for layer in self.layers}
        sent: dict[int, Ints] = defaultdict(lambda: np.zeros(levels, dtype=np.int64))
        return Found(served, sent)


def sum_of(x_NH: Tensor) -> int:
    """Sum of a tensor's bits as whole numbers: the same on any device, whatever order it adds in."""
    whole = {2: torch.int16, 4: torch.int32}[x_NH.element_size()]
    return int(x_NH.contiguous().view(whole).sum(dtype=torch.int64))


def made_up(token_N: Tensor, hidden: int) -> Tensor:
    """Hidden states [N, H] of the first stage: a wave of its own for each token."""
    place_H = torch.arange(1, hidden + 1, device=token_N.device, dtype=torch.float32)
    return torch.sin(
        (token_N[:, None].float() + 1) * 0.7548776662 + place_H * 1.3247179572 * (1 + token_N[:, None] % 97)
    )
