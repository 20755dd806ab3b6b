"""Traces that are broken or hostile: always a named error, never a crash, never memory on promise."""

from __future__ import annotations

import contextlib
import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planner.errors import InputError, PlannerError, UsageError
from planner.trace.native import read_trace
from planner.trace.npz import NpzFile
from planner.trace.trace import TokenTrace
from planner.trace.windows import cut

RNG = np.random.default_rng(0)
IDS = RNG.integers(0, 8, (300, 2, 2))
EIGHT = np.array(8)
UNTRUSTED = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def npy(array: np.ndarray[Any, Any]) -> bytes:
    """An array as a .npy file."""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array)
    return stream.getvalue()


def header(shape: str, descr: str = "'<i8'", version: tuple[int, int] = (1, 0)) -> bytes:
    """A .npy file without data whose header says this."""
    return raw_header(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}", version)


def raw_header(text: str, version: tuple[int, int] = (1, 0)) -> bytes:
    """A .npy file without data with this text as header."""
    length = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + length + text.encode()


def write(path: Path, **members: np.ndarray[Any, Any] | bytes | None) -> Path:
    """A zip of .npy files; `expert_ids` and `num_experts` are good unless given (None: left out)."""
    every: dict[str, np.ndarray[Any, Any] | bytes | None] = {"expert_ids": IDS, "num_experts": EIGHT, **members}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in every.items():
            if content is not None:
                archive.writestr(f"{name}.npy", content if isinstance(content, bytes) else npy(content))
    return path


def read_all(path: Path) -> None:
    """Everything that planning reads of a trace."""
    cut([read_trace(path).trace], "decode", 64)


def refusal(path: Path) -> str:
    """What reading everything reports."""
    with pytest.raises(InputError) as caught:
        read_all(path)
    assert caught.value.exit_code == 3
    return str(caught.value)


def test_the_good_trace_is_good(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path / "trace.npz")).trace
    assert isinstance(trace, TokenTrace)
    assert (trace.num_tokens, trace.num_experts, trace.top_k, trace.layer_ids_L.tolist()) == (300, 8, 2, [0, 1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header("(1000000000000, 60, 8)"), "is 3,840,000,000,000,000 bytes, but 0 are there"),
        (header("(10000000000000000000000000, 60, 8)"), "bytes, but 0 are there"),
        (header("(4, 1, 1)") + b"\0" * 31, "is 32 bytes, but 31 are there"),
        (header("(4, 1, 1)") + b"\0" * 33, "is 32 bytes, but 33 are there"),
        (header("(-1, -1, 1)") + b"\0" * 8, "shape is not valid: (-1, -1, 1)"),
        (header("(True, 1, 1)") + b"\0" * 8, "shape is not valid: (True, 1, 1)"),
        (header("(1.0, 1, 1)") + b"\0" * 8, "shape is not valid: (1.0, 1, 1)"),
        (header("(0, 1, 1)"), "(0, 1, 1) of int64 found"),
        (header("(1, 1, 1)", "'|O'") + b"\0" * 8, "holds Python objects, which are never loaded"),
        (header("(1,)", "[('a', '|O')]") + b"\0" * 8, "holds Python objects, which are never loaded"),
        (header("(9, 1, 1)", "'|V0'"), "(9, 1, 1) of |V0 found"),
        (header("(1, 1, 1)", "'no such type'"), "not a readable .npz"),
        (header("(1, 1, 1)", version=(2, 0)), "is 8 bytes, but 0 are there"),
        (raw_header("{'shape': ()}"), "Header does not contain the correct keys"),
        (raw_header("__import__('os').system('true')"), "not a readable .npz"),
        (raw_header("-" * 9000 + "1"), "not a readable .npz"),
        (raw_header("(" * 9000), "not a readable .npz"),
        (raw_header("(" * 60_000), "not a readable .npz"),
        (b"\x93NUMPY\x01\x00\xff\xff", "not a readable .npz"),
        (b"\x93NUMPY\x02\x00" + struct.pack("<I", 3_000_000_000), "not a readable .npz"),
        (b"\x93NUMPY\x07\x07", ".npy version (7, 7) is not read"),
        (b"", "not a readable .npz"),
        (b"no array at all", "not a readable .npz"),
    ],
)
def test_headers_that_promise_or_lie(tmp_path: Path, content: bytes, message: str) -> None:
    assert message in refusal(write(tmp_path / "trace.npz", expert_ids=content))


