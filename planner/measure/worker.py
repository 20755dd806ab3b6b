"""What every rank runs, whoever started it: smoke, join, links, the plan, the baselines, the result."""

from __future__ import annotations

import os
import platform
import sys
import time
from datetime import timedelta
from typing import Any, Final

import torch
import torch.distributed as dist

from planner import __version__
from planner.errors import MissingEnvironmentError, PlannerError
from planner.files import sha256_of
from planner.measure import store as stores
from planner.measure.coordinate import failure_record
from planner.measure.job import Identity, Job
from planner.measure.plan_run import PlanRun, Task, read_task
from planner.measure.probing import device_of, probe_rank
from planner.measure.reported import Reported, read_reported
from planner.measure.seats import Seating
from planner.measure.smoke import smoke_test
from planner.measure.watch import Watch, lost_store

_BLAME_S: Final = 60.0
"""Time for the coordinator to find out who is to blame for a failure."""
_MARGIN_S: Final = 60.0
"""Exchanges time out later than the coordinator, which can say who is to blame."""
_NCCL: Final = {
    # a rank that its own watchdog ends, because another died, says nothing and looks as dead; here the store ends it
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
    # sends between two ranks share the one communicator, as is wanted: no warning from every rank
    "TORCH_NCCL_SHOW_EAGER_INIT_P2P_SERIALIZATION_WARNING": "0",
}
_LAST_WORD_S: Final = 10.0
"""Time to reach the store for a rank that fails before it joins."""


def work(job: Job, identity: Identity, meeting: stores.Meeting, *, serves: bool = False) -> int:
    """Be one rank to the end.

    Args:
        job: what to do.
        identity: which rank.
        meeting: where the store is.
        serves: it lives in this process, another thread of which ends it.

    Returns:
        The exit code; after a failure the process ends here, having told the others.
    """
    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
    watch: Watch | None = None
    store = None
    try:
        task, smoke, hello = _alone(job, identity)
    except Exception as error:  # noqa: BLE001 - whatever it is, the others must hear of it
        return _tell(error, identity, _reached(meeting, identity), None, serves=serves)
    try:
        store = stores.connect(meeting, job.join_timeout_s, str(identity))
        watch = Watch(stores.connect(meeting, job.join_timeout_s, str(identity)), identity, serves=serves)
        if task is not None:
            _check_size(identity, task)
        stores.put(store, f"hello/{identity.rank}", hello)
        watch.start()
        stores.wait_for(store, "go", job.join_timeout_s + _MARGIN_S)
        _join_group(job, identity, meeting, store, watch)
        if task is None:
            result = probe_rank(job, identity, store, watch)
        else:
            result = PlanRun(task, identity, store, watch, smoke["free_bytes"]).run()
        dist.barrier()
        dist.destroy_process_group()
        watch.phase("reading what the driver reports")
        said = Reported() if job.emulates else read_reported(smoke["device_id"])  # now: an idle GPU slows its link
        link = {"reported": said.data(), "interface": _interface(job)}
        watch.phase("waiting for the others", waits=True)
        stores.put(store, f"result/{identity.rank}", {**result, **link, "smoke": smoke, "host": identity.host})
        return _dismissed(job, store, watch, serves=serves)
    except Exception as error:  # noqa: BLE001 - whatever it is, the others must hear of it
        return _tell(error, identity, store, watch, serves=serves)


