"""Many plans at once: one process for each, on all cores, or on a Dask cluster that is there already.

A job carries everything it needs, so that a worker on another machine opens no file; but where the nearest copy serves,
it counts where tokens start, and needs traces of tokens under the same path.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from planner.cost.prepare import Prepared, from_deployment
from planner.errors import MissingEnvironmentError, UsageError
from planner.inputs.deployment import Deployment
from planner.plan.plan import Plan
from planner.processes import available_cores
from planner.solve.diagnosis import Short, in_short, infeasible
from planner.solve.request import search_space, solve_deployment
from planner.solve.solver import Solved
from planner.solve.watch import NoWatch, Watch
from planner.solve.workers import SMALL, Workers

Job = TypeVar("Job")
Answer = TypeVar("Answer")


def cores_for(size: int) -> int:
    """Processes worth starting for layers whose sizes (windows x slots x experts) add up to so much."""
    return available_cores() if size > SMALL else 1


@dataclass(frozen=True)
class PlanJob:
    """A deployment to plan, its traces read."""

    deployment: Deployment
    prepared: Prepared
    output: Path
    """Where the plan would lie: its traces are named relative to it."""


def job_of(deployment: Deployment, output: Path) -> PlanJob:
    """Read the traces of a deployment."""
    return PlanJob(deployment, from_deployment(deployment), output)


def plan_of(job: PlanJob, workers: Workers, watch: Watch) -> Plan:
    """The plan of a deployment, its time limit kept; raises `InfeasibleError` if there is none."""
    found = _solved(job, workers, watch)
    if found.plan is None:
        space, tried = search_space(job.deployment), found.solution.candidates
        raise infeasible(job.prepared.instance, space, tried, watch, workers.deadline)
    return found.plan


def plan_or_why(job: PlanJob) -> Plan | Short:
    """The plan of a deployment, made on one core; that nothing fits is an answer, too."""
    with Workers(cores=1) as workers:
        found = _solved(job, workers, NoWatch())
    if found.plan is None:
        return in_short(job.prepared.instance, search_space(job.deployment), found.solution.candidates)
    return found.plan


def _solved(job: PlanJob, workers: Workers, watch: Watch) -> Solved:
    """The search; a Ctrl-C ends all work, because figures of a plan that was cut short answer nothing."""
    limit_s = job.deployment.file.solve.time_limit
    workers.deadline = None if limit_s is None else time.monotonic() + limit_s
    found = solve_deployment(job.deployment, job.prepared, job.output, workers, watch)
    if found.plan is not None and found.plan.solver.stopped_by == "interrupt":
        raise KeyboardInterrupt
    return found


def plan_all(jobs: Sequence[PlanJob], watch: Watch, dask: str | None = None) -> list[Plan | Short]:
    """Plan all jobs; answers in their order; arguments and errors as of `run_all`."""
    watch.begin("planning", len(jobs))
    return run_all(plan_or_why, jobs, watch, dask)


def run_all(
    function: Callable[[Job], Answer], jobs: Sequence[Job], watch: Watch, dask: str | None = None
) -> list[Answer]:
    """Call a function for all jobs; answers in their order.

    Args:
        function: of some module, so that other processes find it.
        jobs: what it is called with.
        watch: told of every job that is done.
        dask: address of a Dask scheduler whose workers do it; default: the cores of this machine.

    Raises:
        MissingEnvironmentError: no Dask is installed here, or there is no scheduler at that address.
    """
    if dask is None and (len(jobs) < 2 or available_cores() == 1):
        return [_watched(function(job), watch) for job in jobs]
    from joblib import Parallel, delayed  # noqa: PLC0415  # only where there is work for it

    found: dict[int, Answer] = {}
    with _cluster(dask):
        processes = None if dask else min(available_cores(), len(jobs))
        parallel = Parallel(n_jobs=processes, return_as="generator_unordered", batch_size=1)
        for number, answer in parallel(delayed(_numbered)(function, number, job) for number, job in enumerate(jobs)):
            found[number] = _watched(answer, watch)
    return [found[number] for number in range(len(jobs))]


def _numbered(function: Callable[[Job], Answer], number: int, job: Job) -> tuple[int, Answer]:
    return number, function(job)


def _watched(answer: Answer, watch: Watch) -> Answer:
    watch.advance()
    return answer


@contextmanager
def _cluster(address: str | None) -> Iterator[None]:
    """Inside, joblib hands its work to the Dask scheduler at this address; None: to processes of its own."""
    if address is None:
        yield
        return
    try:
        from dask.distributed import Client  # noqa: PLC0415  # an extra
    except ImportError:
        hint = "pip install 'ep-plan[sweep]', here and on the workers"
        raise MissingEnvironmentError("--dask needs dask.distributed", hint=hint) from None
    from joblib import parallel_config  # noqa: PLC0415

    try:
        client = Client(address, timeout="10s")
    except ValueError as error:
        raise UsageError(f"--dask {address}: {error}", hint="such as tcp://10.0.0.1:8786") from None
    except OSError:
        hint = "start one with: dask scheduler, and dask worker ADDRESS on each machine"
        raise MissingEnvironmentError(f"no Dask scheduler answers at {address}", hint=hint) from None
    try:
        with parallel_config(backend="dask"):
            yield
    finally:
        client.close()
