"""Files that torch and safetensors themselves wrote: read without them, the same numbers as they read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from planner.trace.importers.torch_file import TorchFile
from tests.unit.importers.recording import Desk, counted, with_dense
from tests.unit.importers.test_round_trips import IDS, PLACED, on_slots, same_counts, same_tokens

torch: Any = pytest.importorskip("torch")


def saved(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def test_sglang_recordings(desk: Desk) -> None:
    hidden = np.vstack([np.zeros((1, 8), dtype=np.int32), counted(IDS)])
    stat = {"rank": 0, "logical_count": torch.tensor(hidden[None], dtype=torch.int32)}
    stat |= {"average_utilization_rate_over_window": None}
    same_counts(desk.bring(saved(desk.folder / "stat.pt", stat)).arrays, IDS)
    record = {"forward_pass_id": 5, "rank": 0, "gatherer_key": "primary", "forward_mode": 2, "misc_objects": []}
    record |= {"input_ids": list(range(60)), "positions": list(range(60)), "extend_seq_lens": None}
    record |= {"topk_ids_of_layer": torch.tensor(on_slots(IDS), dtype=torch.int32)}
    dump = {"records": [record] * 1, "last_physical_to_logical_map": torch.tensor(PLACED)}
    same_tokens(desk.bring(saved(desk.folder / "r_0.pt", dump)).arrays)


def test_matrices(desk: Desk) -> None:
    counts = torch.tensor(np.vstack([np.zeros((1, 8)), counted(IDS)]))
    for kind in (torch.int32, torch.int64, torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int16):
        same_counts(desk.bring(saved(desk.folder / "m.pt", counts.to(kind))).arrays, IDS)
    big = torch.zeros(20, 30, dtype=torch.int64)
    big[3:8, 5:13] = counts.long()
    same_counts(desk.bring(saved(desk.folder / "view.pt", big[3:8, 5:13])).arrays, IDS)
    same_counts(desk.bring(saved(desk.folder / "turned.pt", counts.long().T.contiguous().T)).arrays, IDS)
    parameter = torch.nn.Parameter(counts.float())
    same_counts(desk.bring(saved(desk.folder / "parameter.pt", parameter)).arrays, IDS)


def test_statistics_by_safetensors(desk: Desk) -> None:
    numpy_files: Any = pytest.importorskip("safetensors.numpy")
    (desk.folder / "stats").mkdir()
    desk.put("stats/meta_info.json", '{"num_experts": 8, "num_experts_per_token": 2}')
    for rank, part in enumerate(np.split(IDS, 2)):
        tensors = {f"100_{1 + row}": counts for row, counts in enumerate(counted(part))}
        numpy_files.save_file(tensors, desk.folder / "stats" / f"rank{rank}.safetensors", {"written": "by the library"})
    same_counts(desk.bring(desk.folder / "stats").arrays, IDS)


def test_containers(tmp_path: Path) -> None:
    content = {"a": [1, 2.5, None, True, "text", (1,), ()], "b": {"c": list(range(3000))}, 7: "x" * 300}
    path = saved(tmp_path / "c.pt", {**content, "d": torch.nn.Linear(2, 3).state_dict()})
    read = TorchFile(path).content
    weights = read.pop("d")
    assert read == content
    assert list(weights) == ["weight", "bias"]


def test_the_legacy_format(desk: Desk) -> None:
    path = saved(desk.folder / "old.pt", torch.tensor(with_dense(IDS)), _use_new_zipfile_serialization=False)
    outcome = desk.bring(path)
    assert outcome.code == 3
    assert "before PyTorch 1.6" in outcome.err


def test_modules_are_refused(desk: Desk) -> None:
    outcome = desk.bring(saved(desk.folder / "module.pt", torch.nn.Linear(2, 3)))
    assert outcome.code == 3
    assert "torch.nn.modules.linear.Linear in the pickle: refused" in outcome.err
