"""What every importer is given and what it gives back.

An importer is a module with one function, `read(sources, given) -> Found`; `formats.py` lists them.
It opens its files, reads as much as tells their shape, and then hands out block after block, so that
a file of any length takes the memory of one block.

Legend: T tokens, L rows of layers, K choices, E experts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from planner.errors import InputError, Place, Problem, UsageError
from planner.inputs.model import Model
from planner.inputs.workload import Phase
from planner.trace.faults import Fault
from planner.trace.importers.physical_map import PhysicalMap

Ints = NDArray[np.integer[Any]]
Rows = Literal["hidden", "moe", "either"]
"""What row i of a recording is: hidden layer i, the i-th MoE layer, or one of these, it does not say which."""

PREFILL: Final = 1
DECODE: Final = 0
BOTH: Final = -1
"""Phases of a token; BOTH: of a pass that mixed them."""

LIMIT_EXPERTS: Final = 1 << 16
LIMIT_ROWS: Final = 10_000


@dataclass(frozen=True)
class Given:
    """What the user says beside the files; None: not said."""

    model: Model | None = None
    num_experts: int | None = None
    top_k: int | None = None
    physical_map: PhysicalMap | None = None
    phase: Phase | None = None
    fillers: tuple[int, ...] = ()
    """Ids that stand for no expert."""
    rows: Literal["hidden", "moe"] | None = None
    layer_offset: int = 0
    accepted: frozenset[str] = frozenset()

    def experts(self) -> int | None:
        """Logical experts, if said."""
        return self.num_experts or (self.model.moe.num_experts if self.model else None)

    def without_weights(self) -> tuple[int, ...]:
        """Ids that stand for no expert: fillers, and zero experts of the model, which do nothing."""
        if self.model is None:
            return self.fillers
        experts = self.model.moe.num_experts
        return (*self.fillers, *range(experts, experts + self.model.moe.zero_experts))

    def choices(self) -> int | None:
        """Experts per token, if said."""
        return self.top_k or (self.model.moe.top_k if self.model else None)


@dataclass(frozen=True)
class TokenBlock:
    """The choices of some tokens."""

    ids_TLK: Ints
    seq_id_T: Ints | None = None
    pos_T: Ints | None = None
    step_id_T: Ints | None = None
    domain_id_T: Ints | None = None
    """Position in `Found.domain_names`."""
    weights_TLK: NDArray[np.floating[Any]] | None = None
    phase_T: NDArray[np.int8] | None = None


@dataclass(frozen=True)
class CountBlock:
    """How often each logical expert was chosen in one window."""

    counts_LE: Ints
    name: str = ""
    phase: int | None = None


@dataclass(frozen=True)
class Found:
    """An opened recording."""

    path: Path
    """What errors about the whole recording name."""
    rows: Rows
    blocks: Iterator[TokenBlock] | Iterator[CountBlock]
    per_token: bool
    layer_ids: tuple[int, ...] | None = None
    """Hidden-layer index of each row, where the files name them."""
    num_experts: int | None = None
    top_k: int | None = None
    notes: list[str] = field(default_factory=list)
    """What was left out; may grow while blocks are read."""
    domain_names: list[str] = field(default_factory=list)
    """May grow while blocks are read."""
    faults: list[Fault] = field(default_factory=list)
    """Traps that only the importer can see; may grow while blocks are read."""


def bad(
    path: Path, message: str, hint: str = "", *, line: int | None = None, column: int = 1, key: str = ""
) -> InputError:
    """An error in a recording."""
    return InputError(Problem(message, Place(str(path), line, None if line is None else column, key), hint))


def needs_experts(path: Path, found: int | None, given: Given) -> int:
    """Logical experts, from the files or the user.

    Raises:
        UsageError: neither says.
        InputError: they disagree, or the number cannot be.
    """
    said = given.experts()
    number = found if said is None else said
    if number is None:
        raise UsageError(
            f"{path}: the format does not say how many experts there are", hint="give --model or --num-experts"
        )
    if found is not None and found != number:
        message = f"{found} experts recorded, but {number} are expected"
        if found < number:
            raise bad(path, message, "another model, or not all of it")
        raise bad(path, f"{message} [physical-ids]", "slots of redundant experts? give the map of that run")
    if not 1 <= number <= LIMIT_EXPERTS:
        raise bad(path, f"{number} experts are not allowed", f"expected 1..{LIMIT_EXPERTS}")
    return number


def whole_numbers(value: Any, axes: int, path: Path, key: str, line: int | None = None) -> NDArray[np.int64]:
    """Nested lists (or an array) of whole numbers with so many axes.

    Raises:
        InputError: ragged, empty, or holding anything else.
    """
    hint = f"expected whole numbers in {axes} level{'s' if axes > 1 else ''} of lists, all of the same length"
    try:
        array = np.asarray(value)
    except (ValueError, RecursionError, OverflowError):
        raise bad(path, "rows of different lengths", hint, line=line, key=key) from None
    if array.ndim != axes or array.size == 0:
        raise bad(path, f"{list(array.shape)} found", hint, line=line, key=key)
    return as_whole(array, path, key, line)


def as_whole(array: NDArray[Any], path: Path, key: str, line: int | None = None) -> NDArray[np.int64]:
    """An array of whole numbers, whatever type they are stored in."""
    hint = "expected whole numbers"
    if array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max:
        raise bad(path, f"{array.max()} does not fit into 64 bits with a sign", hint, line=line, key=key)
    if array.dtype.kind in "iu":
        return array.astype(np.int64)
    if array.dtype.hasobject:
        raise bad(path, "values of several kinds, or beyond 64 bits", hint, line=line, key=key)
    if array.dtype.kind != "f":
        raise bad(path, f"values of type {array.dtype} found", hint, line=line, key=key)
    with np.errstate(invalid="ignore"):
        exact = array.astype(np.float64)
        rounded = np.where(np.abs(exact) < 2.0**53, exact, 0).astype(np.int64)
    if not (rounded == array).all():
        hint += "; multiply averages by what they were divided by"
        raise bad(path, "fractions, infinities or NaN found", hint, line=line, key=key)
    return rounded
