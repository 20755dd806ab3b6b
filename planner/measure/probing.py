"""What each rank of `ep-plan probe` does: its own rates, kernels, links in pairs, all-to-alls of every reach."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import numpy as np
import torch
import torch.distributed as dist

from planner.inputs.precision import ActivationName, WeightName
from planner.measure import store as stores
from planner.measure.devices import describe
from planner.measure.exchange import all_to_all
from planner.measure.job import Identity, Job
from planner.measure.kernels import kernel_samples
from planner.measure.pairs import test_links
from planner.measure.rates import gemm_rate, memory_rate
from planner.measure.watch import Watch
from planner.measure.wire_format import Rows

FORMATS: Final[dict[str, tuple[WeightName, ...]]] = {"cpu": ("fp32",), "cuda": ("bf16",)}
_REPEATS: Final = 15
_AIM_S: Final = 0.02
_ROW: Final = 1024
"""Elements of an activation."""
_ACTIVATIONS: Final = {"cpu": torch.float32, "cuda": torch.bfloat16}
_MOST: Final = {"cpu": 1 << 23, "cuda": 1 << 27}


@dataclass(frozen=True)
class Reach:
    """Ranks that exchange with each other, and what that is called."""

    inside: bool
    ranks: tuple[int, ...]


def reaches(hosts: Sequence[str]) -> list[Reach]:
    """All-to-alls that are measured: inside every host that has several ranks, and over all hosts."""
    found = []
    for host in dict.fromkeys(hosts):
        ranks = tuple(rank for rank, where in enumerate(hosts) if where == host)
        if len(ranks) > 1:
            found.append(Reach(inside=True, ranks=ranks))
    if len(set(hosts)) > 1:
        found.append(Reach(inside=False, ranks=tuple(range(len(hosts)))))
    return found


def probe_rank(job: Job, identity: Identity, store: Any, watch: Watch) -> dict[str, Any]:
    """Everything that one rank measures, as plain data; all ranks measure at once, as they would work."""
    device = torch.device("cuda", identity.local_rank) if job.device == "cuda" else torch.device("cpu")
    hosts = [stores.read(store, f"hello/{rank}")["host"] for rank in range(identity.world_size)]
    result: dict[str, Any] = {"links": [], "exchanges": []}
    watch.phase("reading memory")
    dist.barrier()
    result["memory_bytes_per_s"] = memory_rate(device).data()
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    result["compute"], result["kernels"] = {}, {}
    for name in FORMATS[device.type]:
        watch.phase(f"GEMM in {name}")
        dist.barrier()
        result["compute"][name] = gemm_rate(device, dtypes[name]).data()
        watch.phase(f"kernels in {name}")
        dist.barrier()
        result["kernels"][name] = kernel_samples(device, name)
    if identity.world_size > 1:
        result["links"] = test_links(identity, device, store, watch)
        result["exchanges"] = _exchanges(reaches(hosts), identity, device, watch)
    return result


def _exchanges(found: Sequence[Reach], identity: Identity, device: torch.device, watch: Watch) -> list[Any]:
    """Seconds of all-to-alls in two sizes within each reach; those inside hosts run at the same time."""
    groups = [dist.new_group(list(reach.ranks), timeout=timedelta(seconds=600)) for reach in found]
    measured = []
    for inside in (True, False):
        watch.phase("all-to-all inside hosts" if inside else "all-to-all over all hosts", waits=True)
        dist.barrier()
        for reach, group in zip(found, groups, strict=True):
            if reach.inside is inside and identity.rank in reach.ranks:
                measured.append({"inside": inside, "ranks": list(reach.ranks), "points": _points(group, device)})
    return measured


def _points(group: dist.ProcessGroup, device: torch.device) -> list[tuple[int, float]]:
    """(bytes to each rank, median seconds) of exchanges of a row, and of two larger sizes that are agreed on."""
    size = dist.get_world_size(group)
    row_bytes = _ROW * _ACTIVATIONS[device.type].itemsize
    some = max(1, (1 << 16) // row_bytes)
    begin = time.perf_counter()
    _exchange(_rows(some * size, device), size, group)
    rate = torch.tensor([some * row_bytes / (time.perf_counter() - begin)], device=device)
    dist.all_reduce(rate, op=dist.ReduceOp.MIN, group=group)
    most = min(_MOST[device.type], max(4 * row_bytes, float(rate) * _AIM_S))
    found = []
    for number in (1, int(most / row_bytes / 4), int(most / row_bytes)):
        rows = _rows(number * size, device)
        seconds = []
        for turn in range(_REPEATS + 1):
            dist.barrier(group)
            _synchronise(device)
            begin = time.perf_counter()
            _exchange(rows, size, group)
            if turn:
                seconds.append(time.perf_counter() - begin)
        found.append((number * row_bytes, float(np.median(seconds))))
    return found


def _rows(number: int, device: torch.device) -> Rows:
    """Tokens of one choice each."""
    x_NH = torch.zeros((number, _ROW), dtype=_ACTIVATIONS[device.type], device=device)
    slot_NK = torch.zeros((number, 1), dtype=torch.int32, device=device)
    return Rows(x_NH, slot_NK, torch.ones((number, 1), device=device))


def _exchange(rows: Rows, size: int, group: dist.ProcessGroup) -> None:
    """As many rows to every rank, gathered, packed and opened as a dispatch does it."""
    name: ActivationName = "fp32" if rows.x_NH.dtype == torch.float32 else "bf16"
    turn_N = torch.arange(len(rows), device=rows.x_NH.device)
    sent = Rows(rows.x_NH[turn_N], rows.slot_NK[turn_N], rows.weight_NK[turn_N])
    parts = [len(rows) // size] * size
    raw = all_to_all(sent.packed(name), parts, parts, group)
    Rows.unpacked(raw, name, _ROW, 1, rows.x_NH.dtype)
    _synchronise(rows.x_NH.device)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_of(job: Job, identity: Identity) -> dict[str, Any]:
    """Device and memory of a rank, before it meets the others."""
    name, device_id = describe(job, identity)
    found: dict[str, Any] = {"device": name, "device_id": device_id}
    if job.device == "cuda":
        found["memory_bytes"] = int(torch.cuda.get_device_properties(identity.local_rank).total_memory)
    else:
        found["memory_bytes"] = _host_memory()
    return found


def _host_memory() -> int:
    with open("/proc/meminfo", encoding="ascii") as file:  # noqa: PTH123 - one line of a kernel file
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("MemTotal"))
