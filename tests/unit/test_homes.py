"""Choices counted by the rank that their tokens start on, against a loop over the tokens as they are replayed."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from multiprocessing import current_process
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from planner.capacity.jobs import run_all
from planner.errors import MissingEnvironmentError
from planner.measure.replay import recorded_windows
from planner.processes import available_cores, spare_cores
from planner.solve.watch import NoWatch
from planner.trace import homes
from planner.trace.homes import Spread, Wanted
from planner.trace.native import read_trace
from planner.trace.trace import Trace
from planner.trace.windows import Windows, cut, of_layers, of_steps, subset

EXPERTS, LAYERS, TOP_K = 7, 3, 3
WANTED: Wanted = ((0, np.array([1, 4])), (2, np.arange(EXPERTS)))
SPREADS = [Spread(ep=4, etp=1), Spread(ep=3, etp=2), Spread(ep=1, etp=1)]


def plain(traces: Sequence[Trace], spread: Spread, wanted: Wanted, copies: int = 2) -> list[list[Any]]:
    """[window, expert, home] for each wanted layer, token by token, over a stage of `copies` expert grids."""
    gpus = spread.ep * spread.etp * copies
    found: list[list[Any]] = [[] for _ in wanted]
    for window in recorded_windows(traces, "decode", 40):
        for number, (row, expert_C) in enumerate(wanted):
            counts = [[0] * spread.ep for _ in expert_C]
            for token, chosen in enumerate(window.ids_TLK[:, row].tolist()):
                home = token % gpus // spread.etp % spread.ep
                for expert in chosen:
                    if expert in expert_C.tolist():
                        counts[expert_C.tolist().index(expert)][home] += 1
            found[number].append(counts)
    return found


def counted(windows: Windows, spread: Spread, wanted: Wanted) -> list[list[Any]]:
    assert windows.homes is not None
    return [counts_SCR.tolist() for counts_SCR in windows.homes.counts(spread, wanted)]


def made(folder: Path, kind: str, seed: int = 0, compress: bool = False) -> Trace:
    """A trace of 500 tokens, or of counts."""
    rng = np.random.default_rng(seed)
    path = folder / f"{kind}-{seed}-{compress}.npz"
    if kind == "counts":
        counts = rng.integers(0, 30, (5, LAYERS, EXPERTS))
        counts[1, 0] = [90, 0, 0, 0, 1, 0, 0]  # one expert in nearly every token
        np.savez(path, counts=counts, num_experts=EXPERTS, topk=TOP_K)
        return read_trace(path).trace
    ids = rng.random((500, LAYERS, EXPERTS)).argsort(axis=2)[..., :TOP_K]
    ids[rng.random(ids.shape) < 0.05] = -1
    extra: dict[str, NDArray[np.int64]] = {}
    if kind == "sequences":
        extra = {"seq_id": rng.integers(0, 30, 500)}
    if kind == "steps":
        extra = {"step_id": rng.integers(0, 9, 500)}
    save = np.savez_compressed if compress else np.savez
    save(path, expert_ids=ids.astype(np.int16), num_experts=EXPERTS, **extra)  # type: ignore[arg-type]
    return read_trace(path).trace


@pytest.mark.parametrize("spread", SPREADS, ids=str)
@pytest.mark.parametrize("kinds", [["order"], ["sequences"], ["steps"], ["counts"], ["steps", "counts", "order"]])
def test_choices_by_home_are_those_of_the_replayed_tokens(tmp_path: Path, kinds: list[str], spread: Spread) -> None:
    traces = [made(tmp_path, kind) for kind in kinds]
    assert counted(cut(traces, "decode", 40), spread, WANTED) == plain(traces, spread, WANTED)


def test_long_traces_are_counted_in_ranges_and_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planner.trace.aggregate._RANGE_CHOICES", 100 * LAYERS * TOP_K)
    monkeypatch.setattr("planner.trace.npz.CHUNK_BYTES", 64 * LAYERS * TOP_K * 2)
    monkeypatch.setattr(homes, "_BLOCK", 70)
    monkeypatch.setattr(homes, "_PASS_COUNTS", 10)
    monkeypatch.setattr(homes, "spare_cores", lambda: 1)
    for compress in (False, True):
        traces = [made(tmp_path, "sequences", compress=compress)]
        assert counted(cut(traces, "decode", 40), SPREADS[0], WANTED) == plain(traces, SPREADS[0], WANTED)


def test_other_processes_count_ranges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planner.trace.aggregate._RANGE_CHOICES", 100 * LAYERS * TOP_K)
    monkeypatch.setattr(homes, "spare_cores", lambda: 2)
    traces = [made(tmp_path, "steps")]
    assert counted(cut(traces, "decode", 40), SPREADS[1], WANTED) == plain(traces, SPREADS[1], WANTED)


def _in_worker(windows: Windows) -> tuple[str, list[list[Any]]]:
    return current_process().name, counted(windows, SPREADS[0], WANTED)


def test_a_worker_counts_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of joblib cannot start others."""
    monkeypatch.setattr("planner.capacity.jobs.available_cores", lambda: 2)
    traces = [made(tmp_path, "steps")]
    windows = cut(traces, "decode", 40)
    answers = run_all(_in_worker, [windows, windows], NoWatch())
    assert all(name != "MainProcess" and found == plain(traces, SPREADS[0], WANTED) for name, found in answers)
    monkeypatch.setattr("multiprocessing.parent_process", lambda: None)
    assert spare_cores() == available_cores()
    monkeypatch.setattr("multiprocessing.parent_process", current_process)
    assert spare_cores() == 1


def test_some_windows_in_any_order_and_some_layers(tmp_path: Path) -> None:
    traces = [made(tmp_path, "steps"), made(tmp_path, "counts"), made(tmp_path, "steps", seed=1)]
    windows = cut(traces, "decode", 40)
    every = plain(traces, SPREADS[0], WANTED)
    for keep in ([3, 2, 20], [10, 11], [22, 0, 12], list(range(windows.num_windows))[::-1]):
        half = subset(windows, keep)
        assert counted(half, SPREADS[0], WANTED) == [[layer[window] for window in keep] for layer in every]
        assert counted(subset(half, [1]), SPREADS[0], WANTED) == [[layer[keep[1]]] for layer in every]
    turned = of_layers(windows, [2, 1])
    assert counted(turned, SPREADS[0], [(0, np.arange(EXPERTS))]) == every[1:]


def test_joined_windows_are_not_counted(tmp_path: Path) -> None:
    windows = cut([made(tmp_path, "steps")], "decode", 40)
    assert of_steps(windows, 50) is windows
    assert of_steps(windows, 250).homes is None


def test_what_was_counted_last_is_kept_but_not_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    windows = cut([made(tmp_path, "steps")], "decode", 40)
    first = counted(windows, SPREADS[0], WANTED)
    again = pickle.loads(pickle.dumps(windows))
    monkeypatch.setattr(homes, "window_of_token", None)  # the trace would have to be cut again
    assert counted(windows, SPREADS[0], WANTED) == first
    with pytest.raises(TypeError):
        counted(windows, SPREADS[0], WANTED[:1])
    monkeypatch.undo()
    assert counted(again, SPREADS[0], WANTED) == first
    assert counted(again, SPREADS[1], WANTED) != first


def test_a_trace_that_is_gone(tmp_path: Path) -> None:
    trace = made(tmp_path, "order")
    windows = cut([trace], "decode", 40)
    trace.path.unlink()
    with pytest.raises(MissingEnvironmentError, match=r"order-0-False\.npz: gone"):
        counted(windows, SPREADS[0], WANTED)
