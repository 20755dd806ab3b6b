"""Looks at every block of tokens on its way through, and names the traps that show in the ids.

A router picks distinct experts. So a row in which one id fills all choices was not routed: zeros of a
dense layer or of a buffer never written; the last id, 255 of 256, where -1 became a byte.

Legend: T tokens, L rows of layers, K choices, E experts.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.errors import Place
from planner.trace.aggregate import by_layer
from planner.trace.alike import Alike
from planner.trace.faults import Fault
from planner.trace.importers.found import BOTH, DECODE, PREFILL, Ints

_VALUES = 64
"""Different ids out of range that are told apart."""


@dataclass(frozen=True)
class Seen:
    """A block after the look: without padding, and -1 for ids out of range."""

    ids_TLK: Ints
    keep_T: NDArray[np.bool_] | None
    """Tokens kept; None: all."""


class Survey:
    """What the blocks so far hold."""

    def __init__(self, num_experts: int, fillers: tuple[int, ...]) -> None:
        self.num_experts = num_experts
        self.fillers = fillers
        self.tokens = self.padding = 0
        self.routed_L = np.zeros(0, dtype=np.int64)
        """Tokens that chose some expert in each layer."""
        self.same_L = np.zeros(0, dtype=np.int64)
        """Tokens for which the first or the last id fills all choices, in each layer."""
        self.repeated_L = np.zeros(0, dtype=np.int64)
        self.zeros_L = np.zeros(0, dtype=bool)
        """Layers in which no id but 0 was seen: with one choice per token rows alone do not tell."""
        self.used_K = np.zeros(0, dtype=bool)
        self.none = False
        """Whether any choice is no expert."""
        self.strange: Counter[int] = Counter()
        self.strange_rows = 0
        self.phases: set[int] = set()
        self._alike = Alike(num_experts)

    def look(self, ids_TLK: Ints) -> Seen:
        """Survey one block and drop the padding in it."""
        tokens, layers, choices = ids_TLK.shape
        if not len(self.routed_L):
            self.routed_L, self.same_L, self.repeated_L = (np.zeros(layers, dtype=np.int64) for _ in range(3))
            self.zeros_L = np.ones(layers, dtype=bool)
            self.used_K = np.zeros(choices, dtype=bool)
        if tokens == 0:
            return Seen(ids_TLK, None)
        ids = self._without_fillers(ids_TLK)
        least, most = int(ids.min()), int(ids.max())
        if most >= self.num_experts or least < -1:
            ids = self._without_strange(ids)
            least = -1
        ids_LKT = by_layer(ids)
        same_LT = np.zeros((layers, tokens), dtype=bool)
        none_LT = np.zeros((layers, tokens), dtype=bool)
        for layer in range(layers):
            self._look_at_layer(layer, ids_LKT[layer], same_LT[layer], none_LT[layer], may_lack=least < 0)
        self.none = self.none or least < 0
        return self._without_padding(ids, same_LT, none_LT)

    def _without_fillers(self, ids_TLK: Ints) -> Ints:
        if not self.fillers:
            return ids_TLK
        signed = ids_TLK.astype(np.int64)
        return np.where(np.isin(signed, self.fillers), -1, signed)

    def _without_strange(self, ids: Ints) -> Ints:
        """Foreign ids are noted and stand for no expert, so that what is accepted adds to no expert's load."""
        wrong = (ids >= self.num_experts) | (ids < -1)
        self.strange_rows += int(wrong.any(axis=2).sum())
        values, counts = np.unique(ids[wrong], return_counts=True)
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            if value in self.strange or len(self.strange) < _VALUES:
                self.strange[value] += count
        return np.where(wrong, -1, ids.astype(np.int64))

    def _look_at_layer(
        self, layer: int, ids_KT: Ints, same_T: NDArray[np.bool_], none_T: NDArray[np.bool_], *, may_lack: bool
    ) -> None:
        choices = len(ids_KT)
        self.zeros_L[layer] &= int(ids_KT.max()) <= 0
        repeated_T = np.zeros(ids_KT.shape[1], dtype=bool)
        for k in range(1, choices):
            for other in range(k):
                repeated_T |= (ids_KT[k] == ids_KT[other]) & (ids_KT[k] >= 0 if may_lack else True)
        if may_lack:
            chosen_KT = ids_KT >= 0
            np.logical_not(chosen_KT.any(axis=0), out=none_T)
            self.used_K |= chosen_KT.any(axis=1)
        else:
            self.used_K[:] = True
        if may_lack or repeated_T.any():
            same_T[:] = not_routed(ids_KT, self.num_experts)
        self.repeated_L[layer] += int((repeated_T & ~same_T).sum())

    def _without_padding(self, ids: Ints, same_LT: NDArray[np.bool_], none_LT: NDArray[np.bool_]) -> Seen:
        padding_T: NDArray[np.bool_] = np.logical_and.reduce(same_LT | none_LT, axis=0)
        padded = int(padding_T.sum())
        self.padding += padded
        self.tokens += len(padding_T) - padded
        keep_T = ~padding_T if padded else None
        if keep_T is not None:
            ids, same_LT, none_LT = ids[keep_T], same_LT[:, keep_T], none_LT[:, keep_T]
        self._alike.look(ids)
        self.same_L += same_LT.sum(axis=1)
        self.routed_L += ids.shape[0] - same_LT.sum(axis=1) - none_LT.sum(axis=1)
        return Seen(ids, keep_T)

    def live(self) -> NDArray[np.bool_]:
        """Layers [L] in which some token was routed."""
        live_L: NDArray[np.bool_] = (self.routed_L > 0) & ~self.zeros_L
        return live_L

    def note_phases(self, phase_T: NDArray[np.int8]) -> None:
        """Remember the phases of tokens."""
        self.phases.update(np.unique(phase_T).tolist())

    def faults(self, path: Path, *, split_phases: bool) -> list[Fault]:
        """Traps found in all blocks; `split_phases`: the user has chosen one phase."""
        where = Place(str(path))
        faults = [] if split_phases else mixed_phases(self.phases, where)
        faults += self._strange_faults(where)
        live_L = self.live()
        repeated = int(self.repeated_L[live_L].sum())
        if repeated:
            row = int(np.argmax(self.repeated_L * live_L))
            message = f"{repeated:,} tokens chose an expert twice in one layer, most in row {row}"
            cure = "physical ids of copies taken for logical ones, or a filler id (--filler)"
            faults.append(Fault("repeated-expert", message, where, cure))
        return faults + self._alike.faults(where)

    def _strange_faults(self, where: Place) -> list[Fault]:
        if not self.strange:
            return []
        values, experts = sorted(self.strange), self.num_experts
        told = f"0..{experts - 1}"
        if values == [experts] and self.strange_rows == self.strange[experts]:
            message = f"expert {experts} beside {told}, once for each token: a fused shared expert"
            cure = f"leave it out with --filler {experts}"
            return [Fault("shared-experts", message, where, cure)]
        if len(values) == 1 and (values[0] < -1 or values[0] in (255, 65535) or values[0] > 2 * experts):
            message = f"id {values[0]} in {self.strange[values[0]]:,} choices, but experts are {told}"
            cure = f"it stands for no expert: --filler {values[0]}"
            return [Fault("filler-ids", message, where, cure)]
        message = f"ids up to {values[-1]}, but experts are {told}"
        cure = "slots of a run with redundant experts: record logical ids, or give the map of that run"
        return [Fault("physical-ids", message, where, cure)]

    def notes(self) -> list[str]:
        """What was mended."""
        notes = []
        if self.padding:
            notes.append(f"{self.padding:,} tokens that chose no expert in any layer left out [filler-ids]")
        partly = int(self.same_L[self.live()].sum())
        if partly:
            notes.append(f"{partly:,} rows with one id in all choices set to no expert [filler-ids]")
        return notes


