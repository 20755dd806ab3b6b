"""A map of experts as a file holds it, and what its rows are.

Legend: P slots of a layer, R ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from planner.errors import InputError, Place, Problem
from planner.inputs import documents
from planner.inputs.model import Model
from planner.plan.placement import Placement

Ints = NDArray[np.int64]
Numbering = Literal["hidden", "moe", "all"]

LIMIT_ID: Final = 1 << 16
LIMIT_LAYER: Final = 10_000


@dataclass(frozen=True)
class Row:
    """One layer: experts by slot, rank after rank."""

    expert_P: Ints
    slots_R: Ints | None = None
    """Slots of each rank; None: the file does not say, all ranks have equally many."""


@dataclass(frozen=True)
class FileMap:
    """A map of experts; nothing is known about the model but what the file says."""

    file: str
    numbering: Numbering
    """hidden: rows are named by hidden layer; moe: by position among the MoE layers; all: one row for all."""
    rows: dict[int, Row]
    dense_rows: bool = False
    """Whether dense layers have a row, too, which means nothing."""
    num_ranks: int | None = None
    num_experts: int | None = None
    gpus: dict[int, tuple[tuple[int, ...], ...]] = field(default_factory=dict)
    """By stage the GPUs of every EP rank, as far as the file says."""

    def of_model(self, model: Model) -> dict[int, Row]:
        """The rows by hidden layer of the model's MoE layers, as far as the file has them."""
        moe = model.moe_layer_ids
        if self.numbering == "all":
            return dict.fromkeys(moe, self.rows[0])
        if self.numbering == "moe":
            return {layer: self.rows[index] for index, layer in enumerate(moe) if index in self.rows}
        return {layer: self.rows[layer] for layer in moe if layer in self.rows}


def placement_of_map(found: FileMap, model: Model, ranks: int) -> Placement:
    """The placement that a complete map describes; ranks may hold an expert twice.

    Raises:
        InputError: layers are missing, or slots do not fit the ranks.
    """
    rows = found.of_model(model)
    missing = [layer for layer in model.moe_layer_ids if layer not in rows]
    where = Place(found.file)
    if missing:
        message = f"no row for {len(missing)} of {len(model.moe_layer_ids)} MoE layers, the first is layer {missing[0]}"
        raise InputError(Problem(message, where, f"expected one for each MoE layer of {model.name}"))
    parts = {layer: _by_rank(row, ranks, layer, where) for layer, row in rows.items()}
    slots = max(len(experts) for by_rank in parts.values() for experts in by_rank)
    expert_LP = np.full((len(parts), ranks * slots), -1, dtype=np.int64)
    for index, by_rank in enumerate(parts.values()):
        for rank, experts in enumerate(by_rank):
            expert_LP[index, rank * slots : rank * slots + len(experts)] = experts
    return Placement(model.moe_layer_ids, slots, expert_LP)


def _by_rank(row: Row, ranks: int, layer: int, where: Place) -> list[Ints]:
    slots_R = row.slots_R
    if slots_R is None:
        if len(row.expert_P) % ranks:
            message = f"layer {layer}: {len(row.expert_P)} slots do not divide by {ranks} ranks"
            raise InputError(Problem(message, where, "give the EP size that the map was made for"))
        slots_R = np.full(ranks, len(row.expert_P) // ranks)
    if len(slots_R) != ranks:
        message = f"layer {layer}: experts of {len(slots_R)} ranks, expected {ranks}"
        raise InputError(Problem(message, where, "give the EP size that the map was made for"))
    return np.split(row.expert_P, np.cumsum(slots_R)[:-1])


# --- reading JSON -----------------------------------------------------------------------------------


def parsed(raw: bytes, file: str) -> Any:
    """The JSON document in some bytes; raises `InputError` if it is none."""
    return documents.parse_json(decoded(raw, file), file)


def decoded(raw: bytes, file: str) -> str:
    """Bytes as text; raises `InputError` if they are not UTF-8."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(Problem(f"not UTF-8 text (byte {error.start})", Place(file), "save it as UTF-8")) from None


def only_keys(data: Any, keys: Sequence[str], file: str, why: str) -> dict[str, Any]:
    """A mapping with exactly these keys; raises `InputError` that says why no other may be there."""
    if not isinstance(data, dict):
        raise InputError(Problem("not a mapping", Place(file), f"expected {', '.join(keys)}"))
    missing = [key for key in keys if key not in data]
    extra = [key for key in data if key not in keys]
    problems = [Problem(f"{key} is missing", Place(file, key=key), f"expected {', '.join(keys)}") for key in missing]
    problems += [Problem(f"{str(key)!r} is not allowed", Place(file, key=str(key)), why) for key in extra]
    if problems:
        raise InputError(problems)
    return data


def experts_of(value: Any, file: str, key: str) -> Ints:
    """A list of expert ids; raises `InputError` if it holds anything else."""
    if not isinstance(value, list) or not value:
        raise InputError(Problem("not a list of experts", Place(file, key=key), "expected one id for each slot"))
    for index, item in enumerate(value):
        if type(item) is not int or not 0 <= item < LIMIT_ID:
            where = Place(file, key=f"{key}[{index}]")
            raise InputError(Problem(f"{item!r} is not an expert", where, f"expected ids, 0..{LIMIT_ID - 1}"))
    return np.array(value, dtype=np.int64)


def layer_of(key: Any, file: str, where: str) -> int:
    """A layer's number; raises `InputError` for anything else."""
    if type(key) is int and 0 <= key < LIMIT_LAYER:
        return key
    if isinstance(key, str) and key.isascii() and key.isdecimal() and int(key[:9]) < LIMIT_LAYER:
        return int(key)
    raise InputError(Problem(f"{key!r} is not a layer", Place(file, key=where), "expected whole numbers from 0"))


def json_rows(rows: Sequence[Sequence[int]], indent: str = "") -> str:
    """Lists of numbers as JSON, one a line."""
    lines = (f"{indent} [{', '.join(map(str, row))}]" for row in rows)
    return "[\n" + ",\n".join(lines) + f"\n{indent}]"
