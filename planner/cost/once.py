"""Work that is the same for layers of the same load and placement; without a trace all layers are alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from planner.cost.instance import LayerLoad

Ints = NDArray[np.int64]
Found = TypeVar("Found")


class OncePerLayer(Generic[Found]):
    """Finds something of a layer, once for all layers that have the same load and slots."""

    def __init__(self, find: Callable[[LayerLoad, Ints], Found]) -> None:
        self._find = find
        self._known: dict[tuple[int, bytes], Found] = {}

    def __call__(self, load: LayerLoad, expert_P: Ints) -> Found:
        """Of a layer with this load, which must stay alive, and these slots."""
        key = id(load), expert_P.tobytes()
        if key not in self._known:
            self._known[key] = self._find(load, expert_P)
        return self._known[key]
