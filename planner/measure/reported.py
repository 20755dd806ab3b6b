"""What the driver says of a rank's links: NVLinks, PCIe lanes, NICs, to stand beside what was measured.

Sources are `nvidia-smi` and the kernel's files below /sys. What neither tells (virtual machines hide most of it)
is left out, never guessed.

Legend: G GPUs of a host.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from planner.errors import InputError
from planner.inputs.importers.nvidia_smi import CLOSENESS, read_matrix

Smi = Callable[[tuple[str, ...]], str | None]
"""Output of `nvidia-smi` with these arguments; None: there is none."""

_LIMIT_S: Final = 30
"""A driver in trouble may not answer."""
_QUERY: Final = ("--query-gpu=uuid,pci.bus_id", "--format=csv,noheader")
_SPEED: Final = re.compile(r"([\d.]+) GT/s")
_RATE: Final = re.compile(r"([\d.]+) Gb/sec")
_NVLINK: Final = re.compile(r"\s*Link \d+: ([\d.]+) GB/s")
_ADDRESS: Final = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_LANES: Final = range(1, 33)
"""A device that has fallen off the bus says 63, an emulated one 0."""


@dataclass(frozen=True)
class Pcie:
    """Lanes of a device."""

    lanes: int
    most_lanes: int | None
    """That the device has; None: not told."""
    bytes_per_s: float | None
    """One direction, at the lanes and the speed of now; an idle GPU lowers its speed."""


@dataclass(frozen=True)
class Nic:
    """An InfiniBand or RoCE port that is up."""

    name: str
    bytes_per_s: float
    distance: int | None
    """From the rank's GPU, an index of `CLOSENESS`; None: not told."""
    address: str
    pcie: Pcie | None


