"""Permuting files: every byte where it belongs, the original untouched, whatever stops the run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from planner.errors import InputError, MissingEnvironmentError, PlannerError, UsageError
from planner.export.checkpoint import progress, rewrite, shard
from planner.export.checkpoint.rewrite import Work, prepare
from planner.files import sha256_of
from planner.inputs.checkpoint import INDEX_NAME
from tests.cli.running import environment
from tests.unit.export import weights

ORDER = [[2, 3, 1, 0], [1, 0, 3, 2]]
SHARDS = [f"model-{number:05}-of-00003.safetensors" for number in (1, 2, 3)]


def work_of(
    folder: Path, config: dict[str, Any], order: list[list[int]], *, router_only: bool = False, **changes: Any
) -> Work:
    plan = folder.parent / "plan.json"
    plan.write_text("{}")
    return prepare(weights.layout(config, order, **changes), plan, folder, router_only=router_only)


@pytest.fixture
def original(tmp_path: Path) -> Path:
    """A DeepSeek checkpoint in three files."""
    folder = tmp_path / "weights"
    weights.write_checkpoint(folder, weights.DEEPSEEK, weights.deepseek())
    return folder


def deepseek_work(original: Path, **options: Any) -> Work:
    return work_of(original, weights.DEEPSEEK, ORDER, **options)


def all_tensors(folder: Path) -> weights.Tensors:
    found: weights.Tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= weights.read_file(path)
    return found


def test_single_experts_take_new_names(original: Path, tmp_path: Path) -> None:
    before, target = weights.files_of(original), tmp_path / "out"
    done = rewrite.rewrite(deepseek_work(original), target)
    old, new = all_tensors(original), all_tensors(target)
    assert old.keys() == new.keys()
    for row, layer in enumerate((1, 2)):
        block = f"model.layers.{layer}.mlp"
        for position, expert in enumerate(ORDER[row]):
            for part in ("gate_proj", "up_proj", "down_proj"):
                for kind in ("weight", "weight_scale_inv"):
                    assert (
                        new[f"{block}.experts.{position}.{part}.{kind}"]
                        == old[f"{block}.experts.{expert}.{part}.{kind}"]
                    )
            rows = {"gate.weight": 16, "gate.e_score_correction_bias": 4}
            for name, size in rows.items():
                raw, was = new[f"{block}.{name}"][2], old[f"{block}.{name}"][2]
                assert raw[position * size : (position + 1) * size] == was[expert * size : (expert + 1) * size]
    moved = {name for name in old if ".experts." in name or ".gate." in name}
    untouched = [name for name in old if name not in moved or "layers.3." in name]
    assert len(untouched) > 20  # the next-token layer among them
    assert all(new[name] == old[name] for name in untouched)
    index = json.loads((target / INDEX_NAME).read_text())
    for name, file in index["weight_map"].items():
        assert name in weights.read_file(target / file)
    assert index["metadata"] == json.loads((original / INDEX_NAME).read_text())["metadata"]
    assert {path.name for path in target.iterdir()} == {
        *SHARDS,
        INDEX_NAME,
        "config.json",
        "tokenizer.json",
        progress.NAME,
    }
    assert all(sha256_of(target / name) == digest for name, digest in done.sha256.items())
    assert weights.files_of(original) == before


def test_stacked_experts_move_by_rows(tmp_path: Path) -> None:
    """mxfp4 blocks, scales and biases: bytes of a row, whatever they mean."""
    folder, target, order = tmp_path / "weights", tmp_path / "out", [3, 1, 0, 2]
    weights.write_checkpoint(folder, weights.GPT_OSS, weights.gpt_oss(), shards=1)
    rewrite.rewrite(work_of(folder, weights.GPT_OSS, [order]), target)
    old, new = all_tensors(folder), all_tensors(target)
    assert new["lm_head.weight"] == old["lm_head.weight"]
    for name in old:
        if ".mlp." not in name:
            continue
        assert new[name][:2] == old[name][:2]
        size = len(old[name][2]) // weights.EXPERTS
        for position, expert in enumerate(order):
            assert (
                new[name][2][position * size : (position + 1) * size]
                == old[name][2][expert * size : (expert + 1) * size]
            )


def test_the_real_library_reads_it(original: Path, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors", reason="the library itself is not installed")
    rewrite.rewrite(deepseek_work(original), tmp_path / "out")
    seen = 0
    for path in (tmp_path / "out").glob("*.safetensors"):
        entries = safetensors.deserialize(path.read_bytes())
        seen += len(entries)
        ours = weights.read_file(path)
        for name, entry in entries:
            assert bytes(entry["data"]) == ours[name][2]
    assert seen == len(weights.deepseek())


def test_a_plan_that_changes_nothing_gives_the_same_tensors(original: Path, tmp_path: Path) -> None:
    work = work_of(original, weights.DEEPSEEK, [[0, 1, 2, 3]] * 2)
    assert (work.renamed, work.reordered) == (0, 0)
    rewrite.rewrite(work, tmp_path / "out")
    assert all_tensors(tmp_path / "out") == all_tensors(original)


def test_routers_alone(original: Path, tmp_path: Path) -> None:
    work = deepseek_work(original, router_only=True)
    assert (work.renamed, work.reordered, len(work.written)) == (0, 4, 4), "what is told is what is written"
    rewrite.rewrite(work, tmp_path / "out")
    found = all_tensors(tmp_path / "out")
    assert {name.rpartition(".mlp.")[2] for name in found} == {"gate.weight", "gate.e_score_correction_bias"}
    assert len(found) == 4
    whole = rewrite.rewrite(deepseek_work(original), tmp_path / "whole")
    assert whole.state == "finished"
    complete = all_tensors(tmp_path / "whole")
    assert all(complete[name] == tensor for name, tensor in found.items())


def test_memory_stays_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor of 24 MiB passes in pieces of 64 KiB."""
    monkeypatch.setattr(shard, "PIECE_BYTES", 1 << 16)
    folder, tensors = tmp_path / "weights", weights.gpt_oss()
    name = "model.layers.0.mlp.experts.gate_up_proj_blocks"
    tensors[name] = ("U8", [weights.EXPERTS, 6 << 20], bytes(weights.EXPERTS * (6 << 20)))
    weights.write_checkpoint(folder, weights.GPT_OSS, tensors, shards=1)
    del tensors
    work = work_of(folder, weights.GPT_OSS, [[3, 1, 0, 2]])
    tracemalloc.start()
    rewrite.rewrite(work, tmp_path / "out")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 << 20


