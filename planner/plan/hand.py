"""A plan made by hand: what is decided and for which deployment; figures are derived, not booked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from planner.errors import InputError, Place, Problem
from planner.inputs import documents
from planner.inputs.documents import Frozen
from planner.inputs.model import Model
from planner.inputs.workload import CopyRule
from planner.plan.decision import Decision
from planner.plan.plan import PlacementRecord, Plan, Positive, Slot, SplitRecord, StageRecord, Whole
from planner.plan.plan_file import is_by_hand, plan_data, read_plan
from planner.plan.split import Split

Row = Annotated[tuple[Slot, ...], Field(min_length=1)]


class HandPlacement(Frozen):
    """Experts in slots; what is left out follows from the rows."""

    physical_to_logical: Annotated[tuple[Row, ...], Field(min_length=1)]
    """For each MoE layer, the expert in each slot; slot s lives on EP rank s // slots_per_rank; -1 is empty."""
    layer_ids: tuple[Whole, ...] | None = None
    """Hidden-layer index of every row; default: the model's MoE layers."""
    slots_per_rank: Positive | None = None
    """Slots of the longest rank; default: the length of a row over ep."""
    redundant_experts: Whole | None = None
    """Redundant experts per layer; default: filled slots of the first row less the model's experts."""
    copy_rule: CopyRule | None = None
    """How copies of an expert share its tokens; default: as the deployment has it."""


class HandPlan(Frozen):
    """A plan.json made by hand."""

    deployment: Annotated[str, Field(min_length=1)]
    """Path of the deployment.yaml that the plan is for, relative to the plan."""
    split: SplitRecord
    """The degrees: tp * dp = etp * ep * edp, the GPUs of a stage."""
    stages: tuple[StageRecord, ...] | None = None
    """Layers and GPUs of every stage; may be left out with pp = 1: all layers, GPUs in order."""
    placement: HandPlacement
    """Experts in slots."""

    def decision(self, path: Path, model: Model, copy_rule_of: Callable[[Split], CopyRule]) -> Decision:
        """What the plan decides, with what is left out filled in.

        Args:
            path: the plan's file.
            model: the deployment's model.
            copy_rule_of: how copies share tokens there under a split.

        Raises:
            InputError: the stages are left out of a plan of several.
        """
        stages, given, split = self.stages, self.placement, self.split
        if stages is None:
            if split.pp > 1:
                example = '"stages": [{"layers": [0, 12], "gpus": [0, 1, 2, 3]}, ...]'
                hint = f"say which layers [first, end) and GPUs each of the {split.pp} stages has: {example}"
                raise InputError(Problem(f"stages is missing, and pp is {split.pp}", Place(str(path)), hint))
            stages = (StageRecord(layers=(0, model.num_layers), gpus=tuple(range(split.tp * split.dp))),)
        first = given.physical_to_logical[0]
        filled = sum(slot >= 0 for slot in first)
        record = PlacementRecord(
            layer_ids=model.moe_layer_ids if given.layer_ids is None else given.layer_ids,
            slots_per_rank=given.slots_per_rank or -(-len(first) // split.ep),
            redundant_experts=max(0, filled - model.moe.num_experts)
            if given.redundant_experts is None
            else given.redundant_experts,
            copy_rule=given.copy_rule or copy_rule_of(Split(**split.model_dump())),
            physical_to_logical=given.physical_to_logical,
        )
        return Decision(split, stages, record)


def read_any_plan(path: Path) -> Plan | HandPlan:
    """Read a plan.json, written by `ep-plan solve` or by hand; raises `InputError` with all problems."""
    data = plan_data(path)
    if not is_by_hand(data):
        return read_plan(path)
    values = {key: value for key, value in data.items() if key != "schema"}
    try:
        return documents.validated(HandPlan, values)
    except ValidationError as error:
        raise InputError(documents.problems_of(error, documents.document_of_json(path, data), HandPlan)) from None
