"""Where ranks meet: a key-value store that listens on one address only. What passes it is JSON, never pickled.

The store lives in the process that started the ranks, or else in rank 0; everybody else connects to it.
"""

from __future__ import annotations

import fcntl
import json
import socket
import struct
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from torch.distributed import TCPStore

from planner.errors import MissingEnvironmentError, UsageError

_SIOCGIFADDR: Final = 0x8915
_BACKLOG: Final = 4096
_OPERATION: Final = timedelta(seconds=20)
"""A single answer of the store must not take longer."""


@dataclass(frozen=True)
class Meeting:
    """Host and port of the store."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_meeting(text: str) -> Meeting:
    """`HOST:PORT`, or `[ADDRESS]:PORT`."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise UsageError(f"--rendezvous {text}: expected HOST:PORT", hint="such as node0:29500")
    return Meeting(host, int(port))


def address_of(meeting: Meeting, who: str) -> Meeting:
    """The same with the host as a number; raises `MissingEnvironmentError` where the name means nothing here."""
    try:
        found = socket.getaddrinfo(meeting.host, meeting.port, type=socket.SOCK_STREAM)
    except OSError as error:
        hint = "give a name or address of rank 0's host that every host resolves"
        message = f"{who}: join: the rendezvous host {meeting.host!r} does not resolve ({error.strerror or error})"
        raise MissingEnvironmentError(message, hint=hint) from None
    return Meeting(str(found[0][4][0]), meeting.port)


def listening(meeting: Meeting, who: str) -> socket.socket:
    """A socket that listens on this address alone; port 0: any that is free."""
    family = socket.AF_INET6 if ":" in meeting.host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((meeting.host, meeting.port))
        made.listen(_BACKLOG)
    except OSError as error:
        made.close()
        hint = "the rendezvous must be an address of rank 0's own host, and the port must be free"
        message = f"{who}: join: cannot listen on {meeting}: {error.strerror or error}"
        raise MissingEnvironmentError(message, hint=hint) from None
    return made


def serve(listener: socket.socket) -> TCPStore:
    """Answer on a listening socket as long as the object lives."""
    host, port = listener.getsockname()[:2]
    return TCPStore(
        host,
        port,
        None,
        is_master=True,
        timeout=_OPERATION,
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )


def connect(meeting: Meeting, timeout_s: float, who: str) -> TCPStore:
    """A connection to the store; raises `MissingEnvironmentError` if nobody answers in time."""
    end = time.monotonic() + timeout_s
    reason = "no answer"
    while True:
        left = end - time.monotonic()
        try:
            socket.create_connection((meeting.host, meeting.port), timeout=max(0.1, min(left, 5.0))).close()
            return TCPStore(meeting.host, meeting.port, None, is_master=False, timeout=_OPERATION)
        except OSError as error:
            reason = str(error.strerror or error)
        except RuntimeError as error:  # torch's own family of network errors
            reason = str(error).partition("\n")[0]
        if time.monotonic() >= end:
            hint = "is it the address of rank 0's host, has rank 0 started, does a firewall close the port?"
            message = f"{who}: join: nobody answers at {meeting} within {timeout_s:.0f} s ({reason})"
            raise MissingEnvironmentError(message, hint=hint)
        time.sleep(0.1)


def local_address(meeting: Meeting) -> str:
    """The address by which this host reaches the rendezvous."""
    family = socket.AF_INET6 if ":" in meeting.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((meeting.host, meeting.port))
        return str(probe.getsockname()[0])


def interface_of(address: str) -> str | None:
    """Name of the network interface that has an IPv4 address; None if none has it."""
    if ":" in address:
        return None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                raw = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:
                continue  # no address
            if socket.inet_ntoa(raw[20:24]) == address:
                return name
    return None


def put(store: TCPStore, key: str, value: Any) -> None:
    """Keep plain data under a key."""
    store.set(key, json.dumps(value))


def read(store: TCPStore, key: str) -> Any:
    """Plain data that is there already.

    Raises:
        MissingEnvironmentError: it is no JSON, so that no rank of ours has put it there.
    """
    raw = store.get(key)
    try:
        return json.loads(raw)
    except ValueError:
        message = f"the store holds something else than JSON under {key!r} ({len(raw)} bytes)"
        raise MissingEnvironmentError(message, hint="does another program use this port? Give a free one") from None


def wait_for(store: TCPStore, key: str, timeout_s: float) -> None:
    """Wait until a key is there; raises torch's `DistStoreError` if it does not come."""
    store.wait([key], timedelta(seconds=timeout_s))


def has(store: TCPStore, key: str) -> bool:
    """Whether a key is there."""
    return bool(store.check([key]))
