"""Which ranks may begin together, whom a failure is put down to, and what may pass the store."""

from __future__ import annotations

import pickle
import signal
import sys
from typing import Any

import pytest

torch = pytest.importorskip("torch", minversion="2.10")

from torch.distributed.elastic.multiprocessing import SignalException  # noqa: E402

from planner.errors import BadAnswerError, InputError, MissingEnvironmentError, Place, PlannerError, Problem  # noqa: E402
from planner.measure import store as stores  # noqa: E402
from planner.measure import worker  # noqa: E402
from planner.measure.coordinate import Coordinator, disagreement, failure_record, misplacement  # noqa: E402
from planner.measure.job import Identity  # noqa: E402
from planner.measure.local import _died, _Signals  # noqa: E402

VERSIONS = {"ep-plan": "1", "torch": "2.13.0", "python": "3.12"}
FILES = {"plan.json": "aa", "trace.npz (file 1)": "bb"}


def hello(host: str, device_id: str | None = None, **changed: Any) -> dict[str, Any]:
    said = {"host": host, "versions": VERSIONS, "files": FILES, "device": "H100", "device_id": device_id}
    return said | changed


def words(problem: PlannerError | None) -> str:
    assert problem is not None
    assert problem.exit_code == 7
    return problem.problems[0].message


# --- who may begin --------------------------------------------------------------------------------


def test_ranks_that_fit_together_begin() -> None:
    hellos = [hello("a", "gpu-1"), hello("a", "gpu-2"), hello("b", "gpu-1"), hello("b", "gpu-2")]
    assert disagreement(hellos) is None
    assert misplacement(hellos, [0, 0, 1, 1]) is None
    assert misplacement(hellos[::2], None) is None


def test_two_ranks_on_one_gpu() -> None:
    found = disagreement([hello("a", "gpu-1"), hello("b", "gpu-1"), hello("b", "gpu-1")])
    assert words(found) == "rank 2 (b): join: has the same GPU as rank 1: H100"


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"versions": VERSIONS | {"torch": "2.11.0"}}, "rank 1 (b): join: runs torch 2.11.0, rank 0 (a) 2.13.0"),
        ({"files": FILES | {"plan.json": "cc"}}, "rank 1 (b): join: reads plan.json cc, rank 0 (a) aa"),
        ({"files": FILES | {"other.npz": "cc"}}, "rank 1 (b): join: reads other.npz cc, rank 0 (a) (not there)"),
    ],
)
def test_other_versions_and_files(changed: dict[str, Any], expected: str) -> None:
    assert words(disagreement([hello("a"), hello("b", **changed)])) == expected


def test_a_file_that_only_rank_0_reads() -> None:
    found = disagreement([hello("a", files=FILES | {"more.npz": "dd"}), hello("b")])
    assert words(found) == "rank 1 (b): join: reads more.npz (not there), rank 0 (a) dd"


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        ("abab", "rank 1 (b): join: belongs to node 0 of the plan, as rank 0 does, which is on a"),
        ("aaab", "rank 3 (b): join: belongs to node 1 of the plan, as rank 2 does, which is on a"),
        ("aaaa", "rank 0: join: host a has the ranks of nodes 0, 1 of the plan"),
    ],
)
def test_hosts_in_another_place_than_the_plan_says(hosts: str, expected: str) -> None:
    assert words(misplacement([hello(host) for host in hosts], [0, 0, 1, 1])) == expected


# --- whose fault ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "by_others"),
    [
        (RuntimeError("[pair.cc:538] Connection closed by peer [127.0.0.1]:1"), True),
        (torch.distributed.DistBackendError("NCCL error: remote process exited"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 byte"), False),
        (torch.OutOfMemoryError("CUDA out of memory."), False),
        (torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered", 214), False),
        (KeyError("a bug"), False),
    ],
)
def test_a_broken_exchange_is_the_fault_of_others_and_a_broken_device_is_not(error: Exception, by_others: bool) -> None:
    record = failure_record("rank 1 (b)", "combine of layer 3", error)
    assert record["by_others"] is by_others
    assert record["message"].startswith("rank 1 (b): combine of layer 3: ")


def test_problems_of_files_keep_their_place() -> None:
    problem = Problem("unknown key 'x'", Place("plan.json", 3, 4), "leave it out")
    record = failure_record("rank 1 (b)", "smoke", InputError(problem))
    assert record["message"] == "rank 1 (b): smoke: plan.json:3:4: unknown key 'x'"
    assert record["hint"] == "leave it out"
    assert failure_record("rank 1 (b)", "weights", BadAnswerError("too much"))["bad_answer"] is True


@pytest.fixture
def store() -> Any:
    return stores.serve(stores.listening(stores.Meeting("127.0.0.1", 0), "test"))


def test_the_one_with_a_fault_of_its_own_is_named_and_all_are_told_to_end(store: Any) -> None:
    victim = failure_record("rank 0 (a)", "combine", RuntimeError("Connection closed by peer"))
    culprit = failure_record("rank 2 (b)", "weights", BadAnswerError("does not fit", hint="less"))
    for rank, record in ((0, victim), (2, culprit)):
        stores.put(store, f"failure/{rank}", record)
        store.add("failures", 1)
    with pytest.raises(BadAnswerError) as raised:
        Coordinator(store, 3, 5.0, 5.0, stores.Meeting("a", 1)).admit()
    assert raised.value.problems[0].message == "rank 2 (b): weights: does not fit"
    assert stores.read(store, "abort") == {"exit_code": 6}


# --- what passes the store ------------------------------------------------------------------------


class Loud:
    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("a pickled object was opened",)


def test_pickled_objects_are_refused_unopened(store: Any) -> None:
    store.set("hello/0", pickle.dumps(Loud()))
    with pytest.raises(MissingEnvironmentError, match="something else than JSON under 'hello/0'"):
        Coordinator(store, 1, 5.0, 5.0, stores.Meeting("a", 1)).admit()


class Gone:
    """A store whose process has ended."""

    def set(self, *_: object) -> None:
        raise RuntimeError("Broken pipe\nand a long trace")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("Connection closed by peer"), "lost the store that holds the run together (Broken pipe)"),
        (MissingEnvironmentError("cannot read the trace"), "cannot read the trace"),
    ],
)
def test_a_rank_that_fails_without_a_store_says_why_itself(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os._exit", sys.exit)
    with pytest.raises(SystemExit) as ended:
        worker._tell(error, Identity(1, 4, 1, "a"), Gone(), None, serves=False)
    assert ended.value.code == 7
    assert capsys.readouterr().err == f"error: rank 1 (a): smoke: {said}\n"


def test_a_signal_is_not_forgotten_whose_exception_was_lost() -> None:
    signals = _Signals()
    with pytest.raises(SignalException):
        signals(signal.SIGINT, None)  # while a process forks, Python prints and drops what a handler raises
    with pytest.raises(SignalException) as again:
        _died(None, signals)  # the next look at the ranks
    assert again.value.sigval == signal.SIGINT