# --- stopped and started again --------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
from planner.export.checkpoint import rewrite, shard
from tests.unit.export import test_checkpoint_files as here, weights
written = 0
original = shard._pieces
def pieces(*arguments):
    global written
    for piece in original(*arguments):
        written += 1
        if written == 40:
            os.kill(os.getpid(), signal.SIGKILL)
        yield piece
shard._pieces = pieces
rewrite.rewrite(here.deepseek_work(Path(sys.argv[1])), Path(sys.argv[2]))
"""


def test_a_killed_run_goes_on(original: Path, tmp_path: Path) -> None:
    before, target = weights.files_of(original), tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", KILLED, original, target], env=environment(), check=False)
    assert done.returncode == -signal.SIGKILL
    left = {path.name for path in target.iterdir()}
    assert SHARDS[0] in left
    assert SHARDS[1] not in left
    assert f".{SHARDS[1]}.part" in left
    first = (target / SHARDS[0]).stat()
    finished = rewrite.rewrite(deepseek_work(original), target)
    assert finished.state == "finished"
    again = (target / SHARDS[0]).stat()
    assert (again.st_ino, again.st_mtime_ns) == (first.st_ino, first.st_mtime_ns)  # not written a second time
    whole = tmp_path / "whole"
    rewrite.rewrite(deepseek_work(original), whole)
    assert weights.files_of(target) == weights.files_of(whole)
    assert weights.files_of(original) == before


def test_ctrl_c_says_how_far_it_came(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = shard.write_shard, []

    def stopped(*arguments: Any) -> str:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr("planner.export.checkpoint.rewrite.write_shard", stopped)
    with pytest.raises(KeyboardInterrupt, match="1 of 3 files are done, the same command goes on"):
        rewrite.rewrite(deepseek_work(original), tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {SHARDS[0], progress.NAME}
    assert rewrite.rewrite(deepseek_work(original), tmp_path / "out").state == "finished"


def test_a_finished_file_that_changed_is_written_anew(original: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    rewrite.rewrite(deepseek_work(original), target)
    good = weights.files_of(target)
    damaged = bytearray(good[SHARDS[1]])
    damaged[-1] ^= 1
    (target / SHARDS[1]).write_bytes(damaged)
    (target / SHARDS[2]).unlink()
    rewrite.rewrite(deepseek_work(original), target)
    assert weights.files_of(target) == good


FULL = """
import resource, sys
from pathlib import Path
from planner.export.checkpoint import rewrite
from tests.unit.export import test_checkpoint_files as here
work = here.deepseek_work(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
try:
    rewrite.rewrite(work, Path(sys.argv[2]))
except Exception as error:
    print(type(error).__name__, error)
"""


def test_a_full_disk_leaves_the_original_and_says_so(original: Path, tmp_path: Path) -> None:
    """No file may grow beyond what is there, as on a full disk."""
    assert all((original / name).stat().st_size > 3000 for name in SHARDS)
    before, target = weights.files_of(original), tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", FULL, original, target],
        env=environment(),
        check=True,
        capture_output=True,
        encoding="utf-8",
    )
    assert "MissingEnvironmentError" in done.stdout
    assert "File too large" in done.stdout
    assert "0 of 3 files are done" in done.stdout
    assert "the original is as it was" in done.stdout
    assert weights.files_of(original) == before
    assert {path.name for path in target.iterdir()} == {progress.NAME}
    assert rewrite.rewrite(deepseek_work(original), target).state == "finished"


def test_too_little_room_is_said_before_the_first_byte(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("planner.export.checkpoint.rewrite.shutil.disk_usage", lambda _: usage)
    with pytest.raises(MissingEnvironmentError, match="still to be written") as error:
        rewrite.rewrite(deepseek_work(original), tmp_path / "out")
    assert "the original is as it was" in error.value.problems[0].hint


def test_what_is_read_back_otherwise_is_no_success(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that returns other bytes than were written."""
    real = shard._verified

    def rotten(target: Path, *rest: Any) -> str:
        raw = bytearray(target.read_bytes())
        raw[-1] ^= 1
        target.write_bytes(raw)
        return real(target, *rest)

    monkeypatch.setattr(shard, "_verified", rotten)
    with pytest.raises(AssertionError, match="read back otherwise than written"):
        rewrite.rewrite(deepseek_work(original), tmp_path / "out")
    assert SHARDS[0] not in {path.name for path in (tmp_path / "out").iterdir()}


# --- where nothing may be written -----------------------------------------------------------------------


def refused(original: Path, output: Path, error: type[PlannerError], match: str) -> None:
    before = weights.files_of(original)
    with pytest.raises(error, match=match):
        rewrite.rewrite(deepseek_work(original), output)
    assert weights.files_of(original) == before


def test_never_into_the_source(original: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(original)
    for output in (original, original / "inside", link, link / "inside", original.parent, original / ".." / "weights"):
        refused(original, output, UsageError, "never written to")
    assert not (original / "inside").exists()


def test_never_over_anything(original: Path, tmp_path: Path) -> None:
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.write_text("x")
    folder.mkdir()
    (folder / "other").write_text("x")
    refused(original, file, UsageError, "a folder is needed")
    refused(original, folder, UsageError, "not empty")
    target = tmp_path / "out"
    rewrite.rewrite(deepseek_work(original), target)
    with pytest.raises(UsageError, match="another plan, or other weights"):
        rewrite.rewrite(work_of(original, weights.DEEPSEEK, [[0, 1, 2, 3], [1, 0, 3, 2]]), target)
    os.utime(original / SHARDS[0], ns=(1, 1))
    refused(original, target, UsageError, "another plan, or other weights")


def test_permuted_weights_are_not_permuted_again(original: Path, tmp_path: Path) -> None:
    """The second permutation would be applied to the first: the same model, but not the placement of the plan."""
    target = tmp_path / "out"
    rewrite.rewrite(deepseek_work(original), target)
    with pytest.raises(UsageError, match="permuted already"):
        deepseek_work(target)


def test_links_in_the_target_are_not_followed(original: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    work = deepseek_work(original)
    target.mkdir()
    progress.save(work.progress, target)
    (target / SHARDS[0]).symlink_to(original / SHARDS[0])
    (target / f".{SHARDS[0]}.part").symlink_to(original / SHARDS[1])
    before = weights.files_of(original)
    rewrite.rewrite(work, target)
    assert weights.files_of(original) == before
    assert not (target / SHARDS[0]).is_symlink()


@pytest.mark.parametrize("name", ["../plan.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..", "x.bin"])
def test_an_index_cannot_name_files_elsewhere(original: Path, name: str) -> None:
    index = json.loads((original / INDEX_NAME).read_text())
    index["weight_map"]["model.embed_tokens.weight"] = name
    (original / INDEX_NAME).write_text(json.dumps(index))
    with pytest.raises(InputError, match="is not allowed"):
        deepseek_work(original)


# --- what does not fit ----------------------------------------------------------------------------------


def problems(folder: Path, config: dict[str, Any] | None = None, **changes: Any) -> str:
    with pytest.raises(PlannerError) as error:
        work_of(folder, config or weights.DEEPSEEK, ORDER, **changes)
    return str(error.value)


def changed(tmp_path: Path, change: Callable[[weights.Tensors], object]) -> Path:
    tensors = weights.deepseek()
    change(tensors)
    folder = tmp_path / "changed"
    weights.write_checkpoint(folder, weights.DEEPSEEK, tensors)
    return folder


def test_plans_for_other_ends_are_refused(original: Path) -> None:
    told = problems(original, for_checkpoint=False)
    assert "not solved for a checkpoint" in told
    assert "target: checkpoint" in told
    assert "4 redundant experts" in problems(original, for_checkpoint=False, redundant_experts=4)


def test_a_plan_that_lies_about_its_target_is_refused(original: Path) -> None:
    with pytest.raises(InputError, match="layer 1: tears routing groups apart at group 0"):
        work_of(original, weights.DEEPSEEK, [[0, 2, 1, 3], [0, 1, 2, 3]])
    with pytest.raises(InputError, match="layer 2: no permutation of the experts"):
        work_of(original, weights.DEEPSEEK, [[0, 1, 2, 3], [0, 1, 2, 2]])


def test_unknown_families_are_refused_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    config = {**weights.GPT_OSS, "model_type": "minimax", "sliding_window": None, "layer_types": None}
    weights.write_checkpoint(folder, weights.GPT_OSS, weights.gpt_oss(), shards=1)
    of = weights.layout(weights.GPT_OSS, [[0, 1, 2, 3]])
    other = weights.layout(
        weights.GPT_OSS, [[0, 1, 2, 3]], model=of.model.model_copy(update={"family": config["model_type"]})
    )
    plan = tmp_path / "plan.json"
    plan.write_text("{}")
    with pytest.raises(UsageError, match="how minimax names its experts") as error:
        prepare(other, plan, folder, router_only=False)
    assert "mixtral" in error.value.problems[0].hint


def test_another_model_is_refused(original: Path) -> None:
    other = {**weights.DEEPSEEK, "n_group": 1, "hidden_size": 16}
    told = problems(original, other)
    assert "routing groups: 2, but the plan was made for 1" in told
    assert "hidden size: 8, but the plan was made for 16" in told


def test_quantisation_that_names_single_experts_is_refused(original: Path) -> None:
    section = {
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
        "modules_to_not_convert": ["lm_head", "model.layers.1.mlp.experts.3.up_proj"],
    }
    config = {**weights.DEEPSEEK, "quantization_config": section}
    (original / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"names single experts \(model.layers.1.mlp.experts.3.up_proj\)"):
        deepseek_work(original)


def test_incomplete_and_strange_checkpoints_are_refused(tmp_path: Path) -> None:
    block = "model.layers.1.mlp"
    cases: list[tuple[Callable[[weights.Tensors], object], str]] = [
        (lambda t: t.pop(f"{block}.experts.2.up_proj.weight"), "expert 2 lacks up_proj.weight"),
        (lambda t: t.pop(f"{block}.gate.weight"), "gate.weight is missing"),
        (lambda t: t.update({f"{block}.experts.4.up_proj.weight": weights.noise("x", "U8", [8], 8)}), "not known"),
        (lambda t: t.update({f"{block}.gate.temperature": weights.noise("x", "U8", [4], 8)}), "not known"),
        (
            lambda t: t.update({f"{block}.experts.gate_up_proj": weights.noise("x", "U8", [4, 8], 8)}),
            "both single and stacked",
        ),
        (lambda t: t.update({f"{block}.gate.weight": weights.noise("x", "BF16", [3, 8], 16)}), "expected 4 rows"),
        (lambda t: t.update({f"{block}.gate.weight": weights.noise("x", "F4", [4, 1], 4)}), "not 4 equal rows"),
    ]
    for number, (change, expected) in enumerate(cases):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert expected in problems(changed(folder, change))


def test_files_that_disagree_are_refused(original: Path, tmp_path: Path) -> None:
    index = json.loads((original / INDEX_NAME).read_text())
    moved = dict(index["weight_map"])
    name = next(name for name, file in moved.items() if file == SHARDS[0])
    moved[name] = SHARDS[1]
    (original / INDEX_NAME).write_text(json.dumps({**index, "weight_map": moved}))
    told = problems(original)
    assert "the file lacks it" in told
    assert "the index does not name it there" in told
    (original / INDEX_NAME).unlink()
    (original / "extra.safetensors").write_bytes((original / SHARDS[0]).read_bytes())
    assert "to tell which counts" in problems(original)


def test_overlapping_and_torn_files_are_refused(original: Path) -> None:
    path = original / SHARDS[0]
    raw = path.read_bytes()
    path.write_bytes(raw + b"more")
    assert "bytes after the last tensor" in problems(original)
    path.write_bytes(raw[:-3])
    assert "data_offsets" in problems(original)
    tensors = weights.read_file(path)
    weights.write_file(path, tensors)
    text = path.read_bytes().replace(b'"data_offsets": [0, ', b'"data_offsets": [1, ', 1)
    path.write_bytes(text)
    assert "numbers begin at byte 1" in problems(original)


def test_a_damaged_record_is_refused(original: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / progress.NAME).write_text('{"state": "finished"}')
    refused(original, target, InputError, "not a record")
