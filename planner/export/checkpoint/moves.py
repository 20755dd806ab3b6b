"""What happens to each tensor: stays, takes another expert's name, or has its rows put in another order.

Expert j of the permuted model is expert `old_E[j]` of the original. Where experts are tensors of their own
they only change names; where they are stacked along axis 0, rows of bytes move, whatever their format.

Legend: E experts.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, Final

from planner.errors import InputError, Place, Problem
from planner.export.checkpoint.families import EXPERT, FAMILIES, LAYER, STACKED, Names
from planner.export.checkpoint.source import Source
from planner.export.layout import Layout
from planner.inputs.safetensors import Header

_MOST_TOLD: Final = 20


@dataclass(frozen=True)
class Move:
    """One tensor: its name in the permuted checkpoint, and the old row at each place, if rows move."""

    name: str
    rows: tuple[int, ...] = ()
    is_router: bool = False


@dataclass
class _Seen:
    """What a layer turned out to hold."""

    parts: dict[int, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Tensors of each expert that has its own."""
    stacked: set[str] = field(default_factory=set)
    router: set[str] = field(default_factory=set)


def moves_of(source: Source, layout: Layout) -> dict[str, Move]:
    """The move of every tensor of a checkpoint, by old name.

    Raises:
        InputError: a layer lacks a router or an expert, or holds something whose meaning is not known.
    """
    names = FAMILIES[layout.model.family]
    order = {layer: tuple(row) for layer, row in zip(layout.placement.layer_ids, layout.rows(), strict=True)}
    problems: list[Problem] = []
    found: dict[str, Move] = {}
    seen: dict[int, _Seen] = {layer: _Seen() for layer in order}
    for header in source.headers:
        for name in header.tensors:
            match = LAYER.fullmatch(name)
            if match is None or int(match[1]) not in order:
                found[name] = Move(name)
                continue
            layer, inner = int(match[1]), match[3]
            move = _move(name, inner, order[layer], names, seen[layer])
            if move is None:
                hint = f"known in an MoE block of {layout.model.family}: {', '.join(names.per_expert)}, experts.*"
                problems.append(Problem("what this tensor is to the experts is not known", _at(header, name), hint))
                continue
            if move.rows:
                problems += _row_problems(header, name, len(order[layer]))
            found[name] = move
    problems += [p for layer, one in seen.items() for p in _missing(layer, one, names, len(order[layer]), source)]
    if problems:
        raise InputError(problems[:_MOST_TOLD])
    return found


def _move(name: str, inner: str, old_E: tuple[int, ...], names: Names, seen: _Seen) -> Move | None:
    if inner.startswith(names.shared or ("\0",)):
        return Move(name)
    if inner in names.per_expert:
        seen.router.add(inner)
        return Move(name, old_E, is_router=True)
    single = EXPERT.fullmatch(inner)
    if single is not None and int(single[1]) < len(old_E):
        seen.parts[int(single[1])].add(single[2])
        new = old_E.index(int(single[1]))
        return Move(f"{name.removesuffix(inner)}experts.{new}.{single[2]}")
    if STACKED.fullmatch(inner):
        seen.stacked.add(inner)
        return Move(name, old_E)
    return None


def _row_problems(header: Header, name: str, experts: int) -> list[Problem]:
    entry: Any = header.tensors[name]
    shape = entry.get("shape") if isinstance(entry, dict) else None
    begin, end = header.span(name)
    if not isinstance(shape, list) or not shape or shape[0] != experts:
        message = f"shape {shape}, expected {experts} rows, one for each expert"
        return [Problem(message, _at(header, name), "another layout of this family? it is not known")]
    if (end - begin) % experts:
        message = f"{end - begin} bytes are not {experts} equal rows"
        return [Problem(message, _at(header, name), "its format packs several rows into one byte")]
    return []


def _missing(layer: int, seen: _Seen, names: Names, experts: int, source: Source) -> list[Problem]:
    where, whole_again = Place(str(source.folder), key=f"model.layers.{layer}"), "download the whole checkpoint"
    lacking = [name for name in names.router if name not in seen.router]
    found = [Problem(f"{name} is missing", where, whole_again) for name in lacking]
    if bool(seen.parts) == bool(seen.stacked):
        which = "both single and stacked" if seen.parts else "no"
        return [*found, Problem(f"{which} experts", where, f"expected experts 0..{experts - 1}, or stacked ones")]
    if seen.parts:
        whole = set().union(*seen.parts.values())
        for expert in range(experts):
            lacking = sorted(whole - seen.parts.get(expert, set()))
            if lacking:
                message = f"expert {expert} lacks {lacking[0]}, which others have"
                found.append(Problem(message, where, whole_again))
    return found


def _at(header: Header, name: str) -> Place:
    return Place(str(header.path), key=name)
