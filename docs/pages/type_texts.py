"""Types and defaults of pydantic fields, in words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from annotated_types import Ge, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pages.files import title_of
from pages.markdown import anchor
from planner.inputs import units
from planner.inputs.kernels import Fitted
from planner.inputs.sourced import Sourced

SCALARS: Final = {int: "whole number", float: "number", str: "text", bool: "true or false", Any: "anything"}
# The validator in an annotation names the dimension of a quantity.
DIMENSIONS: Final[tuple[tuple[Any, str], ...]] = (
    (units.Size, "size"),
    (units.SizeOrZero, "size"),
    (units.Rate, "rate"),
    (units.Duration, "time"),
    (units.ComputeRate, "compute"),
    (units.Percentage, "fraction"),
)
QUANTITY_NAMES: Final = {"compute": "compute rate", "fraction": "percentage"}


def type_text(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """A type for people."""
    marks = list(_flat(metadata))
    if get_origin(annotation) is Annotated:
        base, *more = get_args(annotation)
        return type_text(base, [*more, *marks])
    dimension = _dimension(marks)
    if dimension:
        return f"[{QUANTITY_NAMES.get(dimension, dimension)}](#quantities)"
    value = value_of_sourced(annotation)
    if value is not None:
        return f"{type_text(value)}, [sourced](#values-with-a-source)"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{anchor(title_of(annotation))})"
    parts = get_args(annotation)
    if parts:
        return _composed(annotation, parts)
    return SCALARS[annotation] + _limits(marks)


def _composed(annotation: Any, parts: tuple[Any, ...]) -> str:
    origin = get_origin(annotation)
    if origin is Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin in (Union, UnionType):
        return " or ".join(type_text(part) for part in parts if part is not NoneType)
    if origin is dict:
        return f"mapping of {type_text(parts[0])} to {type_text(parts[1])}"
    if parts[-1] is Ellipsis:
        return f"list of {type_text(parts[0])}"
    return f"{len(parts)} x {type_text(parts[0])}"


def _flat(metadata: Iterable[Any]) -> Iterator[Any]:
    for mark in metadata:
        if isinstance(mark, FieldInfo):
            yield from mark.metadata
        else:
            yield mark


def _dimension(marks: list[Any]) -> str:
    for quantity, name in DIMENSIONS:
        if any(mark is get_args(quantity)[1] for mark in marks):
            return name
    return ""


def value_of_sourced(annotation: Any) -> Any:
    """X of `Sourced[X]` and `Fitted[X]`, else None."""
    generic = getattr(annotation, "__pydantic_generic_metadata__", None)
    return generic["args"][0] if generic and generic["origin"] in (Sourced, Fitted) else None


def _limits(marks: list[Any]) -> str:
    low: Any = next((mark.ge for mark in marks if isinstance(mark, Ge)), None)
    high: Any = next((mark.le for mark in marks if isinstance(mark, Le)), None)
    below: Any = next((mark.lt for mark in marks if isinstance(mark, Lt)), None)
    if below is not None:
        high = below - 1
    if low is None:
        return ""
    return f" ({low} or more)" if high is None else f" ({low}..{high:,})"


def default_text(field: FieldInfo) -> str:
    """What holds where a key is left out."""
    if field.is_required():
        return "required, may be null" if NoneType in get_args(field.annotation) else "required"
    if field.default_factory is not None:
        return ""
    value, dimension = field.default, _dimension(list(_flat(field.metadata)))
    if value is None or value in ("", ()) or isinstance(value, BaseModel):
        return ""
    if dimension:
        return f"`{units.exact_text(value, dimension)}`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"
