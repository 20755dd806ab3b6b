"""Time of the phases of a rank: waiting for others apart from its own work.

With `barriers`, a rank that enters a phase in which ranks exchange something first meets the others: how
long that takes is its wait (arrival skew), and what follows is the transfer. Without, phases follow each
other back to back and only the whole is meaningful; nccl-tests measure that way.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Sample:
    """Seconds of one phase of one layer: own work (or transfer), and waiting before it."""

    busy_s: float
    wait_s: float


@dataclass
class Clock:
    """Adds up the phases of the current event (one layer of one pass)."""

    device: torch.device
    barriers: bool
    on_phase: Callable[[str, bool], None]
    """Told the name of each phase that begins, and whether it waits for other ranks."""
    events: dict[tuple[str, int], list[Sample]] = field(default_factory=lambda: defaultdict(list))
    """By phase and layer, one sample for each pass."""
    _now: dict[str, list[float]] = field(default_factory=dict)

    def now(self) -> float:
        """Seconds, once the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    @contextmanager
    def phase(self, name: str, group: dist.ProcessGroup | None = None) -> Iterator[None]:
        """Time a block; `group`: the ranks that take part in it."""
        self.on_phase(name, group is not None)
        waited = 0.0
        begin = self.now()
        if group is not None and self.barriers:
            dist.barrier(group)
            begin, arrived = self.now(), begin
            waited = begin - arrived
        yield
        busy = self.now() - begin
        sums = self._now.setdefault(name, [0.0, 0.0])
        sums[0] += busy
        sums[1] += waited

    def close_event(self, layer: int) -> None:
        """The layer is done: keep what its phases took."""
        for name, (busy, waited) in self._now.items():
            self.events[name, layer].append(Sample(busy, waited))
        self._now.clear()
