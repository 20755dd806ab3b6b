"""Waits for all ranks and finds out which one is to blame when a run cannot go on.

A rank that fails puts a record into the store; one that dies or hangs cannot. The others then fail, too,
because their exchange breaks off, so the first record is not the cause. In this order a rank is blamed:
its process died without a word; it reported a fault of its own; it no longer beats; it stopped in work
of its own while others wait for it; else, the one that came least far.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch.distributed import TCPStore

from planner.errors import BadAnswerError, MissingEnvironmentError, PlannerError
from planner.measure import store as stores
from planner.measure.devices import is_out_of_memory
from planner.measure.watch import BEAT_S

_LOOK_S: Final = 0.1
_SETTLE_S: Final = 1.0
"""After the first failure: time for the others to tell theirs."""
_SILENT_S: Final = 12 * BEAT_S
"""A rank that has not beaten for so long is dead, or stopped."""

Hello = dict[str, Any]


@dataclass
class _Beat:
    """The last beat of a rank, and when it last said something new."""

    state: dict[str, Any] = field(default_factory=dict)
    heard: float = 0.0
    moved: float = 0.0


@dataclass
class Coordinator:
    """Follows a run from the store."""

    store: TCPStore
    world_size: int
    timeout_s: float
    join_timeout_s: float
    meeting: stores.Meeting
    nodes: Sequence[int] | None = None
    """The plan's node of each rank, which must be a host each; None: any host will do."""
    died: Callable[[], Mapping[int, int]] = dict
    """Exit codes of ranks whose processes ended with an error, where this process started them."""
    _beats: dict[int, _Beat] = field(default_factory=dict)

    # --- joining ----------------------------------------------------------------------------------

    def admit(self) -> list[Hello]:
        """Wait for every rank, and let them begin if they fit together.

        Raises:
            MissingEnvironmentError: a rank does not arrive, or versions, plans or devices do not fit.
        """
        end = time.monotonic() + self.join_timeout_s
        hellos: dict[int, Hello] = {}
        while len(hellos) < self.world_size:
            hellos |= self._arrived("hello", set(range(self.world_size)) - set(hellos))
            self._check_failures()
            if time.monotonic() > end and len(hellos) < self.world_size:
                raise self.given_up(self._missing(hellos))
            time.sleep(_LOOK_S)
        found = [hellos[rank] for rank in range(self.world_size)]
        problem = disagreement(found) or misplacement(found, self.nodes)
        if problem is not None:
            raise self.given_up(problem)
        stores.put(self.store, "go", {})
        return found

    def _missing(self, hellos: Mapping[int, Hello]) -> PlannerError:
        missing = [rank for rank in range(self.world_size) if rank not in hellos]
        hosts = sorted({hello["host"] for hello in hellos.values()})
        there = f"{len(hellos)} of {self.world_size} are there" + (f" (hosts {', '.join(hosts)})" if hosts else "")
        who = f"rank{'s' if len(missing) > 1 else ''} {_some(missing)}"
        message = f"{who}: join: never arrived at {self.meeting} within {self.join_timeout_s:.0f} s; {there}"
        return MissingEnvironmentError(message, hint="were all ranks started, and can their hosts reach that address?")

    def _arrived(self, kind: str, wanted: set[int]) -> dict[int, Any]:
        return {
            rank: stores.read(self.store, f"{kind}/{rank}")
            for rank in sorted(wanted)
            if stores.has(self.store, f"{kind}/{rank}")
        }

    # --- running ----------------------------------------------------------------------------------

    def results(self) -> list[dict[str, Any]]:
        """Wait for the result of every rank; raises what stopped the run."""
        results: dict[int, dict[str, Any]] = {}
        now = time.monotonic()
        self._beats = {rank: _Beat(heard=now, moved=now) for rank in range(self.world_size)}
        while len(results) < self.world_size:
            results |= self._arrived("result", set(range(self.world_size)) - set(results))
            self._check_failures()
            self._listen()
            self._check_progress(set(range(self.world_size)) - set(results))
            time.sleep(_LOOK_S)
        return [results[rank] for rank in range(self.world_size)]

    def dismiss(self, exit_code: int) -> None:
        """Everything is collected: ranks may end with this code."""
        stores.put(self.store, "end", {"exit_code": exit_code})

    def given_up(self, error: PlannerError) -> PlannerError:
        """Tell all ranks to end; returns the error."""
        stores.put(self.store, "abort", {"exit_code": error.exit_code})
        return error

    def linger(self, most_s: float = 2 * _SILENT_S) -> None:
        """Wait until the ranks have heard how the run ends: the store dies with this process."""
        end = time.monotonic() + most_s
        while time.monotonic() < end and self.store.add("left", 0) < self.world_size - 1:
            time.sleep(_LOOK_S)

    def _listen(self) -> None:
        now = time.monotonic()
        for rank, beat in self._beats.items():
            key = f"beat/{rank}"
            state = stores.read(self.store, key) if stores.has(self.store, key) else {}
            if state.get("beats") != beat.state.get("beats"):
                beat.heard = now
            if state.get("progress") != beat.state.get("progress"):
                beat.moved = now
            beat.state = state

    def _check_failures(self) -> None:
        if not self.died() and self.store.add("failures", 0) == 0:
            return
        end = time.monotonic() + _SETTLE_S
        while time.monotonic() < end or self._undecided():
            self._listen()
            time.sleep(_LOOK_S)
            if time.monotonic() > end + 2 * _SILENT_S:
                break
        raise self.given_up(self._blamed())

    def _failures(self) -> dict[int, Any]:
        return self._arrived("failure", set(range(self.world_size)))

    def _undecided(self) -> bool:
        """Whether only victims have spoken, and some rank has neither failed nor fallen silent yet."""
        failures, died = self._failures(), self.died()
        if any(not record["by_others"] for record in failures.values()) or set(died) - set(failures):
            return False
        return bool(self._beats) and not self._silent(set(self._beats) - set(failures))

    def _silent(self, ranks: set[int]) -> list[int]:
        now = time.monotonic()
        return [rank for rank in sorted(ranks) if now - self._beats[rank].heard > _SILENT_S]

    def _blamed(self) -> PlannerError:
        failures, died = self._failures(), self.died()
        unheard = sorted(set(died) - set(failures))
        if unheard:
            return MissingEnvironmentError(f"{self._who(unheard[0])}: {_ending(died[unheard[0]])}")
        own = [record for record in failures.values() if not record["by_others"]]
        if own:
            return _as_error(own[0])
        silent = self._silent(set(self._beats) - set(failures))
        if silent:
            return MissingEnvironmentError(f"{self._who(silent[0])}: no longer answers; the others lost it")
        return _as_error(next(iter(failures.values())))

    def _check_progress(self, busy: set[int]) -> None:
        now = time.monotonic()
        if not busy:
            return
        silent = self._silent(busy)
        if silent and now - self._beats[silent[0]].heard > min(self.timeout_s, 4 * _SILENT_S):
            message = f"{self._who(silent[0])}: no longer answers"
            raise self.given_up(MissingEnvironmentError(message, hint="its process or host is dead or stopped"))
        if any(now - self._beats[rank].moved <= self.timeout_s for rank in busy):
            return
        working = [rank for rank in sorted(busy) if not self._beats[rank].state.get("waits")]
        least = min(self._beats[rank].state.get("progress", 0) for rank in busy)
        behind = working or [rank for rank in sorted(busy) if self._beats[rank].state.get("progress", 0) == least]
        message = f"{self._who(behind[0])}: hangs: no progress within {self.timeout_s:.0f} s"
        if len(behind) > 1:
            message += f" (nor of ranks {_some(behind[1:])})"
        raise self.given_up(MissingEnvironmentError(message, hint="more time: --timeout"))

    def _who(self, rank: int) -> str:
        beat = self._beats.get(rank)
        state = beat.state if beat is not None and beat.state else None
        if state is None and stores.has(self.store, f"beat/{rank}"):
            state = stores.read(self.store, f"beat/{rank}")
        return f"rank {rank}: join" if state is None else f"rank {rank} ({state['host']}): {state['phase']}"


