"""`ep-plan validate` from the plan file to its validation: who runs what, and what comes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from torch.distributed import TCPStore

from planner import __version__
from planner.baselines import placements, weights_of
from planner.check import cost_of, structure
from planner.cost.instance import Instance
from planner.cost.prepare import from_plan
from planner.cost.step import SplitCost, stage_of_layers
from planner.cost.wires import sent_copies_GV
from planner.errors import BadAnswerError, UsageError
from planner.files import sha256_of
from planner.inputs.precision import WEIGHTS
from planner.measure import devices, verdict
from planner.measure import store as stores
from planner.measure.coordinate import Coordinator, Hello
from planner.measure.document import Nodes, OutputsRecord, RankRecord, RunRecord, Validation
from planner.measure.gathered import Gathered
from planner.measure.job import Identity, Job
from planner.measure.local import run_locally
from planner.measure.machine import MachineFinding
from planner.measure.plan_run import timed_windows
from planner.measure.probe import follow_and_work
from planner.measure.replay import replayed, serving_slots
from planner.measure.seats import Seating
from planner.measure.shape import emulated_shape, real_shape
from planner.measure.verdict import Evidence
from planner.measure.worker import work
from planner.plan.decision import cuts_of, placement_of
from planner.plan.placement import Placement
from planner.plan.plan import Plan
from planner.plan.plan_file import read_plan
from planner.trace.homes import Spread

Ints = NDArray[np.int64]

_TOLERATED: Final = ("slots of a rank", "slot order", "no expert twice on a rank")
"""Rules that a map may break and still run: what comes of it is then measured."""
_SHOWS: Final = {
    "cuda": "real sizes on the plan's GPUs; experts, exchange and attention of MoE layers, not the whole model",
    "cpu": "real sizes on CPU cores in the place of GPUs; experts, exchange and attention of MoE layers",
    "emulate": "which rank serves which token, that results are right, and what is sent where; no seconds, no memory",
}


@dataclass(frozen=True)
class Prepared:
    """A plan made ready to run and to judge."""

    job: Job
    plan: Plan
    cost: SplitCost
    seating: Seating
    placements: Mapping[str, Placement]
    warnings: tuple[str, ...]

    @property
    def instance(self) -> Instance:
        """Model, machine, work and routing."""
        return self.cost.instance

    @property
    def layers(self) -> tuple[int, ...]:
        """Hidden layers that are replayed."""
        return self.instance.traced_layer_ids

    def put_baselines(self, store: TCPStore) -> None:
        """Hand the maps of the baselines to the ranks."""
        for name in self.job.against:
            stores.put(store, f"placement/{name}", self.placements[name].expert_LP.tolist())


def prepare(job: Job) -> Prepared:
    """Read the plan and its routing, and refuse what cannot run.

    Raises:
        PlannerError: the plan is broken, a trace is missing or changed, a baseline does not apply.
    """
    plan = read_plan(job.plan_path)
    ready = from_plan(plan, job.plan_path, job.traces)
    broken = [finding for finding in structure(plan, ready.instance) if finding.rule not in _TOLERATED]
    if broken:
        lines = "\n".join(str(finding) for finding in broken[1:8])
        raise BadAnswerError(f"{job.plan_path}: {broken[0]}", hint=lines)
    cost = cost_of(plan, ready.instance)
    own = placement_of(plan)
    others = {}
    if job.against:
        windows = ready.instance.windows
        if windows is None:
            raise UsageError("--against needs routing: the plan was made without a trace", hint="give one with --trace")
        others = placements(cost, stage_of_layers(cost, cuts_of(plan)), weights_of(windows))
        missing = [name for name in job.against if name not in others]
        if missing:
            raise UsageError(f"--against {missing[0]}: does not apply to this plan", hint=f"known: {', '.join(others)}")
    chosen = {"plan": own, **{name: others[name] for name in job.against}}
    return Prepared(job, plan, cost, Seating(plan), chosen, ready.warnings)


def validate_here(job: Job) -> tuple[Validation, Prepared, list[dict[str, Any]]]:
    """Start all ranks on this machine and judge what they find.

    Raises:
        MissingEnvironmentError: GPUs, cores or memory are missing, or a rank failed.
    """
    ready = prepare(job)
    ranks = ready.seating.world_size
    nodes = len(set(ready.seating.node_G.tolist()))
    if job.device == "cuda":
        devices.check_gpus(ranks, nodes)
    elif job.device == "cpu":
        devices.check_cores(ranks)
        devices.check_room(ranks, _weight_bytes(ready), devices.free_memory(), emulated=False)
    else:
        at_once = min(ranks, job.most_ranks or ranks)
        devices.check_room(at_once, _emulated_bytes(ready), devices.free_memory(), emulated=True)
    if job.most_ranks is not None and ranks > job.most_ranks:
        hellos, results = _in_turns(ready, job.most_ranks)
    else:
        hellos, results = run_locally(job, ranks, ready.put_baselines)
    return judge(ready, hellos, results), ready, results


def _in_turns(ready: Prepared, most: int) -> tuple[list[Hello], list[dict[str, Any]]]:
    """Run the pipeline stages one after the other; what a stage gets from the one before is made up."""
    split = ready.cost.split
    if split.stage_gpus > most:
        message = f"--ranks {most}: the {split.stage_gpus} ranks of a stage exchange tokens, so they must run together"
        raise UsageError(message, hint=f"give at least --ranks {split.stage_gpus}; a larger --scale needs less memory")
    found: dict[int, tuple[Hello, dict[str, Any]]] = {}
    for stage in range(split.pp):
        part = Seating(ready.plan, stage)
        job = replace(ready.job, stage=stage)
        hellos, results = run_locally(job, part.world_size, ready.put_baselines)
        for gpu, hello, result in zip(part.gpus, hellos, results, strict=True):
            result["runs"] = {name: {**run, "sums": []} for name, run in result["runs"].items()}
            found[gpu] = (hello, result)
    return [found[gpu][0] for gpu in sorted(found)], [found[gpu][1] for gpu in sorted(found)]


def _weight_bytes(ready: Prepared) -> int:
    """Expert weights at real size, mean of the ranks: what they hold at least."""
    shape, split = real_shape(ready.instance, ready.cost.split), ready.cost.split
    elements = (3 if shape.gated else 2) * shape.expert_hidden * shape.expert_width
    slots = ready.cost.slots_per_rank * len(ready.layers) // split.pp
    return int(slots * elements * WEIGHTS[shape.experts].bits / 8)


def _emulated_bytes(ready: Prepared) -> int:
    """Tensors of one emulated rank at most: weights of its slots, and the rows of its largest window, in and out."""
    shape = emulated_shape(ready.instance, ready.cost.split, ready.job.scale)
    matrices = 3 if shape.gated else 2
    slots = ready.cost.slots_per_rank * len(ready.layers)
    weights = 4 * matrices * shape.expert_hidden * shape.expert_width * slots
    windows = ready.instance.windows
    tokens = 8 * ready.cost.split.stage_gpus if windows is None else int(windows.tokens_S.max())
    rows = tokens * ready.instance.model.moe.top_k // ready.cost.split.ep * 2
    return weights + rows * 4 * (4 * shape.expert_hidden + 4 * shape.expert_width)


def validate_as_rank(
    job: Job, identity: Identity, meeting: stores.Meeting
) -> tuple[int, Validation | None, Prepared | None, list[dict[str, Any]]]:
    """Be one rank of a run that a launcher started; rank 0 also serves the store and judges.

    Returns:
        The exit code of this rank, and on rank 0 the validation.
    """
    where = stores.address_of(meeting, str(identity))
    if identity.rank:
        return work(job, identity, where), None, None, []
    ready = prepare(job)
    store = stores.serve(stores.listening(where, str(identity)))
    ready.put_baselines(store)
    nodes = None if job.emulates else ready.seating.node_G.tolist()
    follower = Coordinator(store, identity.world_size, job.timeout_s, job.join_timeout_s, where, nodes)
    outcome: list[tuple[Validation, list[dict[str, Any]]]] = []

    def done(hellos: Sequence[Hello], results: list[dict[str, Any]]) -> int:
        outcome.append((judge(ready, hellos, results), results))
        return 0 if outcome[0][0].verdict == "pass" else BadAnswerError.exit_code

    code = follow_and_work(job, identity, where, follower, done)
    return code, outcome[0][0], ready, outcome[0][1]


# --- judging --------------------------------------------------------------------------------------


def judge(ready: Prepared, hellos: Sequence[Mapping[str, Any]], results: list[dict[str, Any]]) -> Validation:
    """Put everything together."""
    job, plan = ready.job, ready.plan
    windows = int(results[0]["runs"]["plan"]["windows"])
    timed = () if job.emulates else timed_windows(windows, job.windows)
    gathered = {
        name: Gathered(ready.seating, tuple(result["runs"][name] for result in results), ready.layers)
        for name in ready.placements
    }
    hosts = [result["host"] for result in results]
    cuts = cuts_of(plan)
    found = Evidence(
        job, plan, ready.cost, cuts, ready.placements, results, hosts, predicted_copies(ready), timed, gathered
    )
    counts, outputs = verdict.judge_counts(found), verdict.judge_outputs(found)
    levels, terms = verdict.judge_levels(found), verdict.judge_terms(found)
    runs, machine = verdict.placement_runs(found), verdict.judge_machine(found)
    decided, reasons = verdict.overall(found, counts, outputs, levels, terms, runs, machine)
    return Validation(
        version=__version__,
        plan=str(job.plan_path),
        plan_sha256=sha256_of(job.plan_path),
        verdict=decided,
        reasons=reasons,
        tolerance=job.tolerance,
        run=_run_record(found, ready, hellos),
        counts=counts,
        outputs=outputs,
        levels=levels,
        terms=terms,
        placements=runs,
        ranks=_ranks(ready, results),
        machine=tuple(finding.message for finding in machine),
        nodes=_nodes(hosts, machine, outputs),
    )


def _run_record(found: Evidence, ready: Prepared, hellos: Sequence[Mapping[str, Any]]) -> RunRecord:
    job = found.job
    return RunRecord(
        mode=job.device,
        backend=job.backend,
        ranks=len(found.results),
        hosts=tuple(found.hosts),
        devices=tuple(hello["device"] for hello in hellos),
        scale=emulated_shape(ready.instance, ready.cost.split, job.scale).scale if job.emulates else 1,
        windows=int(found.results[0]["runs"]["plan"]["windows"]),
        timed_windows=found.timed,
        repeats=0 if job.emulates else job.repeats,
        shows=_SHOWS[job.device],
    )


def _nodes(hosts: Sequence[str], machine: Sequence[MachineFinding], outputs: OutputsRecord) -> Nodes:
    """Hosts that something was found against, and the others."""
    failing = {host for finding in machine for host in finding.hosts}
    failing |= {host for host in hosts if any(f"({host})" in text for text in outputs.findings)}
    every = tuple(dict.fromkeys(hosts))
    return Nodes(
        passing=tuple(host for host in every if host not in failing),
        failing=tuple(host for host in every if host in failing),
    )


def predicted_copies(ready: Prepared) -> Ints:
    """Copies [L, G, V] that each rank must send over each level in each replayed layer, by map and trace alone."""
    instance, plan = ready.instance, ready.plan
    placement, cost = ready.placements["plan"], ready.cost
    shape = (len(ready.layers), ready.seating.world_size, len(instance.topology.links))
    total = np.zeros(shape, dtype=np.int64)
    if cost.split.ep == 1:
        return total
    dedup = instance.constants.communication.dedup
    stage_of = stage_of_layers(cost, cuts_of(plan))
    own = tuple(ready.job.plan_path.parent / record.path for record in plan.inputs.traces)
    paths = own if ready.job.traces is None else ready.job.traces
    spread = Spread(cost.split.ep, cost.split.etp)
    for window in replayed(paths, instance, cost.split, emulates=ready.job.emulates):
        home_T = spread.home(np.arange(window.num_tokens))
        for row, layer in enumerate(ready.layers):
            stage = stage_of[layer]
            expert_P = placement.expert_LP[placement.layer_ids.index(layer)]
            slot_TK = serving_slots(
                window.ids_TLK[:, row], expert_P, instance.model.moe.num_experts, stage.moe.sharing, home_T
            )
            sent_GV = sent_copies_GV(slot_TK, placement.slots_per_rank, stage.grid, dedup)
            total[row, list(stage.grid.gpus)] += sent_GV
    return total


def _ranks(ready: Prepared, results: Sequence[Mapping[str, Any]]) -> tuple[RankRecord, ...]:
    records = []
    for rank, result in enumerate(results):
        run, rates = result["runs"]["plan"], result["smoke"]["rates"]
        timed = [window["phases"] for window in run["timed"]] or [run["counted"]]
        phases = {
            phase: float(np.mean([sum(np.mean(e["busy_s"]) for e in t.get(phase, {}).values()) for t in timed]))
            for phase in timed[0]
        }
        wait_s = np.mean([sum(np.mean(e["wait_s"]) for layers in t.values() for e in layers.values()) for t in timed])
        records.append(
            RankRecord(
                rank=rank,
                host=result["host"],
                phases_s=phases,
                wait_s=float(wait_s),
                high_water_bytes=run["high_water_bytes"],
                booked_bytes=ready.plan.predicted.memory_bytes[rank],
                gemm_flop_per_s=None if rates is None else rates["gemm_flop_per_s"]["median"],
                memory_bytes_per_s=None if rates is None else rates["memory_bytes_per_s"]["median"],
            )
        )
    return tuple(records)
