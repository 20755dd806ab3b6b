"""What an importer found, and its text as a topology.yaml."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Final

_HOSTS_PER_LINE: Final = 8


@dataclass(frozen=True)
class DrawnLink:
    """One level of links, per GPU and per direction."""

    level: str
    fabric: str
    bandwidth: str | None = None
    """Such as "450 GB/s"; None: that of the fabric."""
    why: str = ""
    """How the bandwidth comes about; the source that the file gives for it."""
    basis: str = "datasheet"
    """Basis of the bandwidth."""
    nodes: int | None = None
    """Nodes that this level joins, where it is not implied."""
    gpus: int | None = None
    """GPUs in a row that a level inside a node joins."""
    shared_by: int = 1
    """GPUs in a row that share a port."""
    same_port: bool = False
    """Whether messages leave by the port of the level inside, where that is not implied."""


@dataclass(frozen=True)
class Drawn:
    """A topology as far as the input tells it."""

    gpu: str
    nodes: int
    gpus_per_node: int
    links: tuple[DrawnLink, ...]
    left_out: tuple[str, ...] = field(default=())
    """What the input tells and the topology does not say, or the other way round: one sentence each."""
    hosts: tuple[str, ...] = ()
    """Names of the nodes in their order, where the input tells them."""

    def text(self, origin: str) -> str:
        """The topology.yaml; `origin` names the input in its first comment."""
        lines = [f"# Imported from {_plain(origin)}. Bandwidth per GPU and per direction."]
        lines += [f"# Not expressed: {_plain(sentence)}" for sentence in self.left_out]
        for first in range(0, len(self.hosts), _HOSTS_PER_LINE):
            lines.append(f"# Node {first}: {_plain(' '.join(self.hosts[first : first + _HOSTS_PER_LINE]))}")
        lines += ["schema: ep-plan/topology/1", f"gpu: {self.gpu}", f"nodes: {self.nodes}"]
        lines += [f"gpus_per_node: {self.gpus_per_node}", "links:  # innermost first"]
        for link in self.links:
            lines += [f"  - level: {link.level}", f"    fabric: {link.fabric}"]
            if link.bandwidth is not None:
                source = json.dumps(link.why, ensure_ascii=False)
                lines.append(f"    bandwidth: {{value: {link.bandwidth}, basis: {link.basis}, source: {source}}}")
            if link.nodes is not None:
                lines.append(f"    nodes: {link.nodes}")
            if link.gpus is not None:
                lines.append(f"    gpus: {link.gpus}")
            if link.shared_by > 1:
                lines.append(f"    shared_by: {link.shared_by}")
            if link.same_port:
                lines.append("    same_port: true")
        return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
