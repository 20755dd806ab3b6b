"""Cutting traces into windows: nothing is lost, the imitated batch is right, limits hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planner.errors import InputError
from planner.inputs.workload import Phase
from planner.trace import npz
from planner.trace.batches import MAX_WINDOWS, running_batch
from planner.trace.native import read_trace
from planner.trace.trace import Trace
from planner.trace.windows import TokenSets, Windows, cut, of_steps, subset
from tests import building

EXPERTS, TOP_K, LAYERS = 6, 2, 2
ON_DISK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def trace(tmp_path: Path, tokens: int, *, name: str = "trace.npz", seed: int = 0, **more: Any) -> Trace:
    """A trace in which every token chooses two different experts in each of two layers."""
    rng = np.random.default_rng(seed)
    ids = rng.random((tokens, LAYERS, EXPERTS)).argsort(axis=2)[:, :, :TOP_K]
    path = tmp_path / name
    np.savez(path, **{"expert_ids": ids, "num_experts": EXPERTS, **more})
    return read_trace(path).trace


def sets_counted(windows: Windows) -> list[list[list[int]]]:
    """Choices per window, layer and expert according to the kept token sets."""
    assert windows.sets is not None
    counts = np.zeros_like(windows.counts_SLE)
    for window, experts_LK in zip(windows.sets.window_N.tolist(), windows.sets.experts_NLK.tolist(), strict=True):
        for layer, experts in enumerate(experts_LK):
            for expert in experts:
                counts[window, layer, expert] += 1
    made: list[list[list[int]]] = counts.tolist()
    return made


@ON_DISK
@given(
    tokens=st.integers(1, 400), step=st.integers(1, 300), phase=st.sampled_from(["decode", "prefill"]), data=st.data()
)
def test_cutting_loses_nothing(tmp_path: Path, tokens: int, step: int, phase: Any, data: st.DataObject) -> None:
    more: dict[str, Any] = {}
    if data.draw(st.booleans(), "with sequences"):
        lengths = data.draw(st.lists(st.integers(1, 30), min_size=1, max_size=40))
        more["seq_id"] = np.resize(np.repeat(np.arange(len(lengths)), lengths), tokens)
    windows = cut([trace(tmp_path, tokens, **more)], phase, step)
    assert windows.tokens_S.sum() == tokens
    assert (windows.tokens_S > 0).all()
    assert (windows.counts_SLE.sum(axis=2) == TOP_K * windows.tokens_S[:, None]).all()
    assert (windows.choices_SL == TOP_K).all()
    assert windows.num_windows <= min(MAX_WINDOWS, tokens)
    assert sets_counted(windows) == windows.counts_SLE.tolist()  # so few tokens are all kept


@pytest.mark.parametrize(
    ("tokens", "step", "count"),
    [
        (320, 20, 16),  # 320 / 20
        (320, 10, 32),
        (320, 2, 64),  # at most 64
        (320, 100_000, 16),  # at least 16 where the trace allows
        (5, 100_000, 5),
        (1, 1, 1),
    ],
)
def test_how_many_windows(tmp_path: Path, tokens: int, step: int, count: int) -> None:
    windows = cut([trace(tmp_path, tokens)], "decode", step)
    assert windows.num_windows == count
    assert windows.tokens_S.max() - windows.tokens_S.min() <= 1


def test_without_sequences_windows_follow_the_file(tmp_path: Path) -> None:
    ids = np.repeat(np.arange(16) % EXPERTS, 3)[:, None, None]
    windows = cut([trace(tmp_path, 48, expert_ids=ids)], "prefill", 3)
    assert windows.counts_SLE.argmax(axis=2)[:, 0].tolist() == [window % EXPERTS for window in range(16)]
    assert (windows.counts_SLE.max(axis=2) == 3).all()


def test_the_running_batch_refills_its_slots() -> None:
    # 17 sequences share ceil(17 / 16) = 2 slots. Lengths 3, 1, 2, 2, then ones.
    lengths = [3, 1, 2, 2] + [1] * 13
    step_T, slots = running_batch(np.repeat(np.arange(17), lengths), None, 1000)
    assert slots == 2
    # slot A: 0 0 0 | 3 3 | ...   sequence 0 in steps 0-2, then 3 in steps 3-4
    # slot B: 1 | 2 2 | 4 4'...   sequence 1 in step 0, 2 in steps 1-2, then 4 in step 3, 5 in step 4
    assert step_T[:10].tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 3, 4]
    assert np.bincount(step_T).max() == 2


def test_the_running_batch_is_no_larger_than_the_step() -> None:
    step_T, slots = running_batch(np.repeat(np.arange(64), 2), None, 3)
    assert slots == 3  # ceil(64 / 16) = 4 would fit in a larger step
    assert np.bincount(step_T).max() == 3


def test_tokens_of_a_sequence_run_in_order_of_position() -> None:
    seq_id = np.array([7, 7, 7, 2, 2])
    pos = np.array([30, 10, 20, 5, 4])
    assert running_batch(seq_id, pos, 100)[0].tolist() == [2, 0, 1, 4, 3]
    assert running_batch(seq_id, None, 100)[0].tolist() == [0, 1, 2, 3, 4]


def test_prefill_never_cuts_a_sequence(tmp_path: Path) -> None:
    lengths = np.random.default_rng(3).integers(1, 40, 60)
    seq_id = np.repeat(np.arange(60), lengths)
    tokens = len(seq_id)
    # Each token chooses the expert of its sequence: a window's counts are sums of whole sequences.
    ids = (seq_id % EXPERTS)[:, None, None]
    windows = cut([trace(tmp_path, tokens, expert_ids=ids, seq_id=seq_id)], "prefill", tokens // 20)
    ends, total = set(np.cumsum(lengths).tolist()), np.cumsum(windows.tokens_S).tolist()
    assert set(total) <= ends
    decode = cut([trace(tmp_path, tokens, expert_ids=ids, seq_id=seq_id)], "decode", tokens // 20)
    assert decode.counts_SLE.tolist() != windows.counts_SLE.tolist()


def test_drift_along_the_trace_stays_visible(tmp_path: Path) -> None:
    # 80 sequences of 10 tokens: the first half chooses expert 0, the second half expert 1.
    seq_id = np.repeat(np.arange(80), 10)
    ids = (seq_id >= 40).astype(int)[:, None, None]
    for phase in get_args(Phase):
        counts = cut([trace(tmp_path, 800, expert_ids=ids, seq_id=seq_id)], phase, 40).counts_SLE[:, 0]
        assert (counts[: len(counts) // 2, 1] == 0).all()
        assert (counts[(len(counts) + 1) // 2 :, 0] == 0).all()


def test_recorded_steps_are_taken_as_they_stand(tmp_path: Path) -> None:
    step_id = np.array([900] * 5 + [100] * 2 + [500] * 3)
    windows = cut([trace(tmp_path, 10, step_id=step_id, seq_id=np.arange(10))], "decode", 1)
    assert windows.tokens_S.tolist() == [2, 3, 5]
    assert windows.how == "3 engine steps as recorded"


def test_steps_too_many_to_count_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planner.trace.windows.LIMIT_COUNTS", 10 * LAYERS * EXPERTS)
    made = trace(tmp_path, 11, step_id=np.arange(11))
    with pytest.raises(InputError, match="11 windows x 2 layers x 6 experts are too many to count"):
        cut([made], "decode", 1)
    assert cut([trace(tmp_path, 10, step_id=np.arange(10))], "decode", 1).num_windows == 10


def test_choices_of_no_expert_lower_the_choices_per_token(tmp_path: Path) -> None:
    ids = np.array([[[0, 1]], [[2, -1]], [[-1, -1]], [[3, 4]]])
    windows = cut([trace(tmp_path, 4, expert_ids=ids, step_id=np.zeros(4, int))], "decode", 4)
    assert windows.counts_SLE[0, 0].tolist() == [1, 1, 1, 1, 1, 0]
    assert windows.choices_SL.tolist() == [[5 / 4]]


def test_large_traces_are_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = trace(tmp_path, 333, seq_id=np.arange(333) // 7)
    whole = cut([made], "decode", 20)
    monkeypatch.setattr(npz, "CHUNK_BYTES", 10 * LAYERS * TOP_K * 8)  # ten tokens
    pieces = cut([made], "decode", 20)
    assert pieces.counts_SLE.tolist() == whole.counts_SLE.tolist()
    assert sets_counted(pieces) == sets_counted(whole)


def test_an_even_share_of_every_window_is_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planner.trace.windows.SAMPLED_TOKENS", 100)
    windows = cut([trace(tmp_path, 1000)], "decode", 50)
    assert windows.sets is not None
    # 20 windows of 50 tokens, one token in ten of each
    assert np.bincount(windows.sets.window_N).tolist() == [5] * 20
    assert (np.diff(windows.sets.window_N) >= 0).all()


# --- counts, several traces, subsets ------------------------------------------------------------------


def count_trace(tmp_path: Path, counts: Any, names: list[str], file: str = "counts.npz") -> Trace:
    """A trace of counts only."""
    np.savez(tmp_path / file, counts=np.array(counts), num_experts=EXPERTS, topk=TOP_K, scenario_names=names)
    return read_trace(tmp_path / file).trace


def test_counts_are_windows_already(tmp_path: Path) -> None:
    counts = np.arange(1, 25).reshape(2, 2, 6)
    windows = cut([count_trace(tmp_path, counts, ["day", "night"])], "decode", 1)
    assert windows.counts_SLE.tolist() == counts.tolist()
    assert windows.names_S == ("day", "night")
    assert windows.tokens_S.tolist() == [21 // 2, 93 // 2]  # 1+...+6 = 21, 13+...+18 = 93
    assert windows.sets is None


def test_several_traces_stand_one_after_the_other(tmp_path: Path) -> None:
    first, second = trace(tmp_path, 40, name="a.npz"), trace(tmp_path, 80, name="b.npz", seed=1)
    windows = cut([first, second], "decode", 2)
    assert windows.tokens_S.sum() == 120
    assert windows.names_S[0] == "a.npz window 0"
    assert windows.names_S[-1].startswith("b.npz window ")
    assert sets_counted(windows) == windows.counts_SLE.tolist()


def test_traces_that_disagree_are_refused(tmp_path: Path) -> None:
    first = trace(tmp_path, 40, name="a.npz")
    for more in ({"num_experts": 7}, {"layer_ids": [1, 2]}):
        with pytest.raises(InputError, match="traces of one deployment must cover the same layers"):
            cut([first, trace(tmp_path, 40, name="b.npz", **more)], "decode", 2)


def test_the_layers_that_disagree_are_named(tmp_path: Path) -> None:
    first = trace(tmp_path, 40, name="a.npz")
    with pytest.raises(InputError, match=r"2 layers \(1, 2\), but .*a\.npz has .* 2 layers \(0, 1\)"):
        cut([first, trace(tmp_path, 40, name="b.npz", layer_ids=[1, 2])], "decode", 2)


def test_sets_are_kept_only_if_every_trace_has_tokens(tmp_path: Path) -> None:
    counts = count_trace(tmp_path, np.ones((1, 2, 6), int), ["x"])
    windows = cut([trace(tmp_path, 40), counts], "decode", 2)
    assert windows.sets is None
    assert windows.num_windows == 20 + 1


def test_a_subset_keeps_its_windows_whole(tmp_path: Path) -> None:
    windows = cut([trace(tmp_path, 160)], "decode", 10)
    part = subset(windows, [5, 2, 9])
    assert part.counts_SLE.tolist() == windows.counts_SLE[[5, 2, 9]].tolist()
    assert part.tokens_S.tolist() == windows.tokens_S[[5, 2, 9]].tolist()
    assert part.names_S == ("window 5", "window 2", "window 9")
    assert sets_counted(part) == part.counts_SLE.tolist()
    assert part.sets is not None
    assert (np.diff(part.sets.window_N) >= 0).all()


def test_windows_shorter_than_a_step_are_joined() -> None:
    counts = np.arange(1, 6)[:, None, None] * np.ones((5, 2, 4), dtype=np.int64)
    short = replace(
        building.counted(counts, [3, 4], top_k=1),
        tokens_S=np.array([4, 8, 12, 16, 20]),
        choices_SL=np.array([[1.0, 1.0], [0.5, 1.0], [1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]),
        sets=TokenSets(np.array([0, 1, 1, 3, 4], dtype=np.int32), np.zeros((5, 2, 1), dtype=np.int32)),
    )
    assert of_steps(short, 24) is short  # half a step each, give or take
    joined = of_steps(short, 30)  # two steps: the middle of the fourth window is in the second one
    assert joined.tokens_S.tolist() == [24, 36]
    assert joined.counts_SLE[:, 0, 0].tolist() == [1 + 2 + 3, 4 + 5]
    assert joined.choices_SL[0].tolist() == pytest.approx([(4 + 4 + 12) / 24, 1])
    assert joined.sets is not None
    assert joined.sets.window_N.tolist() == [0, 0, 0, 1, 1]
    assert of_steps(short, 1000).tokens_S.tolist() == [60]
