"""One kind of GPU: memory, bandwidth, compute rates, and what kernels reach on it."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import AfterValidator, Field, field_validator

from planner.errors import Place
from planner.inputs import documents, profiles
from planner.inputs.documents import Frozen
from planner.inputs.efficiency import Efficiency, transferred
from planner.inputs.fabrics import FabricName
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
    """What kernels reach; what is left out comes from `curves_of`, else from profiles/efficiency.yaml."""
    curves_of: str | None = None
    """GPU of the same architecture that was measured: its curves hold here, too, as transferred."""
    scale_up: FabricName | None = None
    """Fabric that joins such GPUs directly, e.g. nvlink-4; none: they meet over the host."""
    bridge: FabricName | None = None
    """Fabric of bridges that join a few such cards where they are fitted, e.g. nvlink-4."""
    host: FabricName | None = None
    """Fabric to the host, e.g. pcie-5-x16."""
    note: str = ""
    """Anything a reader should know."""

    @field_validator("compute")
    @classmethod
    def _known_formats(cls, value: dict[str, Sourced[ComputeRate]]) -> dict[str, Sourced[ComputeRate]]:
        unknown = sorted(set(value) - set(COMPUTE_ORDER))
        if unknown:
            raise ValueError(f"unknown format {unknown[0]}\nknown: {', '.join(COMPUTE_ORDER)}")
        return value


def _known(gpu: str | Gpu) -> str | Gpu:
    return profiles.known("gpus", gpu, INLINE_GPU) if isinstance(gpu, str) else gpu


GpuOrName = Annotated[str | Gpu, AfterValidator(_known)]
"""A GPU described inline, or the name of a profile."""


def load_gpu(name: str, where: Place | None = None) -> Gpu:
    """Read a GPU profile."""
    path = profiles.path_of("gpus", name, where, INLINE_GPU)
    gpu, document = documents.load(path, Gpu, "gpu")
    if gpu.curves_of is None:
        return gpu.model_copy(update={"name": name})
    alike = load_gpu(gpu.curves_of, document.place(("curves_of",)))
    curves = transferred(gpu.efficiency, alike.efficiency, alike.name)
    return gpu.model_copy(update={"name": name, "efficiency": curves})