@dataclass(frozen=True)
class Reported:
    """What is known of one rank's links without sending anything."""

    gpu: str | None = None
    """PCI address of the GPU."""
    numa_node: int | None = None
    pcie: Pcie | None = None
    paths: Mapping[str, str] | None = None
    """By address of another GPU of the host: NV18, PIX, ..., SYS."""
    nvlinks: int | None = None
    """That are up."""
    nvlink_bytes_per_s: float | None = None
    """Of one of them, one direction."""
    nics: tuple[Nic, ...] = ()
    interfaces: Mapping[str, float] | None = None
    """Bytes per second of network interfaces that tell their speed."""

    def data(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def reported_from(data: Mapping[str, Any]) -> Reported:
    """From plain data."""
    nics = tuple(Nic(**{**nic, "pcie": _pcie_from(nic["pcie"])}) for nic in data["nics"])
    return Reported(**{**data, "pcie": _pcie_from(data["pcie"]), "nics": nics})


def _pcie_from(data: Mapping[str, Any] | None) -> Pcie | None:
    return None if data is None else Pcie(**data)


# --- reading --------------------------------------------------------------------------------------


def nvidia_smi(arguments: tuple[str, ...]) -> str | None:
    """Run it, if there is one that answers."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    try:
        command = [program, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return None
    return done.stdout if done.returncode == 0 else None


def read_reported(uuid: str | None, root: Path = Path("/"), smi: Smi = nvidia_smi) -> Reported:
    """What the driver says of the links of one rank.

    Args:
        uuid: of its GPU, as torch tells it; None: a rank without a GPU.
        root: where /sys is.
        smi: runs `nvidia-smi`.
    """
    sys = root / "sys"
    interfaces = _interfaces(sys)
    if uuid is None:
        return Reported(interfaces=interfaces)
    addresses = _addresses(smi(_QUERY))
    index = next((at for at, (known, _) in enumerate(addresses) if known.removeprefix("GPU-") == uuid), None)
    if index is None:
        return Reported(nics=_nics(sys, {}), interfaces=interfaces)
    address = addresses[index][1]
    paths, distances = _matrix_row(smi(("topo", "-m")), index, [other for _, other in addresses])
    nvlinks = _nvlinks(smi(("nvlink", "-s", "-i", address)))
    return Reported(
        gpu=address,
        numa_node=_number(sys / "bus/pci/devices" / address / "numa_node"),
        pcie=_pcie(sys / "bus/pci/devices" / address),
        paths=paths,
        nvlinks=len(nvlinks) or None,
        nvlink_bytes_per_s=float(np.median(nvlinks)) if nvlinks else None,
        nics=_nics(sys, distances),
        interfaces=interfaces,
    )


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _number(path: Path) -> int | None:
    """A number of the kernel's; -1 is how it says that it does not know."""
    text = _text(path)
    return int(text) if text is not None and text.isdecimal() else None


def _addresses(text: str | None) -> list[tuple[str, str]]:
    """UUID and PCI address of every GPU of the host, in the driver's order."""
    found = []
    for line in (text or "").splitlines():
        uuid, _, raw = line.partition(",")
        address = raw.strip().lower()
        if _ADDRESS.fullmatch(address):
            domain, _, rest = address.partition(":")
            found.append((uuid.strip(), f"{domain[-4:]}:{rest}"))  # the kernel writes four digits of eight
    return found


def _matrix_row(text: str | None, index: int, addresses: Sequence[str]) -> tuple[dict[str, str] | None, dict[str, int]]:
    """Paths from one GPU to the others, by address, and how far NICs are from it, by name."""
    if text is None:
        return None, {}
    try:
        matrix = read_matrix(text, "nvidia-smi topo -m")
    except InputError:
        return None, {}
    if matrix.num_gpus != len(addresses):
        return None, {}
    row = [
        f"NV{count}" if count else path for count, path in zip(matrix.nvlinks[index], matrix.paths[index], strict=True)
    ]
    paths = {address: path for address, path in zip(addresses, row, strict=True) if path}
    near = {name: CLOSENESS.index(path) for name, path in zip(matrix.nics, matrix.nic_paths[index], strict=True)}
    return paths, near


def _nvlinks(text: str | None) -> list[float]:
    """Rates of the NVLinks of a GPU that are up."""
    found = (_NVLINK.fullmatch(line) for line in (text or "").splitlines())
    return [float(match[1]) * 1e9 for match in found if match]


def _pcie(device: Path) -> Pcie | None:
    lanes, most = _number(device / "current_link_width"), _number(device / "max_link_width")
    if lanes is None or lanes not in _LANES:
        return None
    speed = _SPEED.match(_text(device / "current_link_speed") or "")
    rate = None if speed is None else lanes * _lane_bytes_per_s(float(speed[1]))
    return Pcie(lanes, most if most in _LANES else None, rate)


def _lane_bytes_per_s(transfers: float) -> float:
    """Of one lane at so many GT/s, less what the line code takes."""
    code = 8 / 10 if transfers < 8 else 128 / 130 if transfers < 64 else 236 / 256
    return transfers * 1e9 * code / 8


def _nics(sys: Path, distances: Mapping[str, int]) -> tuple[Nic, ...]:
    """Ports that are up; the one with the highest rate stands for a card of several."""
    found = []
    for card in sorted((sys / "class/infiniband").glob("*")):
        rates = []
        for port in card.glob("ports/*"):
            rate = _RATE.match(_text(port / "rate") or "")
            if rate is not None and "ACTIVE" in (_text(port / "state") or ""):
                rates.append(float(rate[1]) * 1e9 / 8)
        if rates:
            device = (card / "device").resolve()
            found.append(Nic(card.name, max(rates), distances.get(card.name), device.name, _pcie(device)))
    return tuple(found)


def _interfaces(sys: Path) -> dict[str, float]:
    """Interfaces tell Mbit/s; those that have no speed say -1, or nothing."""
    speeds = {path.name: _number(path / "speed") for path in sorted((sys / "class/net").glob("*"))}
    return {name: speed * 1e6 / 8 for name, speed in speeds.items() if speed}


# --- what it means --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Joined:
    """What joins two ranks."""

    by: str
    """In words: NVLink NV18, PCIe SYS, NIC mlx5_0, host."""
    bytes_per_s: float | None
    """Line rate, one direction; None: not reported."""


def joined(one: Reported, other: Reported, *, inside: bool, interfaces: tuple[str | None, str | None]) -> Joined:
    """What the driver says about the link between two ranks.

    Args:
        one: a rank.
        other: the other one.
        inside: both are on one host.
        interfaces: network interface that each of them uses.
    """
    if inside:
        return _joined_inside(one, other)
    nics = [_nearest(end) for end in (one, other)]
    if all(nics):
        names = "/".join(dict.fromkeys(nic.name for nic in nics if nic))
        return Joined(f"NIC {names}", min(nic.bytes_per_s for nic in nics if nic))
    names = "/".join(dict.fromkeys(name for name in interfaces if name))
    rates = [(end.interfaces or {}).get(name or "") for end, name in zip((one, other), interfaces, strict=True)]
    known = [rate for rate in rates if rate is not None]
    return Joined(f"NIC {names}".rstrip(), min(known) if len(known) == 2 else None)


def _joined_inside(one: Reported, other: Reported) -> Joined:
    path = None if other.gpu is None else (one.paths or {}).get(other.gpu)
    if path is None:
        return Joined("host", None)
    if path.startswith("NV"):
        each = one.nvlink_bytes_per_s
        return Joined(f"NVLink {path}", None if each is None else int(path.removeprefix("NV")) * each)
    rates = [end.pcie.bytes_per_s for end in (one, other) if end.pcie is not None and end.pcie.bytes_per_s is not None]
    return Joined(f"PCIe {path}", min(rates) if len(rates) == 2 else None)


def _nearest(end: Reported) -> Nic | None:
    """The fastest of the NICs that are nearest to the GPU."""
    if not end.nics:
        return None
    far = len(CLOSENESS)
    return min(end.nics, key=lambda nic: (far if nic.distance is None else nic.distance, -nic.bytes_per_s))


def reported_of(results: Sequence[Mapping[str, Any]]) -> list[Reported]:
    """Of every rank."""
    return [reported_from(result["reported"]) for result in results]


def reported_findings(results: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Links that run below what their devices can do, with host and device."""
    found: list[str] = []
    every = reported_of(results)
    for rank, (said, result) in enumerate(zip(every, results, strict=True)):
        host = result["host"]
        if said.pcie is not None:
            found += _narrow(f"rank {rank} ({host}): GPU {said.gpu}", said.pcie)
        alike = [
            other.nvlinks
            for other, theirs in zip(every, results, strict=True)
            if other.nvlinks is not None and theirs["smoke"]["device"] == result["smoke"]["device"]
        ]
        if said.nvlinks is not None and said.nvlinks < max(alike):
            found.append(
                f"rank {rank} ({host}): GPU {said.gpu} has {said.nvlinks} NVLinks up, others of its kind {max(alike)}"
            )
        for nic in said.nics:
            if nic.pcie is not None:
                found += _narrow(f"host {host}: NIC {nic.name} ({nic.address})", nic.pcie)
    return tuple(dict.fromkeys(found))


def _narrow(device: str, pcie: Pcie) -> list[str]:
    if pcie.most_lanes is None or pcie.lanes >= pcie.most_lanes:
        return []
    return [f"{device} runs on {pcie.lanes} of its {pcie.most_lanes} PCIe lanes"]
