"""A run whose messages go to a terminal, so that they can be waited for and it can be interrupted."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import threading
import time
from pathlib import Path
from types import TracebackType

from tests.cli.running import TIMEOUT_S, Result, command, environment

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def _heed_ctrl_c() -> None:
    """A shell that runs the tests in the background has them ignore it, and so would the program."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class TerminalRun:
    """The program in a session of its own; standard error is a terminal, standard output if asked."""

    def __init__(self, *arguments: object, cwd: Path, out_too: bool = False, **env: str) -> None:
        _heed_ctrl_c()
        self._master, slave = pty.openpty()
        self._seen = bytearray()
        self._process = subprocess.Popen(
            command(*arguments),
            cwd=cwd,
            env=environment(**{"COLUMNS": "150", **env}),
            stdin=subprocess.DEVNULL,
            stdout=slave if out_too else subprocess.PIPE,
            stderr=slave,
            encoding="utf-8",
            start_new_session=True,
        )
        os.close(slave)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> TerminalRun:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pid in self.alive():
            os.kill(pid, signal.SIGKILL)
        self._process.wait(TIMEOUT_S)
        self._reader.join(TIMEOUT_S)
        os.close(self._master)
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _read(self) -> None:
        while True:
            try:
                piece = os.read(self._master, 1 << 16)
            except OSError:  # the other end is closed
                return
            if not piece:
                return
            self._seen += piece

    @property
    def raw(self) -> str:
        """Everything shown so far, escape sequences included."""
        return self._seen.decode(errors="replace")

    @property
    def shown(self) -> str:
        """Everything shown so far as plain text."""
        return _ESCAPES.sub("", self.raw).replace("\r\n", "\n")

    def wait_for(self, pattern: str) -> None:
        """Wait until the terminal shows something; fails if the program ends before."""
        limit = time.monotonic() + TIMEOUT_S
        while not re.search(pattern, self.shown):
            assert self._process.poll() is None, f"ended before {pattern!r} was shown: {self.shown}"
            assert time.monotonic() < limit, f"{pattern!r} was not shown: {self.shown}"
            time.sleep(0.02)

    def wait_for_workers(self) -> list[int]:
        """Wait until worker processes run; their ids (Linux)."""
        limit = time.monotonic() + TIMEOUT_S
        while not (workers := self._workers()):
            assert self._process.poll() is None, f"ended before there were workers: {self.shown}"
            assert time.monotonic() < limit, "no workers were started"
            time.sleep(0.02)
        return workers

    @staticmethod
    def kill(pid: int) -> None:
        """End one process of this run the hard way."""
        os.kill(pid, signal.SIGKILL)

    def send(self, number: signal.Signals, *, group: bool = False) -> None:
        """Send a signal to the program, or as Ctrl-C does to all processes of the terminal."""
        if group:
            os.killpg(self._process.pid, number)
        else:
            self._process.send_signal(number)

    def result(self) -> Result:
        """Wait for the end; no traceback was shown."""
        out, _ = self._process.communicate(timeout=TIMEOUT_S)
        self._reader.join(1)
        assert "Traceback" not in self.shown, self.shown
        return Result(self._process.returncode, out or "", self.shown)

    def alive(self) -> list[int]:
        """Processes of this run that have not ended (Linux; zombies have)."""
        return [pid for pid, state, _ in self._session() if state not in "ZX"]

    def all_end(self) -> bool:
        """Whether every process of this run ends soon."""
        limit = time.monotonic() + 20
        while self.alive() and time.monotonic() < limit:
            time.sleep(0.02)
        return not self.alive()

    def _workers(self) -> list[int]:
        """Children of a child: the server from which workers are forked is in between."""
        parents = {pid: parent for pid, _, parent in self._session()}
        return [pid for pid, parent in parents.items() if parents.get(parent) == self._process.pid]

    def _session(self) -> list[tuple[int, str, int]]:
        """Id, state and parent of every process of the session."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has just ended
                continue
            if int(fields[3]) == self._process.pid:
                found.append((int(folder.name), fields[0], int(fields[1])))
        return found
