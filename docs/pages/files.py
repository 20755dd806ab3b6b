"""The kinds of files, each with the pydantic model that reads it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import BaseModel

from planner.export.checkpoint.progress import Progress
from planner.inputs.deployment import DeploymentFile
from planner.inputs.efficiency import Efficiency
from planner.inputs.engines import EngineFile
from planner.inputs.fabrics import FabricFile
from planner.inputs.gpu import Gpu
from planner.inputs.kernels import KernelFile
from planner.inputs.model import Model
from planner.inputs.model_files import ConfigFile
from planner.inputs.topology import NodeFile
from planner.inputs.topology_file import TopologyFile
from planner.measure.document import Validation
from planner.plan.hand import HandPlan
from planner.plan.plan import Plan

EXAMPLES: Final = Path(__file__).resolve().parent.parent.parent / "examples"


@dataclass(frozen=True)
class File:
    """One kind of file."""

    title: str
    kind: str
    record: type[BaseModel]
    text: str
    example: Path | None = None


FILES: Final = (
    File(
        "deployment.yaml",
        "deployment",
        DeploymentFile,
        "What `ep-plan solve` reads.",
        EXAMPLES / "tiny-moe" / "deployment.yaml",
    ),
    File(
        "topology.yaml",
        "topology",
        TopologyFile,
        "The machine; bandwidth is per GPU and per direction.",
        EXAMPLES / "deepseek-v3-32gpu" / "topology.yaml",
    ),
    File("GPU profile", "gpu", Gpu, "In `profiles/gpus/`, or inline under `gpu:` of a topology (then without schema)."),
    File("Node profile", "node", NodeFile, "In `profiles/nodes/`."),
    File("Fabric profile", "fabric", FabricFile, "In `profiles/fabrics/`."),
    File("Kernel profile", "kernel", KernelFile, "In `profiles/kernels/`."),
    File("Engine profile", "engine", EngineFile, "In `profiles/engines/`."),
    File(
        "Efficiency",
        "efficiency",
        Efficiency,
        "`profiles/efficiency.yaml`, for what a GPU has no curve of its own.",
    ),
    File("model.yaml", "model", Model, "A model described by hand, for families that are not read from config.json."),
    File("Shipped config", "config", ConfigFile, "In `profiles/models/`: the keys of a public config.json."),
    File(
        "ep-plan.permutation.json",
        "permutation",
        Progress,
        "What `ep-plan export --to checkpoint` keeps beside the permuted weights: what is done, and from what. JSON.",
    ),
    File("plan.json", "plan", Plan, "What `ep-plan solve` writes. JSON, one row of numbers per line."),
    File(
        "plan.json made by hand",
        "plan",
        HandPlan,
        "What `ep-plan check` reads besides: a decision without figures ([check.md](check.md)). JSON.",
    ),
    File("validation.json", "validation", Validation, "What `ep-plan validate` found. JSON."),
)


def title_of(record: type[BaseModel]) -> str:
    """The heading under which a record is described."""
    return next((file.title for file in FILES if file.record is record), record.__name__)
