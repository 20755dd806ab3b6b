"""Writing a trace piece by piece: the same arrays as numpy reads, the same bytes each time, whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from planner.trace import npz
from planner.trace.npz import NpzFile
from planner.trace.write import Column, Spool, write_npz

RNG = np.random.default_rng(0)
IDS = RNG.integers(-1, 200, (1000, 3, 2)).astype(np.int16)


def spooled(folder: Path) -> Spool:
    """The ids in uneven pieces."""
    spool = Spool(folder)
    for begin, end in ((0, 1), (1, 400), (400, 400), (400, 1000)):
        spool.append("expert_ids", IDS[begin:end])
    return spool


def test_numpy_reads_what_was_spooled(tmp_path: Path) -> None:
    spool = spooled(tmp_path)
    ids = spool.column("expert_ids", lambda block: block[:, 1:].astype(np.int32))
    write_npz(tmp_path / "a.npz", {"expert_ids": ids, "num_experts": np.array(200)})
    write_npz(tmp_path / "b.npz", {"expert_ids": IDS[:, 1:].astype(np.int32), "num_experts": np.array(200)})
    spool.close()
    with np.load(tmp_path / "a.npz") as read:
        assert read["expert_ids"].dtype == np.int32
        np.testing.assert_array_equal(read["expert_ids"], IDS[:, 1:])
        assert read["num_experts"] == 200
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(("first", "end"), [(0, None), (0, 1000), (1, 2), (333, 777), (999, 1000)])
def test_rows_from_the_middle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compressed: bool, first: int, end: int | None
) -> None:
    monkeypatch.setattr(npz, "CHUNK_BYTES", 500)  # 41 rows of 12 bytes
    (np.savez_compressed if compressed else np.savez)(tmp_path / "a.npz", ids=IDS)
    file = NpzFile(tmp_path / "a.npz")
    assert file.headers["ids"].seekable is not compressed
    blocks = list(file.rows("ids", first, end))
    assert [start for start, _ in blocks] == [first, *np.cumsum([len(b) for _, b in blocks])[:-1] + first]
    assert max(len(block) for _, block in blocks) <= 41
    np.testing.assert_array_equal(np.concatenate([block for _, block in blocks]), IDS[first:end])


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    def broken() -> Iterator[NDArray[np.int16]]:
        yield IDS[:500]
        raise KeyboardInterrupt

    path = tmp_path / "trace.npz"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        write_npz(path, {"expert_ids": Column(IDS.shape, IDS.dtype, broken())})
    assert path.read_bytes() == b"old"
    assert [found.name for found in tmp_path.iterdir()] == ["trace.npz"]
