"""One kind of GPU: memory, bandwidth, compute rates, and what kernels reach on it."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field, field_validator

from planner.errors import Place
from planner.inputs import documents, profiles
from planner.inputs.documents import Frozen
from planner.inputs.efficiency import Efficiency
from planner.inputs.fabrics import known_fabric
from planner.inputs.precision import COMPUTE_ORDER
from planner.inputs.sourced import Sourced
from planner.inputs.units import ComputeRate, Rate, Size

INLINE_GPU: Final = f"""memory, hbm_bandwidth and compute (dense rates of any of {", ".join(COMPUTE_ORDER)}), inline:
gpu: {{memory: 80 GiB, hbm_bandwidth: 3.35 TB/s, compute: {{bf16: 989 TFLOP/s, fp8: 1979 TFLOP/s}}}}"""


class Gpu(Frozen):
    """One kind of GPU. Compute rates are dense (no structured sparsity)."""

    name: str = "inline"
    """Name of the profile; not written in files."""
    memory: Sourced[Size]
    """Memory of one GPU as its driver reports it, e.g. 80 GiB."""
    hbm_bandwidth: Sourced[Rate]
    """Memory bandwidth, e.g. 3.35 TB/s."""
    compute: Annotated[dict[str, Sourced[ComputeRate]], Field(min_length=1)]
    """Dense compute rates by format, e.g. {bf16: 989 TFLOP/s, fp8: 1979 TFLOP/s}."""
    efficiency: Efficiency | None = None
    """What kernels reach; what is left out comes from profiles/efficiency.yaml."""
    scale_up: str | None = None
    """Fabric that joins such GPUs directly, e.g. nvlink-4; none: they meet over the host."""
    bridge: str | None = None
    """Fabric of bridges that join a few such cards where they are fitted, e.g. nvlink-4."""
    host: str | None = None
    """Fabric to the host, e.g. pcie-5-x16."""
    note: str = ""
    """Anything a reader should know."""

    @field_validator("scale_up", "bridge", "host")
    @classmethod
    def _known_fabric(cls, value: str | None) -> str | None:
        return value if value is None else known_fabric(value)

    @field_validator("compute")
    @classmethod
    def _known_formats(cls, value: dict[str, Sourced[ComputeRate]]) -> dict[str, Sourced[ComputeRate]]:
        unknown = sorted(set(value) - set(COMPUTE_ORDER))
        if unknown:
            raise ValueError(f"unknown format {unknown[0]}\nknown: {', '.join(COMPUTE_ORDER)}")
        return value


def load_gpu(name: str, where: Place | None = None) -> Gpu:
    """Read a GPU profile."""
    path = profiles.path_of("gpus", name, where, INLINE_GPU)
    gpu, _ = documents.load(path, Gpu, "gpu")
    return gpu.model_copy(update={"name": name})
