"""What a rank does between joining and its result: links, the plan window by window, the baselines, the clock.

On a GPU it first allocates what the plan books, so that a plan that does not fit fails here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from planner.cost.grid import Grid
from planner.cost.instance import Instance
from planner.cost.sharing import Sharing
from planner.cost.wires import wires_of
from planner.errors import BadAnswerError
from planner.inputs.units import format_bytes
from planner.measure import store as stores
from planner.measure.clock import Clock
from planner.measure.devices import high_water, is_out_of_memory
from planner.measure.exchange import Lane
from planner.measure.groups import Groups, connect, make_groups
from planner.measure.job import Identity, Job
from planner.measure.micro_run import MicroRun
from planner.measure.pairs import test_links
from planner.measure.replay import RecordedWindow, replayed
from planner.measure.seats import Seat, Seating
from planner.measure.shape import Shape, emulated_shape, real_shape
from planner.measure.summary import summary
from planner.measure.watch import Watch
from planner.plan.decision import cuts_of, placement_of, split_of
from planner.plan.placement import Placement
from planner.plan.plan import MemoryRecord, Plan
from planner.plan.plan_file import read_plan

_SAMPLE: Final = 16
"""Tokens of each layer that are computed again where sizes are real."""


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
    topology = inputs.machine
    return Task(job, plan, Instance(inputs.model, topology, inputs.workload, inputs.cost, None))


class PlanRun:
    """The part of a rank's life between `go` and its result."""

    def __init__(self, task: Task, identity: Identity, store: Any, watch: Watch, free_bytes: int) -> None:
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
        self.ballast: torch.Tensor | None = None
        self.free_bytes = free_bytes
        """Of the device, before this rank took any."""

    def run(self) -> dict[str, Any]:
        """Links, plan, baselines."""
        result: dict[str, Any] = {"links": None, "runs": {}}
        if self.job.links:
            result["links"] = test_links(self.identity, self.device, self.store, self.watch)
        groups = make_groups(self.seating, self.seat, self.device)
        self.watch.phase("connections", waits=True)
        connect(groups, self.device)
        own = placement_of(self.task.plan)
        placements = {"plan": own, **{name: self._baseline(name, own) for name in self.job.against}}
        for name, placement in placements.items():
            result["runs"][name] = self._run_placement(name, placement, groups)
        return result

    def _baseline(self, name: str, own: Placement) -> Placement:
        """A placement that the coordinator made."""
        stores.wait_for(self.store, f"placement/{name}", self.job.timeout_s)
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
            found.end_window()
            windows = number + 1
        counted = summary(run.clock, run.layers, per_window=run.split.micro_batches)
        if not self.job.emulates:
            timed = self._time(name, run, windows)
        return {
            "layers": list(run.layers),
            "served": {str(layer): counts.tolist() for layer, counts in found.served_LP.items()},
            "served_windows": {str(layer): served_S for layer, served_S in found.windows_LS.items()},
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
            formats = (self.shape.dispatch, self.shape.combine)
            slots, order = placement.slots_per_rank, groups.ep_order
            lane = Lane(groups.ep, self.seat.ep_rank, wires, slots, *formats, order=order)
        return MicroRun(
            seat=self.seat,
            split=self.split,
            groups=groups,
            lane=lane,
            placement=placement,
            sharing=Sharing(instance.copy_rule(self.split), grid.node_R),
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
        self.ballast = None  # that of the placement before
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)  # the smoke test held more than a small plan does
        try:
            for layer in run.layers:
                self.watch.phase("weights")
                self.watch.layer(layer)
                run.make_weights(layer)
            if self.device.type == "cuda":
                now_free = int(torch.cuda.mem_get_info(self.device)[0])
                outside = self.free_bytes - now_free - torch.cuda.memory_reserved(self.device)
                lines = self.task.plan.predicted.memory[self.seat.stage]
                spare = ballast_bytes(booked, lines, torch.cuda.memory_allocated(self.device), outside)
                if spare > 0:
                    self.ballast = torch.empty(spare, dtype=torch.uint8, device=self.device)
        except (RuntimeError, MemoryError) as error:  # on CPUs torch has no class of its own for it
            if not is_out_of_memory(error):
                raise
            reason = str(error).partition("\n")[0]
            message = f"{self.identity}: weights: the {format_bytes(booked)} that the plan books do not fit: {reason}"
            raise BadAnswerError(message, hint="the plan needs more memory than this device has free") from None

    def _high_water(self) -> int:
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device))
        return high_water()


def ballast_bytes(booked: int, lines: Sequence[MemoryRecord], allocated: int, outside: int) -> int:
    """What is left to hold of the memory that a plan books.

    Args:
        booked: all of it, on one GPU.
        lines: what it is for.
        allocated: held as tensors.
        outside: held by libraries, whose buffers the plan books, too.
    """

    def booked_for(*names: str) -> int:
        return sum(line.bytes for line in lines if line.name.startswith(names))

    # what the run takes as it goes, and what the driver has taken already
    working = booked_for("activations", "expert workspace", "logits", "runtime")
    return booked - allocated - working - min(max(0, outside), booked_for("communication buffers"))


def timed_windows(windows: int, most: int) -> tuple[int, ...]:
    """Which of the windows are timed: at most so many, spread evenly."""
    count = min(windows, most)
    return tuple(int((index + 0.5) * windows / count) for index in range(count))
