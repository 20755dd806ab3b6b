"""What can be wrong with the choices themselves: experts that do not exist, and experts chosen twice.

Legend: T tokens, L traced layers, K choices per token.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.errors import Place, Problem
from planner.trace.trace import TokenTrace


def looks_sound(ids_TLK: NDArray[Any], num_experts: int) -> bool:
    """Whether all choices of a block are possible: experts that exist, none twice by one token."""
    if ids_TLK.size == 0:
        return True
    if ids_TLK.min() < -1 or ids_TLK.max() >= num_experts:
        return False
    return not _twice(np.sort(ids_TLK, axis=2), num_experts).any()


def choice_problems(trace: TokenTrace) -> list[Problem]:
    """Look at all choices of a trace: at most one problem of each kind, with the first place and their number.

    Layers in which every token chose expert 0 only are left out: they do not route at all.
    """
    faults = _ChoiceFaults(trace)
    for start, block in trace.blocks():
        faults.look(start, block)
    return faults.problems()


class _ChoiceFaults:
    """Looks at the choices block by block; keeps the first fault of each kind, and their number."""

    def __init__(self, trace: TokenTrace) -> None:
        layers = len(trace.layer_ids_L)
        self._trace = trace
        self._strange = 0
        self._first_strange = ""
        self._twice_L = np.zeros(layers, dtype=np.int64)
        self._first_twice: dict[int, tuple[int, int]] = {}
        self._routes_L = np.zeros(layers, dtype=bool)

    def look(self, start: int, ids_TLK: NDArray[Any]) -> None:
        """Look at the block that begins with token `start`."""
        experts = self._trace.num_experts
        self._routes_L |= (ids_TLK != 0).any(axis=(0, 2))
        strange_TLK = (ids_TLK < -1) | (ids_TLK >= experts)
        if strange_TLK.any():
            token, row, choice = (int(index[0]) for index in np.nonzero(strange_TLK))
            where = f"in layer {self._trace.layer_ids_L[row]} of token {start + token}"
            self._first_strange = self._first_strange or f"expert id {ids_TLK[token, row, choice]} {where}"
            self._strange += int(strange_TLK.sum())
        sorted_TLK = np.sort(ids_TLK, axis=2)
        twice_TLK = _twice(sorted_TLK, experts)
        self._twice_L += twice_TLK.any(axis=2).sum(axis=0)
        for row in np.flatnonzero(twice_TLK.any(axis=(0, 2))).tolist():
            if row not in self._first_twice:
                token, choice = (int(index[0]) for index in np.nonzero(twice_TLK[:, row]))
                self._first_twice[row] = start + token, int(sorted_TLK[token, row, choice])

    def problems(self) -> list[Problem]:
        """What was found, at most one problem of each kind."""
        where, experts = Place(str(self._trace.path), key="expert_ids"), self._trace.num_experts
        found = []
        if self._strange:
            message = f"{self._first_strange}, but there are {experts} experts (0..{experts - 1})"
            hint = "physical ids of a run with redundant experts, or a filler id? map them back first; -1 is no expert"
            found.append(Problem(message + _more(self._strange, "choices"), where, hint))
        rows = [row for row in self._first_twice if self._routes_L[row]]
        if rows:
            row = min(rows, key=lambda row: (self._first_twice[row][0], row))
            token, expert = self._first_twice[row]
            message = f"expert {expert} is chosen twice in layer {self._trace.layer_ids_L[row]} of token {token}"
            hint = "a router chooses different experts; filler is -1; physical ids of copies? map them back first"
            count = int(self._twice_L[rows].sum())
            found.append(Problem(message + _more(count, "token-layer pairs"), where, hint))
        return found


def _twice(sorted_TLK: NDArray[Any], num_experts: int) -> NDArray[np.bool_]:
    """Choices [T, L, K-1] that repeat the one before, in rows sorted by expert."""
    again_TLK = sorted_TLK[:, :, 1:]
    return np.asarray((again_TLK == sorted_TLK[:, :, :-1]) & (again_TLK >= 0) & (again_TLK < num_experts))


def _more(count: int, what: str) -> str:
    return f" ({count:,} {what} in all)" if count > 1 else ""
