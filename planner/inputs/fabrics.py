"""Fabrics: what a port of NVLink, PCIe, InfiniBand or Ethernet carries, by name.

A link of a topology may name a fabric instead of spelling out bandwidth and latency; a value that is
spelled out wins, because a machine may have fewer or more ports per GPU than one.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, partial
from typing import Annotated, Any, Literal

from pydantic import AfterValidator

from planner.errors import Place
from planner.inputs import documents, profiles
from planner.inputs.documents import Frozen
from planner.inputs.sourced import Sourced
from planner.inputs.units import Duration, Rate

FabricName = Annotated[str, AfterValidator(partial(profiles.known, "fabrics"))]
"""Name of a fabric profile."""


class FabricFile(Frozen):
    """A shipped fabric profile."""

    joins: Literal["gpus", "host", "nodes"]
    """GPUs directly (NVLink), a GPU to its host (PCIe), or nodes (InfiniBand, Ethernet)."""
    bandwidth: Sourced[Rate]
    """In one direction: of all links of a GPU (gpus), of a slot (host), of a NIC port (nodes)."""
    link_bandwidth: Sourced[Rate] | None = None
    """In one direction, of one of the links that make up the bandwidth, e.g. one NVLink."""
    latency: Sourced[Duration]
    """Of one message, e.g. 3 us."""
    note: str = ""

    @property
    def num_links(self) -> int:
        """Links that make up the bandwidth."""
        return round(self.bandwidth.value / self.link_bandwidth.value) if self.link_bandwidth else 1


@cache
def _read(name: str) -> tuple[FabricFile, dict[str, Any]]:
    fabric, document = documents.load(profiles.path_of("fabrics", name), FabricFile, "fabric")
    return fabric, document.data


def load_fabric(name: str, where: Place | None = None) -> FabricFile:
    """Read a fabric profile.

    Raises:
        InputError: no such fabric; with the nearest names.
    """
    profiles.path_of("fabrics", name, where)
    return _read(name)[0]


def with_fabric(link: Mapping[str, Any]) -> dict[str, Any]:
    """A link as it stands in a file, with what it leaves out taken from the fabric that it names.

    An unknown fabric leaves harmless values in place of the missing ones, so that the only problem
    told is the name itself (see `FabricName`).
    """
    name = link.get("fabric")
    if not isinstance(name, str):
        return dict(link)
    given: Mapping[str, Any] = {"bandwidth": "1 B/s", "latency": "0 s"}
    if name in profiles.names("fabrics"):
        given = _read(name)[1]
    missing = [key for key in ("bandwidth", "latency") if key not in link]
    return {**link, **{key: given[key] for key in missing}}
