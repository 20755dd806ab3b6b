"""The device of a rank, what is free on it, and how many ranks a host's memory holds."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

from planner.errors import MissingEnvironmentError
from planner.inputs.units import format_bytes
from planner.measure.job import Identity, Job
from planner.processes import available_cores

OLDEST_TORCH: Final = (2, 10)
"""The first with `torch.nn.functional.grouped_mm`."""
_RANK_BYTES: Final = 192 << 20
"""Memory of its own that an emulated rank takes besides its tensors: measured with 8 and 16 ranks."""


def require_torch() -> None:
    """Raise `MissingEnvironmentError` if torch is not there, or too old."""
    try:
        import torch  # noqa: PLC0415 - planning must work without it
    except ImportError as error:
        hint = "pip install 'ep-plan[torch]'; a plan can be checked without it: ep-plan check"
        raise MissingEnvironmentError(f"measuring needs torch ({error})", hint=hint) from None
    found = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    oldest = ".".join(map(str, OLDEST_TORCH))
    if found < OLDEST_TORCH:
        raise MissingEnvironmentError(f"measuring needs torch {oldest} or newer, {torch.__version__} is installed")
    if not torch.distributed.is_available():
        raise MissingEnvironmentError(f"this torch {torch.__version__} is built without torch.distributed")


def free_memory(root: Path = Path("/")) -> int:
    """Bytes that this process and its children may still take: the kernel's estimate, and control groups' limits.

    A process is held to the limit of its own group and of every group around it, in the hierarchy of version
    1 or 2.
    """
    lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
    fields = {line.split(":")[0]: int(line.split()[1]) << 10 for line in lines if len(line.split()) == 3}
    free = fields["MemAvailable"]
    for group, limit, used in _control_groups(root):
        try:
            most, now = ((group / name).read_text(encoding="ascii").strip() for name in (limit, used))
        except OSError:
            continue  # of another namespace, or without a limit on memory
        if most.isdecimal() and now.isdecimal():
            free = min(free, max(0, int(most) - int(now)))
    return free


def _control_groups(root: Path) -> Iterator[tuple[Path, str, str]]:
    """Folders of the control groups that this process is in, innermost first, and the files of limit and use."""
    try:
        text = (root / "proc/self/cgroup").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, names = root / "sys/fs/cgroup", ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            top, names = root / "sys/fs/cgroup/memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        inner = PurePosixPath(path.lstrip("/"))
        for group in (inner, *inner.parents):
            yield top / group, *names


def check_room(ranks: int, tensors_bytes: int, free: int, *, emulated: bool) -> None:
    """Raise `MissingEnvironmentError` if so many ranks on this host do not fit into its memory."""
    each = _RANK_BYTES + tensors_bytes
    if ranks * each > free:
        message = (
            f"{ranks} {'emulated ' if emulated else ''}ranks need about {format_bytes(ranks * each)} "
            f"({format_bytes(each)} each), {format_bytes(free)} are free"
        )
        smaller = "a larger --scale; fewer --ranks at a time (stages in turn)" if emulated else "--emulate"
        raise MissingEnvironmentError(message, hint=f"{smaller}; a host with more memory, or a higher limit on it")


def check_cores(ranks: int) -> None:
    """Raise `MissingEnvironmentError` if ranks on this host would have to share cores."""
    cores = available_cores()
    if ranks > cores:
        message = f"{ranks} ranks on {cores} cores: seconds would measure total work, not the slowest rank"
        raise MissingEnvironmentError(message, hint="--emulate judges counts and outputs only")


def check_gpus(needed: int, nodes: int) -> None:
    """Raise `MissingEnvironmentError` if this machine does not have the plan's GPUs, all on one node."""
    import torch  # noqa: PLC0415 - see `require_torch`

    have = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if nodes > 1 or have < needed:
        message = f"the plan needs {needed} GPUs on {nodes} node{'s' if nodes > 1 else ''}; this machine has {have}"
        hint = "on a cluster: ep-plan validate --print-launch torchrun|slurm|kubernetes; without GPUs: --emulate"
        raise MissingEnvironmentError(message, hint=hint)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory is short; torch has no class of its own for it on CPUs."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in said or "allocate memory" in said


def high_water() -> int:
    """Most bytes of memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def describe(job: Job, identity: Identity) -> tuple[str, str | None]:
    """The device of this rank, and what tells it from all others of its host (None: devices may be shared)."""
    if job.device == "cpu" and identity.local_rank >= available_cores():
        message = f"{identity}: smoke: is rank {identity.local_rank} of its host, which has {available_cores()} cores"
        raise MissingEnvironmentError(message, hint="a core for every rank; --emulate judges counts and outputs only")
    if job.device != "cuda":
        return f"cpu, {available_cores()} of {os.cpu_count()} cores", None
    import torch  # noqa: PLC0415 - see `require_torch`

    have = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if identity.local_rank >= have:
        message = f"{identity}: smoke: needs GPU {identity.local_rank} of its host, which has {have}"
        hint = "as many ranks on each host as the plan has GPUs there; every rank must see all of them"
        raise MissingEnvironmentError(message, hint=hint)
    properties = torch.cuda.get_device_properties(identity.local_rank)
    return properties.name, str(getattr(properties, "uuid", identity.local_rank))
