"""A value together with where it comes from: no number without its source."""

from __future__ import annotations

from typing import Any, Final, Generic, Literal, TypeVar, get_args

from pydantic import BaseModel, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from planner.inputs.documents import Frozen

# measured: on the very machine, or for a shipped profile on such a machine; fitted: to published
# measurements of such a machine; transferred: fitted to another machine or format; datasheet: the
# vendor's figure; given: written by the user; assumed: nobody measured it here.
Basis = Literal["measured", "fitted", "transferred", "datasheet", "given", "assumed"]
BASES: Final[tuple[Basis, ...]] = get_args(Basis)
"""From what is known best to what is known least."""

Value = TypeVar("Value")


class Sourced(Frozen, Generic[Value]):
    """`{value: 80 GiB, basis: datasheet, source: URL}`, or the bare value for basis `given`."""

    value: Value
    basis: Basis = "given"
    source: str = ""

    @model_validator(mode="before")
    @classmethod
    def _accept_bare_value(cls, data: Any) -> Any:
        if isinstance(data, BaseModel) or (isinstance(data, dict) and "value" in data):
            return data
        return {"value": data}

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """For editors: the record, or its value alone."""
        record = handler.resolve_ref_schema(handler(core))
        return {"anyOf": [record["properties"]["value"], record]}
