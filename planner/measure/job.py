"""What a validation shall do: everything that the command line says, the same for every rank."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Device = Literal["cuda", "cpu", "emulate"]
"""cuda: the plan's GPUs, NCCL. cpu: cores stand for GPUs, real sizes, gloo. emulate: shrunken sizes, gloo."""


@dataclass(frozen=True)
class Job:
    """One validation, or one probe."""

    plan_path: Path = Path()
    traces: tuple[Path, ...] | None = None
    """Instead of the plan's own."""
    device: Device = "cuda"
    scale: int | None = None
    """Emulation: what sizes are divided by."""
    windows: int = 4
    """Windows that are timed, spread over the trace."""
    repeats: int = 5
    against: tuple[str, ...] = ()
    """Baselines that run the same windows."""
    tolerance: float = 0.25
    timeout_s: float = 120.0
    """Without progress for so long the run is given up."""
    join_timeout_s: float = 120.0
    """Ranks must have arrived by then."""
    links: bool = True
    """Test links pair by pair before the plan."""
    interface: str | None = None
    """Network interface; None: the one that reaches the rendezvous."""
    most_ranks: int | None = None
    """Emulation: ranks that may run at a time; None: all."""
    stage: int | None = None
    """Only this pipeline stage; None: all at once."""
    probes: bool = False
    """Measure the machine instead of a plan."""

    @property
    def emulates(self) -> bool:
        """Whether sizes are shrunken and seconds mean nothing."""
        return self.device == "emulate"

    @property
    def backend(self) -> str:
        """The communication library."""
        return "nccl" if self.device == "cuda" else "gloo"


@dataclass(frozen=True)
class Identity:
    """Which rank a process is."""

    rank: int
    world_size: int
    local_rank: int
    host: str

    def __str__(self) -> str:
        return f"rank {self.rank} ({self.host})"
