"""What only the user knows of a launch: the model to load, the hosts, the map, the program."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from planner.errors import Problem, UsageError


@dataclass(frozen=True)
class LaunchOptions:
    """Names as given; every one is quoted where it is written."""

    model: str | None = None
    """What the engine is to load: a folder or a name."""
    hosts: tuple[str, ...] = ()
    """Host of each node, in the order of the plan's nodes."""
    map_path: str | None = None
    """The exported map, as the engine will find it."""
    image: str | None = None
    """Container image."""
    program: tuple[str, ...] = ()
    """What every rank runs."""
    port: int = 29500
    """Where ranks meet, on the first host."""

    def check(self) -> None:
        """Raise `UsageError` for names that no line of a script can hold."""
        named = {"--model": [self.model], "--host": self.hosts, "--map": [self.map_path], "--image": [self.image]}
        problems = [
            Problem(f"{option} {text!r}: empty, a flag, or with control characters in it")
            for option, texts in (*named.items(), ("--program", self.program))
            for text in texts
            if text is not None
            and (
                not text
                or (option != "--program" and text[0] == "-")
                or any(unicodedata.category(c) in ("Cc", "Cs") for c in text)
            )
        ]
        if len(set(self.hosts)) < len(self.hosts):
            problems.append(Problem(f"--host: a host stands twice ({', '.join(self.hosts)})"))
        if problems:
            raise UsageError.of(problems)

    @property
    def given_model(self) -> str:
        """The model, which `launch_text` has made sure of."""
        assert self.model is not None
        return self.model

    def need_hosts(self, nodes: int) -> tuple[str, ...]:
        """One host for each node; raises `UsageError` otherwise. A single node needs none."""
        if len(self.hosts) == nodes or (nodes == 1 and not self.hosts):
            return self.hosts
        message = f"--host: {len(self.hosts)} hosts given, the plan runs on {nodes} nodes"
        raise UsageError(message, hint="give --host once for each node, in the order of the topology")


def address(host: str, port: int) -> str:
    """Host and port in one; an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def joined(numbers: Sequence[int]) -> str:
    """Numbers as engines list devices."""
    return ",".join(map(str, numbers))
