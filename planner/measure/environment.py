"""What is installed besides what planning needs, and which devices torch sees."""

from __future__ import annotations

import re
from importlib import metadata
from typing import Final

from planner.inputs.units import format_bytes

_REQUIREMENT: Final = re.compile(r"^([A-Za-z0-9._-]+).*;.*extra == ['\"]([\w-]+)['\"]")
_OF_DEVELOPERS: Final = "dev"


def version_of(package: str) -> str | None:
    """The installed version of a package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def extras() -> dict[str, tuple[str, ...]]:
    """The packages of every extra of this installation; nothing where ep-plan runs without being installed."""
    try:
        required = metadata.requires("ep-plan") or []
    except metadata.PackageNotFoundError:
        return {}
    found: dict[str, tuple[str, ...]] = {}
    for text in required:
        match = _REQUIREMENT.match(text)
        if match is not None and match[2] != _OF_DEVELOPERS:
            found[match[2]] = (*found.get(match[2], ()), match[1])
    return found


def accelerators() -> str:
    """The devices that torch sees, such as "8 x NVIDIA H100 80GB HBM3 (79.2 GiB), CUDA 12.8"."""
    try:
        import torch  # noqa: PLC0415 - planning must work without it
    except (ImportError, OSError) as error:  # OSError: a library that torch needs is missing
        return f"unknown: torch cannot be imported ({str(error).splitlines()[0]})"
    if not torch.cuda.is_available():
        return f"none that torch {torch.__version__} sees"
    kinds: dict[str, int] = {}
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        name = f"{properties.name} ({format_bytes(properties.total_memory)})"
        kinds[name] = kinds.get(name, 0) + 1
    platform = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}"
    return ", ".join([*(f"{count} x {name}" for name, count in kinds.items()), platform])