@pytest.mark.parametrize("name", ["weights", "domain_names", "something_unknown"])
def test_arrays_that_are_not_needed_are_not_trusted_either(tmp_path: Path, name: str) -> None:
    write(tmp_path / "trace.npz", **{name: header("(1000000000000, 60, 8)", "'<f8'")})
    assert f"trace.npz: {name}: (1000000000000, 60, 8) of float64 is" in refusal(tmp_path / "trace.npz")


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    path = tmp_path / "trace.npz"
    np.savez(path, expert_ids=IDS, num_experts=8, step_id=np.array([object()] * 300))
    assert "step_id: holds Python objects, which are never loaded" in refusal(path)


def test_a_zip_that_lies_about_a_size_in_its_directory(tmp_path: Path) -> None:
    # Central directory and array header agree on 1 GiB of tokens; 9.4 kB are in the file.
    path = write(tmp_path / "trace.npz", expert_ids=header("(134217728, 2, 4)", "'<i1'") + b"\0" * 9000)
    data = bytearray(path.read_bytes())
    first = data.find(b"PK\x01\x02")
    size = struct.unpack_from("<I", data, first + 24)[0]
    struct.pack_into("<I", data, first + 24, size - 9000 + 2**30)
    path.write_bytes(bytes(data))
    file = NpzFile(path)
    assert file.headers["expert_ids"].nbytes == 2**30
    with pytest.raises(InputError, match=r"expert_ids: (the file is cut off|cannot be read)"):
        next(iter(file.rows("expert_ids")))


def test_more_tokens_than_can_be_handled_are_refused_before_they_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "trace.npz", expert_ids=header("(536870912, 1, 1)", "'<i1'"))
    data = bytearray(path.read_bytes())
    first = data.find(b"PK\x01\x02")
    struct.pack_into("<I", data, first + 24, struct.unpack_from("<I", data, first + 24)[0] + 2**29)
    path.write_bytes(bytes(data))
    assert "expert_ids: 536,870,912 tokens in 1 layers" in refusal(path)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "..\\..\\x", "a/b/c"])
def test_names_with_paths_are_ignored_and_nothing_is_written(tmp_path: Path, name: str) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    read = read_trace(write(inside / "trace.npz", **{name: np.zeros(3)}))
    assert "arrays not known and ignored" in read.warnings[0]
    assert [path.name for path in tmp_path.rglob("*")] == ["inside", "trace.npz"]


@pytest.mark.parametrize("content", [b"", b"PK", b"PK\x05\x06" + b"\0" * 18, npy(IDS), b"x" * 1000])
def test_files_that_are_no_trace(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "trace.npz"
    path.write_bytes(content)
    assert "trace.npz: not a" in refusal(path)


def test_encrypted_and_unknown_compression(tmp_path: Path) -> None:
    data = bytearray(write(tmp_path / "trace.npz").read_bytes())
    local, central = data.find(b"PK\x03\x04"), data.find(b"PK\x01\x02")
    encrypted, unknown = bytearray(data), bytearray(data)
    encrypted[local + 6] |= 1
    encrypted[central + 8] |= 1
    unknown[local + 8] = unknown[central + 10] = 99
    for changed in (encrypted, unknown):
        (tmp_path / "trace.npz").write_bytes(bytes(changed))
        assert "not a readable .npz" in refusal(tmp_path / "trace.npz")


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read_trace(tmp_path / "absent.npz")
    assert "not a readable .npz" in refusal(tmp_path)


@pytest.fixture(scope="module")
def good_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("good") / "trace.npz"
    write(path, expert_ids=IDS[:40], seq_id=np.repeat(np.arange(8), 5), pos=np.tile(np.arange(5), 8))
    return path.read_bytes()


@UNTRUSTED
@given(data=st.data())
def test_flipped_bytes_are_read_or_named(tmp_path: Path, good_bytes: bytes, data: st.DataObject) -> None:
    changed = bytearray(good_bytes)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "trace.npz"
    path.write_bytes(bytes(changed))
    with contextlib.suppress(PlannerError):  # anything else is a crash
        read_all(path)


@UNTRUSTED
@given(length=st.integers(0, 1500))
def test_truncated_files_are_named(tmp_path: Path, good_bytes: bytes, length: int) -> None:
    path = tmp_path / "trace.npz"
    path.write_bytes(good_bytes[: min(length, len(good_bytes) - 1)])
    assert "not a readable .npz" in refusal(path)


def test_a_trace_that_may_not_be_read_is_no_broken_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(zipfile, "ZipFile", refuse)
    with pytest.raises(UsageError, match=r"trace\.npz: Permission denied"):
        read_trace(tmp_path / "trace.npz")