def _alone(job: Job, identity: Identity) -> tuple[Task | None, dict[str, Any], dict[str, Any]]:
    """What a rank does by itself: read the plan, test its device, and what it will say of them when it joins."""
    task = None if job.probes else read_task(job)
    smoke = device_of(job, identity) if job.probes else smoke_test(job, identity)
    hello = {
        "host": identity.host,
        "versions": {"ep-plan": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "files": {} if task is None else _hashes(task),
        "device": smoke["device"],
        "device_id": smoke["device_id"],
    }
    return task, smoke, hello


def _reached(meeting: stores.Meeting, identity: Identity) -> Any:
    """The store, for a rank that has failed before it joined; None if nobody answers."""
    try:
        return stores.connect(meeting, _LAST_WORD_S, str(identity))
    except MissingEnvironmentError:
        return None


def _dismissed(job: Job, store: Any, watch: Watch, *, serves: bool) -> int:
    """Wait until the coordinator has what it needs; the exit code that it gives."""
    stores.wait_for(store, "end", job.timeout_s + _MARGIN_S)
    code = int(stores.read(store, "end")["exit_code"])
    watch.stop()
    if not serves:
        store.add("left", 1)
    return code


def _join_group(job: Job, identity: Identity, meeting: stores.Meeting, store: Any, watch: Watch) -> None:
    """The process group, over the interface by which the rendezvous is reached."""
    watch.phase("groups")
    _choose_interface(job, meeting)
    device = None
    if job.device == "cuda":
        # bound to its GPU: barriers would else guess it from the rank, which is wrong where hosts differ
        device = torch.device("cuda", identity.local_rank)
        torch.cuda.set_device(device)
        os.environ.update(_NCCL)
    dist.init_process_group(
        job.backend,
        store=dist.PrefixStore("ranks", store),
        rank=identity.rank,
        world_size=identity.world_size,
        timeout=timedelta(seconds=job.timeout_s + _MARGIN_S),
        device_id=device,
    )


def _choose_interface(job: Job, meeting: stores.Meeting) -> None:
    """The interface that was asked for; else what the environment says; else the one that reaches the rendezvous."""
    interface = job.interface or stores.interface_of(stores.local_address(meeting))
    if interface is None:
        return
    # NCCL takes a name for a prefix unless "=" stands before it: eth1 would also be eth10
    for name, value in (("GLOO_SOCKET_IFNAME", interface), ("NCCL_SOCKET_IFNAME", f"={interface}")):
        if job.interface is not None or name not in os.environ:
            os.environ[name] = value


def _interface(job: Job) -> str | None:
    """The network interface that the library was told to use."""
    name = os.environ.get("NCCL_SOCKET_IFNAME" if job.device == "cuda" else "GLOO_SOCKET_IFNAME")
    return None if name is None else name.removeprefix("=")


def _tell(error: Exception, identity: Identity, store: Any, watch: Watch | None, *, serves: bool) -> int:
    phase = "smoke" if watch is None else str(watch)
    if not isinstance(error, PlannerError | RuntimeError):  # a bug: its traceback is wanted
        sys.excepthook(type(error), error, error.__traceback__)
    record = failure_record(str(identity), phase, error)
    code = error.exit_code if isinstance(error, PlannerError) else MissingEnvironmentError.exit_code
    if store is None:
        sys.stderr.write(f"error: {record['message']}\n")
    else:
        try:
            stores.put(store, f"failure/{identity.rank}", record)
            store.add("failures", 1)
            stores.wait_for(store, "abort", _BLAME_S)  # the coordinator says who is to blame
            if serves:
                time.sleep(_BLAME_S)  # and ends this process when the others have gone
            code = int(stores.read(store, "abort")["exit_code"])
            store.add("left", 1)
        except RuntimeError as gone:  # nobody is left to judge
            lost = f"{identity}: {phase}: {lost_store(gone)}"
            sys.stderr.write(f"error: {lost if record['by_others'] else record['message']}\n")
    sys.stderr.flush()
    os._exit(code)  # an exchange that broke off must not hold the process back


def _check_size(identity: Identity, task: Task) -> None:
    wanted = Seating(task.plan, task.job.stage).world_size
    if identity.world_size != wanted:
        message = f"{identity}: join: {identity.world_size} ranks were started, the plan has {wanted} GPUs"
        raise MissingEnvironmentError(message, hint="one rank for each GPU: ep-plan validate --print-launch")


def _hashes(task: Task) -> dict[str, str]:
    """Hash of every file that this rank reads, in order: traces of several folders may have one name."""
    found = {}
    for number, path in enumerate((task.job.plan_path, *task.trace_paths)):
        try:
            found[f"{path.name} (file {number})" if number else path.name] = sha256_of(path)[:16]
        except OSError as error:
            hint = "the plan and its traces must be readable under the same paths on every host"
            raise MissingEnvironmentError(f"cannot read {path}: {error.strerror or error}", hint=hint) from None
    return found
