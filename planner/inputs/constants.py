"""What the cost model uses besides model, machine and work: kept whole in every plan."""

from __future__ import annotations

from planner.inputs.documents import Frozen
from planner.inputs.efficiency import Efficiency
from planner.inputs.engines import EngineMemory
from planner.inputs.kernels import KernelFile
from planner.inputs.precision import Precision
from planner.inputs.workload import Communication, CopyRule


class Constants(Frozen):
    """What the cost model uses besides model, topology and work; kept in the plan."""

    precision: Precision
    """Number formats."""
    communication: Communication
    """Kernel and copies of a token that are sent."""
    kernel: KernelFile
    """The communication kernel."""
    collectives: KernelFile
    """The kernel of tensor-parallel collectives and pipeline sends."""
    small_collectives: KernelFile | None = None
    """What the engine runs instead for all-reduces of small tensors inside a scale-up domain, where that is faster."""
    efficiency: Efficiency
    """What kernels reach where a GPU of the topology has no curve of its own."""
    own_kernels: str | None = None
    """The engine, where it runs no compute kernels but its own; null: the fastest of all."""
    exchange_needs_dp: bool = False
    """Whether without data-parallel attention the engine does without the kernel: an all-reduce joins experts."""
    engine_memory: EngineMemory
    """Memory of a GPU that the model cannot use."""
    copy_rule: CopyRule
    """How copies of an expert share tokens that an exchange brings: evenly, or the nearest serves: own rank, own node,
    any. Where all tokens come to every rank they share evenly."""
