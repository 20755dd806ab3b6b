"""`ep-plan probe`: ranks on this machine or a cluster, and the topology file that comes of what they measure."""

from __future__ import annotations

import os
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from planner import __version__
from planner.errors import MissingEnvironmentError, PlannerError, UsageError
from planner.measure import devices
from planner.measure import store as stores
from planner.measure.coordinate import Coordinator
from planner.measure.drawn import Machine
from planner.measure.job import Identity, Job
from planner.measure.local import run_locally
from planner.measure.machine import link_findings
from planner.measure.reported import reported_findings
from planner.measure.worker import work
from planner.processes import available_cores


def probe_here(job: Job, ranks: int | None) -> Machine:
    """Measure this machine: all its GPUs, or one rank for each core.

    Raises:
        MissingEnvironmentError: there is no GPU, or ranks would have to share cores.
    """
    if job.device == "cuda":
        import torch  # noqa: PLC0415 - after `require_torch`

        have = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not have:
            hint = "to measure this machine's CPU: --device cpu"
            raise MissingEnvironmentError("this machine has no GPU that torch can use", hint=hint)
        if ranks is not None and ranks > have:
            raise UsageError(f"--ranks {ranks}: this machine has {have} GPUs")
        count = ranks or have
    else:
        count = ranks or available_cores()
        devices.check_cores(count)
    _, results = run_locally(job, count, lambda _: None)
    return Machine(results, job.device, __version__)


def probe_as_rank(job: Job, identity: Identity, meeting: stores.Meeting) -> tuple[int, Machine | None]:
    """Be one rank of a probe that a launcher started; rank 0 gets the machine."""
    where = stores.address_of(meeting, str(identity))
    if identity.rank:
        return work(job, identity, where), None
    store = stores.serve(stores.listening(where, str(identity)))
    follower = Coordinator(store, identity.world_size, job.timeout_s, job.join_timeout_s, where)
    outcome: list[Machine] = []

    def done(_: Sequence[Any], results: list[dict[str, Any]]) -> int:
        outcome.append(Machine(results, job.device, __version__))
        return 0

    return follow_and_work(job, identity, where, follower, done), outcome[0]


def follow_and_work(
    job: Job,
    identity: Identity,
    meeting: stores.Meeting,
    follower: Coordinator,
    done: Callable[[Sequence[Any], list[dict[str, Any]]], int],
) -> int:
    """Be rank 0, and in a thread beside it follow all ranks.

    Args:
        job: what the ranks do.
        identity: rank 0.
        meeting: where the store is, which lives in this process.
        follower: follows the ranks.
        done: makes something of what they said and found; gives their exit code.
    """

    def follow() -> None:
        try:
            hellos = follower.admit()
            follower.dismiss(done(hellos, follower.results()))
            follower.linger(follower.timeout_s)
        except PlannerError as error:
            os.write(2, f"{error}\n".encode())
            follower.given_up(error)
            follower.linger()
            os._exit(error.exit_code)  # the main thread may wait for a rank that is gone
        except BaseException:  # noqa: BLE001 - a bug must not leave the ranks waiting
            traceback.print_exc()
            stores.put(follower.store, "abort", {"exit_code": 1})
            follower.linger()
            os._exit(1)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    code = work(job, identity, meeting, serves=True)
    thread.join()
    return code


def findings(machine: Machine) -> tuple[str, ...]:
    """Slow links, and those that the driver says run below their width, with rank and host."""
    slow = link_findings(machine.links, machine.hosts)
    return (*(finding.message for finding in slow), *reported_findings(machine.results))
