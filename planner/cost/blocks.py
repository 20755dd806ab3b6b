"""The units that an exchange of tokens keeps busy (ports, uplinks, slow pairs), and what each copy costs them.

Legend: S windows, X ranks or domains, U units.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

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
