"""The units that an exchange of tokens keeps busy (ports, uplinks, slow pairs), and what each copy costs them.

Where all homes send alike, a unit's copies follow from what arrives at ranks and domains (`Block`). Where copies of
an expert serve by nearness they follow from what passes between each two ranks (`PairBlock`, `SlowPairs`).

Legend: S windows, R EP ranks, X ranks or domains, U units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

RANKS = -1
"""Key of the copies that arrive at ranks; domains have the number of their partition."""


@dataclass(frozen=True)
class Block:
    """Ports, uplinks or pairs of one kind: copies on each are volumes times coefficients."""

    parts: Mapping[int, Floats]
    """Coefficients [X, U] by key of the volume; a vector [U] where unit u takes volume u alone."""
    seconds_U: Floats
    light_U: Floats
    receives: bool
    """Whether the units receive; only says which argument bounds them best."""

    def seconds_SU(self, volumes: Mapping[int, Floats], *, light: bool) -> Floats:
        """Seconds per byte of a copy on each unit in each window."""
        copies_SU: Floats | None = None
        for key, coefficient in self.parts.items():
            volume_SX = volumes[key]
            if coefficient.ndim == 1:
                one_SU = volume_SX * coefficient
            else:
                one_SU = np.einsum("sx,xu->su", volume_SX, coefficient)
            copies_SU = one_SU if copies_SU is None else copies_SU + one_SU
        assert copies_SU is not None
        return np.asarray(copies_SU * (self.light_U if light else self.seconds_U))


@dataclass(frozen=True)
class Passing:
    """Which messages of one all-to-all group pass units of some kind."""

    sends: int
    """Number of the group's senders."""
    passes_RR: Bools
    """[to, from]"""
    unit_R: Ints
    """The unit that each rank uses."""


@dataclass(frozen=True)
class PairBlock:
    """Ports or uplinks of one kind, that receive or that send."""

    passing: tuple[Passing, ...]
    seconds_U: Floats
    light_U: Floats
    receives: bool

    def seconds_SU(self, copies_SRR: Sequence[Floats], *, light: bool) -> Floats:
        """Seconds per byte of a copy on each unit in each window.

        Args:
            copies_SRR: copies [S, to, from] that the ranks of each group send each other, by number of the senders.
            light: at datasheet bandwidth.
        """
        copies_SU = np.zeros((len(copies_SRR[0]), len(self.seconds_U)))
        for one in self.passing:
            axis = 2 if self.receives else 1
            copies_SR = (copies_SRR[one.sends] * one.passes_RR).sum(axis=axis)
            np.add.at(copies_SU.T, one.unit_R, copies_SR.T)
        return np.asarray(copies_SU * (self.light_U if light else self.seconds_U))


@dataclass(frozen=True)
class SlowPairs:
    """For each rank of a group the slowest of the slow pairs by which it receives."""

    sends: int
    seconds_RR: Floats
    """Seconds per byte [to, from]; 0 for pairs that are not slow."""
    light_RR: Floats

    def seconds_SU(self, copies_SRR: Sequence[Floats], *, light: bool) -> Floats:
        """See `PairBlock.seconds_SU`."""
        seconds_RR = self.light_RR if light else self.seconds_RR
        return np.asarray((copies_SRR[self.sends] * seconds_RR).max(axis=2))