def failure_record(rank_name: str, phase: str, error: Exception) -> dict[str, Any]:
    """What a rank tells of its failure."""
    if isinstance(error, PlannerError):
        problem = error.problems[0]
        text = f"{problem.where}: {problem.message}" if problem.where else problem.message
        named = text if text.startswith("rank ") else f"{rank_name}: {phase}: {text}"
        bad = isinstance(error, BadAnswerError)
        return {"message": named, "hint": problem.hint, "bad_answer": bad, "by_others": False}
    first = str(error).partition("\n")[0] or type(error).__name__
    # an exchange that breaks off raises torch's RuntimeError family: somebody else went away
    own = isinstance(error, torch.AcceleratorError) or is_out_of_memory(error)
    by_others = isinstance(error, RuntimeError) and not own
    return {"message": f"{rank_name}: {phase}: {first}", "hint": "", "bad_answer": False, "by_others": by_others}


def _as_error(record: Mapping[str, Any]) -> PlannerError:
    kind = BadAnswerError if record["bad_answer"] else MissingEnvironmentError
    return kind(str(record["message"]), hint=str(record["hint"]))


def _ending(code: int) -> str:
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def disagreement(hellos: Sequence[Hello]) -> PlannerError | None:
    """Why these ranks cannot run together: other versions, another plan or trace, one GPU for two."""
    first = hellos[0]
    for rank, hello in enumerate(hellos):
        for key, what in (("versions", "runs"), ("files", "reads")):
            if hello[key] != first[key]:
                names = (*hello[key], *first[key])
                other = next(name for name in names if hello[key].get(name) != first[key].get(name))
                message = (
                    f"rank {rank} ({hello['host']}): join: {what} {other} {hello[key].get(other, '(not there)')}, "
                    f"rank 0 ({first['host']}) {first[key].get(other, '(not there)')}"
                )
                return MissingEnvironmentError(message, hint="all ranks need the same versions and the same files")
    seen: dict[tuple[str, str], int] = {}
    for rank, hello in enumerate(hellos):
        if hello["device_id"] is None:
            continue
        place = (hello["host"], hello["device_id"])
        if place in seen:
            message = f"rank {rank} ({hello['host']}): join: has the same GPU as rank {seen[place]}: {hello['device']}"
            return MissingEnvironmentError(message, hint="one rank for each GPU: see CUDA_VISIBLE_DEVICES, LOCAL_RANK")
        seen[place] = rank
    return None


def misplacement(hellos: Sequence[Hello], nodes: Sequence[int] | None) -> PlannerError | None:
    """Why the ranks do not sit as the plan says: a node of it must be one host, and another node another host."""
    if nodes is None:
        return None
    first_of: dict[int, int] = {}
    for rank, (hello, node) in enumerate(zip(hellos, nodes, strict=True)):
        first = first_of.setdefault(node, rank)
        if hello["host"] != hellos[first]["host"]:
            message = (
                f"rank {rank} ({hello['host']}): join: belongs to node {node} of the plan, as rank {first} does, "
                f"which is on {hellos[first]['host']}"
            )
            return MissingEnvironmentError(message, hint="start ranks node by node: ep-plan validate --print-launch")
    hosts = {node: hellos[rank]["host"] for node, rank in first_of.items()}
    for node, host in hosts.items():
        same = [other for other, where in hosts.items() if where == host]
        if len(same) > 1:
            message = f"host {host} has the ranks of nodes {_some(same)} of the plan"
            return MissingEnvironmentError(f"rank {first_of[node]}: join: {message}", hint="one host for each node")
    return None


def _some(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:8]))
    return shown + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
