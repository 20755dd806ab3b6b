"""What can be wrong with the choices themselves: experts that do not exist, and experts chosen twice.

Legend: T tokens, L traced layers, K choices per token.
"""

from __future__ import annotations

import numpy as np

from planner.errors import Place, Problem
from planner.trace.trace import Ints, TokenTrace


class ChoiceFaults:
    """Looks at the choices block by block, and keeps the first fault of each kind and their number."""

    def __init__(self, trace: TokenTrace) -> None:
        self._trace = trace
        self._strange = self._twice = 0
        self._first_strange = self._first_twice = ""

    def look(self, start: int, ids_TLK: Ints) -> None:
        """Look at the block that begins with token `start`."""
        layer_ids = self._trace.layer_ids_L
        experts = self._trace.num_experts
        strange_TLK = (ids_TLK < -1) | (ids_TLK >= experts)
        if strange_TLK.any():
            token, row, choice = (int(index[0]) for index in np.nonzero(strange_TLK))
            where = f"in layer {layer_ids[row]} of token {start + token}"
            self._first_strange = self._first_strange or f"expert id {ids_TLK[token, row, choice]} {where}"
            self._strange += int(strange_TLK.sum())
        sorted_TLK = np.sort(ids_TLK, axis=2)
        again_TLK = sorted_TLK[:, :, 1:]
        twice_TLK = (again_TLK == sorted_TLK[:, :, :-1]) & (again_TLK >= 0) & (again_TLK < experts)
        if twice_TLK.any():
            token, row, choice = (int(index[0]) for index in np.nonzero(twice_TLK))
            expert = sorted_TLK[token, row, choice]
            where = f"in layer {layer_ids[row]} of token {start + token}"
            self._first_twice = self._first_twice or f"expert {expert} is chosen twice {where}"
            self._twice += int(twice_TLK.any(axis=2).sum())

    def problems(self) -> list[Problem]:
        """What was found, at most one problem of each kind."""
        where, experts = Place(str(self._trace.path), key="expert_ids"), self._trace.num_experts
        found = []
        if self._strange:
            message = f"{self._first_strange}, but there are {experts} experts (0..{experts - 1})"
            hint = "physical ids of a run with redundant experts, or a filler id? map them back first; -1 is no expert"
            found.append(Problem(message + _more(self._strange, "choices"), where, hint))
        if self._twice:
            hint = "a router chooses different experts; filler is -1; physical ids of copies? map them back first"
            found.append(Problem(self._first_twice + _more(self._twice, "token-layer pairs"), where, hint))
        return found


def _more(count: int, what: str) -> str:
    return f" ({count:,} {what} in all)" if count > 1 else ""


def choice_problems(trace: TokenTrace) -> list[Problem]:
    """Look at all choices of a trace that will not be counted, because something else is wrong."""
    faults = ChoiceFaults(trace)
    for start, block in trace.blocks():
        faults.look(start, block.astype(np.int64))
    return faults.problems()
