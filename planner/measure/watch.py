"""A rank tells how it is, and ends when the run is given up, whatever its main thread waits for."""

from __future__ import annotations

import json
import os
import sys
import threading
from typing import Final

from torch.distributed import TCPStore

from planner.measure import store as stores
from planner.measure.job import Identity

BEAT_S: Final = 0.25
_LOST: Final = 7


class Watch:
    """Beats from a thread of its own: the phase that the rank is in, and how far it has come."""

    def __init__(self, store: TCPStore, identity: Identity, *, serves: bool = False) -> None:
        self._store = store
        self._serves = serves  # the store lives in this process: it must be the last to go
        self._identity = identity
        self._phase = "join"
        self._waits = False
        self._progress = 0
        self._layer: int | None = None
        self._where = ""
        self._ended = threading.Event()
        self._beat()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin to beat."""
        self._thread.start()

    def stop(self) -> None:
        """No more beats, and the end of the store is no loss."""
        self._ended.set()
        self._thread.join()

    def window(self, text: str) -> None:
        """What the rank works on from now on."""
        self._where, self._layer = text, None
        self._progress += 1

    def layer(self, layer: int) -> None:
        """The layer that it works on from now on."""
        self._layer = layer
        self._progress += 1

    def phase(self, name: str, waits: bool = False) -> None:  # noqa: FBT002 - called by the clock
        """The phase that begins; `waits`: other ranks take part in it."""
        self._phase, self._waits = name, waits
        self._progress += 1

    def __str__(self) -> str:
        layer = "" if self._layer is None else f" of layer {self._layer}"
        where = f", {self._where}" if self._where else ""
        return f"{self._phase}{layer}{where}"

    def _beat(self) -> None:
        self._beats = getattr(self, "_beats", 0) + 1
        state = {
            "phase": str(self),
            "waits": self._waits,
            "progress": self._progress,
            "beats": self._beats,
            "host": self._identity.host,
        }
        self._store.set(f"beat/{self._identity.rank}", json.dumps(state))

    def _run(self) -> None:
        while not self._ended.wait(BEAT_S):
            try:
                self._beat()
                if not self._serves and stores.has(self._store, "abort"):
                    self._store.add("left", 1)
                    os._exit(int(stores.read(self._store, "abort")["exit_code"]))
            except RuntimeError as error:  # torch's own family of network errors
                if self._ended.is_set():
                    return
                sys.stderr.write(f"error: {self._identity}: {self}: {lost_store(error)}\n")
                sys.stderr.flush()
                os._exit(_LOST)


def lost_store(error: Exception) -> str:
    """What a rank says whose store is gone, and with it all that could tell whom to blame."""
    return f"lost the store that holds the run together ({str(error).partition(chr(10))[0]})"
