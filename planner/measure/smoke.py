"""Smoke: each rank alone, before it meets the others: is the device there, is memory free, how fast is it?"""

from __future__ import annotations

from typing import Any

import torch

from planner.measure.devices import describe, free_memory
from planner.measure.job import Identity, Job
from planner.measure.rates import gemm_rate, memory_rate


def smoke_test(job: Job, identity: Identity) -> dict[str, Any]:
    """Device, free memory, GEMM rate and memory bandwidth of a rank, as plain data.

    In an emulation rates mean nothing and are left out.

    Raises:
        MissingEnvironmentError: the device is not there.
    """
    name, device_id = describe(job, identity)
    found: dict[str, Any] = {"device": name, "device_id": device_id, "free_bytes": free_memory(), "rates": None}
    if job.device == "cuda":
        torch.cuda.set_device(identity.local_rank)
        found["free_bytes"] = int(torch.cuda.mem_get_info(identity.local_rank)[0])
    if not job.emulates:
        device = torch.device("cuda", identity.local_rank) if job.device == "cuda" else torch.device("cpu")
        dtype = torch.bfloat16 if job.device == "cuda" else torch.float32
        found["rates"] = {
            "gemm_flop_per_s": gemm_rate(device, dtype).data(),
            "memory_bytes_per_s": memory_rate(device).data(),
        }
        if job.device == "cuda":
            torch.cuda.empty_cache()
    return found
