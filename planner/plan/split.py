"""The split: how many GPUs share what, per pipeline stage.

Every stage has the same degrees, and in each of them tp * dp = etp * ep * edp = GPUs of the stage.
Index i in a stage's list of GPUs is attention rank i % tp of data-parallel rank i // tp, and on the
expert grid expert-TP rank i % etp, EP rank (i // etp) % ep, copy i // (etp * ep).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Split:
    """Degrees of parallelism.

    tp, dp: tensor and data parallel attention; pp: pipeline stages; ep: ranks that experts are
    spread over; etp: GPUs that share each expert; edp: copies of the whole expert grid;
    micro_batches: parts that a step's tokens are cut into, at least pp when pp > 1.
    """

    tp: int
    dp: int
    pp: int
    ep: int
    etp: int = 1
    edp: int = 1
    micro_batches: int = 1

    @property
    def stage_gpus(self) -> int:
        """GPUs of each stage."""
        return self.tp * self.dp

    def __str__(self) -> str:
        text = f"tp={self.tp} dp={self.dp} ep={self.ep}"
        if self.etp > 1:
            text += f" etp={self.etp}"
        if self.edp > 1:
            text += f" edp={self.edp}"
        if self.pp > 1:
            text += f" pp={self.pp} micro_batches={self.micro_batches}"
        return text
