"""Which rank a process is, as torchrun, Slurm, an MPI launcher or a Kubernetes job says it."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Final

from planner.errors import MissingEnvironmentError, UsageError
from planner.measure.job import Identity

# (who, rank, world size, rank on this host): the first launcher all of whose variables are there counts.
LAUNCHERS: Final = (
    ("torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("MPICH or Intel MPI", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
    ("srun", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
)


def host_name() -> str:
    """This host as it can stand in a message and a file: the kernel takes any bytes for a name."""
    raw = os.fsencode(socket.gethostname()).decode("utf-8", "backslashreplace")
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in raw)


def identity_from(environment: Mapping[str, str] = os.environ) -> Identity:
    """Read rank, size and local rank.

    Raises:
        UsageError: no launcher has set them.
        MissingEnvironmentError: they are no sensible numbers.
    """
    for who, *names in LAUNCHERS:
        if all(name in environment for name in names):
            values = [environment[name] for name in names]
            if not all(value.isdecimal() for value in values):
                stated = ", ".join(f"{name}={value!r}" for name, value in zip(names, values, strict=True))
                raise MissingEnvironmentError(f"{who} says {stated}: whole numbers are needed")
            rank, size, local = map(int, values)
            if rank >= size or local > rank:
                raise MissingEnvironmentError(f"{who} says rank {rank} of {size}, {local} on this host: this cannot be")
            return Identity(rank, size, local, host_name())
    known = "; ".join(f"{who}: {', '.join(names)}" for who, *names in LAUNCHERS)
    hint = f"start it with torchrun, srun or mpirun (ep-plan validate --print-launch), or set\n{known}"
    raise UsageError("--worker, but no launcher says which rank this is", hint=hint)
