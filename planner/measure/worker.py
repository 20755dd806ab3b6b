"""What every rank runs, whoever started it: smoke, join, links, the plan, the baselines, the result."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.distributed as dist

from planner import __version__
from planner.cost.grid import Grid
from planner.cost.instance import Instance
from planner.cost.wires import wires_of
from planner.errors import BadAnswerError, MissingEnvironmentError, PlannerError
from planner.inputs.topology import resolve
from planner.inputs.units import format_bytes
from planner.measure import store as stores
from planner.measure.clock import Clock
from planner.measure.coordinate import failure_record
from planner.measure.devices import high_water
from planner.measure.exchange import Lane
from planner.measure.groups import Groups, make_groups
from planner.measure.job import Identity, Job
from planner.measure.micro_run import MicroRun
from planner.measure.pairs import test_links
from planner.measure.probing import device_of, probe_rank
from planner.measure.replay import RecordedWindow, replayed
from planner.measure.seats import Seat, Seating
from planner.measure.shape import Shape, emulated_shape, real_shape
from planner.measure.smoke import smoke_test
from planner.measure.summary import summary
from planner.measure.watch import Watch
from planner.plan.decision import cuts_of, placement_of, split_of
from planner.plan.placement import Placement
from planner.plan.plan import Plan, read_plan

_SAMPLE: Final = 16
"""Tokens of each layer that are computed again where sizes are real."""
_BLAME_S: Final = 60.0
"""Time for the coordinator to find out who is to blame for a failure."""
_MARGIN_S: Final = 60.0
"""Exchanges time out later than the coordinator, which can say who is to blame."""


@dataclass(frozen=True)
class Task:
    """Plan and job of a rank, read once."""

    job: Job
    plan: Plan
    instance: Instance
    """Without windows: a rank reads the routing itself, and prices nothing."""

    @property
    def trace_paths(self) -> tuple[Path, ...]:
        """The traces that are replayed."""
        if self.job.traces is not None:
            return self.job.traces
        return tuple(self.job.plan_path.parent / record.path for record in self.plan.inputs.traces)


def read_task(job: Job) -> Task:
    """Read the plan."""
    plan = read_plan(job.plan_path)
    inputs = plan.inputs
    topology = resolve(inputs.topology, inputs.gpus)
    return Task(job, plan, Instance(inputs.model, topology, inputs.workload, inputs.cost, None))


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
        task = None if job.probes else read_task(job)
        smoke = device_of(job, identity) if job.probes else smoke_test(job, identity)
        store = stores.connect(meeting, job.join_timeout_s, str(identity))
        hello = {
            "host": identity.host,
            "versions": {"ep-plan": __version__, "torch": torch.__version__, "python": platform.python_version()},
            "files": {} if task is None else _hashes(task),
            "device": smoke["device"],
            "device_id": smoke["device_id"],
        }
        watch = Watch(stores.connect(meeting, job.join_timeout_s, str(identity)), identity, serves=serves)
        if task is not None:
            _check_size(identity, task)
        stores.put(store, f"hello/{identity.rank}", hello)
        watch.start()
        _wait_for(store, "go", job.join_timeout_s + _MARGIN_S)
        _join_group(job, identity, meeting, store, watch)
        rank = None if task is None else _Rank(task, identity, store, watch)
        result = probe_rank(job, identity, store, watch) if rank is None else rank.run()
        dist.barrier()
        dist.destroy_process_group()
        watch.phase("waiting for the others", waits=True)
        stores.put(store, f"result/{identity.rank}", {**result, "smoke": smoke, "host": identity.host})
        _wait_for(store, "end", job.timeout_s + _MARGIN_S)
        code = int(stores.read(store, "end")["exit_code"])
        watch.stop()
        if not serves:
            store.add("left", 1)
        return code
    except Exception as error:  # noqa: BLE001 - whatever it is, the others must hear of it
        return _tell(error, identity, store, watch, serves=serves)


def _join_group(job: Job, identity: Identity, meeting: stores.Meeting, store: Any, watch: Watch) -> None:
    """The process group, over the interface by which the rendezvous is reached."""
    watch.phase("groups")
    interface = job.interface or stores.interface_of(stores.local_address(meeting))
    if interface is not None:
        os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = interface
    if job.device == "cuda":
        torch.cuda.set_device(identity.local_rank)
    dist.init_process_group(
        job.backend,
        store=dist.PrefixStore("ranks", store),
        rank=identity.rank,
        world_size=identity.world_size,
        timeout=timedelta(seconds=job.timeout_s + _MARGIN_S),
    )


def _tell(error: Exception, identity: Identity, store: Any, watch: Watch | None, *, serves: bool) -> int:
    phase = "smoke" if watch is None else str(watch)
    if not isinstance(error, PlannerError | RuntimeError):  # a bug: its traceback is wanted
        sys.excepthook(type(error), error, error.__traceback__)
    record = failure_record(str(identity), phase, error)
    if store is None:
        sys.stderr.write(f"error: {record['message']}\n")
    else:
        stores.put(store, f"failure/{identity.rank}", record)
        store.add("failures", 1)
        try:
            _wait_for(store, "abort", _BLAME_S)  # the coordinator says who is to blame
            if serves:
                time.sleep(_BLAME_S)  # and ends this process when the others have gone
            store.add("left", 1)
        except RuntimeError:
            sys.stderr.write(f"error: {record['message']}\n")
    sys.stderr.flush()
    code = error.exit_code if isinstance(error, PlannerError) else MissingEnvironmentError.exit_code
    os._exit(code)  # an exchange that broke off must not hold the process back


def _wait_for(store: Any, key: str, timeout_s: float) -> None:
    store.wait([key], timedelta(seconds=timeout_s))


def _check_size(identity: Identity, task: Task) -> None:
    wanted = Seating(task.plan, task.job.stage).world_size
    if identity.world_size != wanted:
        message = f"{identity}: join: {identity.world_size} ranks were started, the plan has {wanted} GPUs"
        raise MissingEnvironmentError(message, hint="one rank for each GPU: ep-plan validate --print-launch")


def _hashes(task: Task) -> dict[str, str]:
    paths = (task.job.plan_path, *task.trace_paths)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in paths}


class _Rank:
    """The part of a rank's life between `go` and its result."""

    def __init__(self, task: Task, identity: Identity, store: Any, watch: Watch) -> None:
        self.task, self.identity, self.store, self.watch = task, identity, store, watch
        self.job = task.job
        self.seating = Seating(task.plan, self.job.stage)
        self.seat: Seat = self.seating.seats[identity.rank]
        self.split = split_of(task.plan)
        self.device = torch.device("cuda", identity.local_rank) if self.job.device == "cuda" else torch.device("cpu")
        self.shape: Shape = (
            emulated_shape(task.instance, self.split, self.job.scale)
            if self.job.emulates
            else real_shape(task.instance, self.split)
        )

    def run(self) -> dict[str, Any]:
        """Links, plan, baselines."""
        result: dict[str, Any] = {"links": None, "runs": {}}
        if self.job.links:
            result["links"] = test_links(self.identity, self.device, self.store, self.watch)
        groups = make_groups(self.seating, self.seat, self.device)
        own = placement_of(self.task.plan)
        placements = {"plan": own, **{name: self._baseline(name, own) for name in self.job.against}}
        for name, placement in placements.items():
            result["runs"][name] = self._run_placement(name, placement, groups)
        return result

    def _baseline(self, name: str, own: Placement) -> Placement:
        """A placement that the coordinator made."""
        _wait_for(self.store, f"placement/{name}", self.job.timeout_s)
        rows = stores.read(self.store, f"placement/{name}")
        expert_LP = np.array(rows, dtype=np.int64)
        return Placement(own.layer_ids, expert_LP.shape[1] // self.split.ep, expert_LP)

    # --- one placement ----------------------------------------------------------------------------

    def _run_placement(self, name: str, placement: Placement, groups: Groups) -> dict[str, Any]:
        run = self._micro_run(placement, groups)
        if not self.job.emulates:
            self._allocate(run)
        run.clock.barriers = True
        found = run.new_found()
        timed = []
        windows = 0
        for number, window in enumerate(self._windows()):
            self.watch.window(f"{name}, window {number}")
            run.run_window(window, found)
            windows = number + 1
        counted = summary(run.clock, run.layers, per_window=run.split.micro_batches)
        if not self.job.emulates:
            timed = self._time(name, run, windows)
        return {
            "layers": list(run.layers),
            "served": {str(layer): counts.tolist() for layer, counts in found.served_LP.items()},
            "sent": {str(layer): counts.tolist() for layer, counts in found.sent_LV.items()},
            "worst": {
                str(layer): [worst.error, worst.allowed, worst.part, worst.token]
                for layer, worst in found.worst.items()
            },
            "sums": found.sums,
            "passes_s": found.passes_s,
            "counted": counted,
            "timed": timed,
            "high_water_bytes": self._high_water(),
            "windows": windows,
        }

    def _micro_run(self, placement: Placement, groups: Groups) -> MicroRun:
        plan, instance = self.task.plan, self.task.instance
        traced = plan.inputs.traced_layer_ids or instance.model.moe_layer_ids
        layers = tuple(layer for layer in traced if layer in cuts_of(plan)[self.seat.stage])
        grid = Grid(self.split, instance.topology, plan.stages[self.seat.stage].gpus)
        group = grid.every_group[self.seat.edp_rank * self.split.etp + self.seat.etp_rank]
        lane = None
        if groups.ep is not None:
            wires = wires_of(group, grid, instance.constants.communication.dedup)
            shape = self.shape
            lane = Lane(groups.ep, self.seat.ep_rank, wires, placement.slots_per_rank, shape.dispatch, shape.combine)
        return MicroRun(
            seat=self.seat,
            split=self.split,
            groups=groups,
            lane=lane,
            placement=placement,
            layers=layers,
            column_of={layer: column for column, layer in enumerate(traced)},
            shape=self.shape,
            device=self.device,
            clock=Clock(self.device, barriers=True, on_phase=self.watch.phase),
            on_layer=self.watch.layer,
            sample=None if self.job.emulates else _SAMPLE,
            num_levels=len(instance.topology.links),
            sequences=-(-instance.step_tokens // (self.split.dp * self.split.micro_batches)) + self.split.tp,
        )

    def _windows(self) -> Iterator[RecordedWindow]:
        return replayed(self.task.trace_paths, self.task.instance, self.split, emulates=self.job.emulates)

    def _time(self, name: str, run: MicroRun, windows: int) -> list[dict[str, Any]]:
        """The step's own number of tokens, phase by phase with barriers, then back to back."""
        chosen = timed_windows(windows, self.job.windows)
        tokens = max(run.split.stage_gpus, self.task.instance.step_tokens)
        timed = []
        for number, window in enumerate(self._windows()):
            if number not in chosen:
                continue
            step = window.cycled(tokens)
            self.watch.window(f"{name}, timing window {number}")
            run.run_window(step, None)  # warm-up
            run.clock.events.clear()
            for _ in range(self.job.repeats):
                run.run_window(step, None)
            phases = summary(run.clock, run.layers, per_window=None)
            run.clock.barriers = False
            whole = [run.run_window(step, None) for _ in range(self.job.repeats)]
            run.clock.barriers = True
            timed.append({"window": number, "phases": phases, "whole_s": whole})
        return timed

    # --- memory -----------------------------------------------------------------------------------

    def _allocate(self, run: MicroRun) -> None:
        """Weights and caches of all layers, and on a GPU the rest of what the plan books beside them."""
        booked = self.task.plan.predicted.memory_bytes[self.seat.gpu]
        try:
            for layer in run.layers:
                self.watch.phase("weights")
                self.watch.layer(layer)
                run.make_weights(layer)
            if self.device.type == "cuda":
                spare = booked - torch.cuda.memory_allocated(self.device) - self._working_bytes()
                if spare > 0:
                    self.ballast = torch.empty(spare, dtype=torch.uint8, device=self.device)
        except (torch.OutOfMemoryError, MemoryError) as error:
            reason = str(error).partition("\n")[0]
            message = f"{self.identity}: weights: the {format_bytes(booked)} that the plan books do not fit: {reason}"
            raise BadAnswerError(message, hint="the plan needs more memory than this device has free") from None

    def _working_bytes(self) -> int:
        """What the run takes as it goes, and what the driver has taken already."""
        lines = self.task.plan.predicted.memory[self.seat.stage]
        working = ("activations", "expert workspace", "logits", "runtime")
        return sum(line.bytes for line in lines if line.name.startswith(working))

    def _high_water(self) -> int:
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device))
        return high_water()


def timed_windows(windows: int, most: int) -> tuple[int, ...]:
    """Which of the windows are timed: at most so many, spread evenly."""
    count = min(windows, most)
    return tuple(int((index + 0.5) * windows / count) for index in range(count))