def not_routed(ids_KR: Ints, num_experts: int) -> NDArray[np.bool_]:
    """Rows [R] of choices [K, R] that the first or the last id fills, some -1 aside."""
    if len(ids_KR) == 1:
        return np.zeros(ids_KR.shape[1:], dtype=bool)
    chosen_KR = ids_KR >= 0
    most_R = ids_KR.max(axis=0)
    alike_R = (chosen_KR <= (ids_KR == most_R)).all(axis=0) & (chosen_KR.sum(axis=0) > 1)
    found: NDArray[np.bool_] = alike_R & ((most_R == 0) | (most_R == num_experts - 1))
    return found


def mixed_phases(phases: set[int], where: Place) -> list[Fault]:
    """Whether prefill and decode are pooled."""
    if BOTH not in phases and not {PREFILL, DECODE} <= phases:
        return []
    cure = "choose one with --phase prefill or --phase decode"
    return [Fault("mixed-phases", "prefill and decode are in the same recording", where, cure)]


def dtype_for(num_experts: int, *, with_none: bool) -> np.dtype[Any]:
    """The smallest type that holds the ids."""
    if with_none:
        return np.dtype(np.int8 if num_experts <= 128 else np.int16 if num_experts <= 1 << 15 else np.int32)
    return np.dtype(np.uint8 if num_experts <= 256 else np.uint16)
