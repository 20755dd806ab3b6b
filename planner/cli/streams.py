"""Output streams that neither a missing letter nor a reader that has gone can turn into a failure."""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class _UntilTheReaderGoes(io.FileIO):
    """A file descriptor that drops everything once nobody reads it any more (`| head`).

    click and rich would end the program there, with an exit code of their own; but what a command
    found does not depend on who reads on.
    """

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            discard(self.fileno())
            return memoryview(data).nbytes


def discard(descriptor: int) -> None:
    """Let everything that is still written to a descriptor go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def steady(stream: TextIO) -> TextIO:
    """The same stream, but what its encoding lacks becomes `?`, and what nobody reads is dropped."""
    if not isinstance(stream, io.TextIOWrapper):  # closed, or replaced by a test
        return stream
    stream.flush()
    raw = _UntilTheReaderGoes(stream.fileno(), "wb", closefd=False)
    buffered = io.BufferedWriter(raw)
    return io.TextIOWrapper(buffered, stream.encoding, "replace", line_buffering=stream.line_buffering)


def steady_output() -> None:
    """Make standard output and standard error steady."""
    sys.stdout, sys.stderr = steady(sys.stdout), steady(sys.stderr)
