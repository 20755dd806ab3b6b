"""Truncated, hostile and wrong files of every format: exit 3 with the place; nothing run or allocated on promise."""

from __future__ import annotations

import base64
import io
import json
import os
import pickle
import resource
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.cli.running import run
from tests.unit.importers.recording import (
    MOE_LAYERS,
    Desk,
    Pickled,
    counted,
    json_lines,
    npy,
    pt,
    routes,
    safetensors,
    with_dense,
)
from tests.unit.importers.test_round_trips import (
    IDS,
    PLACED,
    ascend_map,
    matrices,
    megatron,
    on_slots,
    slot_counts,
)

UNTRUSTED = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def request_npz() -> bytes:
    stream = io.BytesIO()
    np.savez(
        stream, routed_experts=with_dense(IDS).astype(np.uint8), prompt_token_ids=np.arange(61), output_token_ids=[]
    )
    return stream.getvalue()


def every() -> dict[str, tuple[str, bytes]]:
    """One good file of each format: format -> (file name, content)."""
    load = {"record_type": "eplb_load_stats", "version": 1, "step": 0}
    load |= {"expert_load": slot_counts(on_slots(IDS))[1:].tolist(), "p2l_map": PLACED[1:].tolist()}
    raw = base64.b64encode(with_dense(IDS).astype("<i4").tobytes()).decode()
    record: dict[str, object] = {"forward_pass_id": 0, "rank": 0, "forward_mode": 2, "topk_ids_of_layer": on_slots(IDS)}
    rows = "".join("\t".join(map(str, row)) + "\t\n" for row in counted(IDS).tolist())
    lines = [
        {"layer": 1 + row, "token_idx": t, "topk_ids": IDS[t, row].tolist()} for row in range(4) for t in range(60)
    ]
    native = io.BytesIO()
    np.savez(native, expert_ids=IDS, layer_ids=MOE_LAYERS, num_experts=8)
    return {
        "megatron": ("router_trace_rank0.jsonl", megatron(IDS, 0, 3, MOE_LAYERS).encode()),
        "vllm": ("routes.npy", npy(with_dense(IDS).astype(np.uint8))),
        "vllm base64": ("routes.txt", base64.b64encode(npy(with_dense(IDS).astype(np.uint8)))),
        "vllm npz": ("request.npz", request_npz()),
        "sglang-routes": ("a.jsonl", json_lines([{"meta_info": {"routed_experts": raw}}]).encode()),
        "sglang": ("r_0.pt", pt({"records": [record], "last_physical_to_logical_map": PLACED})),
        "sglang stat": ("s.pt", pt({"logical_count": np.vstack([np.zeros((1, 8), int), counted(IDS)])[None]})),
        "tensorrt-llm": ("rank0.safetensors", safetensors({f"1_{1 + row}": counted(IDS)[row] for row in range(4)})),
        "vllm-load-stats": ("stats.jsonl", json_lines([load]).encode()),
        "vllm-ascend": ("moe_load.npy", npy(slot_counts(on_slots(IDS))[1:].reshape(4, 2, 5))),
        "omni-infer": ("activation_counts_recordstep_0_rank_0.txt", rows.encode()),
        "matrix": ("eplb.npy", npy(counted(IDS))),
        "matrix pt": ("eplb.pt", pt(counted(IDS))),
        "matrix json": ("lmdeploy.json", json.dumps(counted(IDS).tolist()).encode()),
        "matrix history": ("load.json", matrices()["load.json"]),
        "matrix csv": ("triples.csv", matrices()["triples.csv"]),
        "token-lines": ("moe_routes.jsonl", json_lines(lines).encode()),
        "native": ("native.npz", native.getvalue()),
    }


EVERY = every()


def put(desk: Desk, kind: str, content: bytes) -> list[Path]:
    name = EVERY[kind][0]
    if kind == "tensorrt-llm":
        desk.put("stats/meta_info.json", json.dumps({"num_experts": 8, "num_experts_per_token": 2}))
        desk.put(f"stats/{name}", content)
        return [desk.folder / "stats"]
    return [desk.put(name, content)]


def told(desk: Desk, kind: str) -> list[str | Path]:
    """What must be said on the command line because the file does not."""
    return ["--from", kind, "--physical-map", ascend_map(desk)] if kind == "vllm-ascend" else []


@pytest.mark.parametrize("kind", list(EVERY))
def test_the_good_file_is_good(desk: Desk, kind: str) -> None:
    assert (
        desk.bring(*put(desk, kind, EVERY[kind][1]), options=told(desk, kind)).arrays["layer_ids"].tolist()
        == MOE_LAYERS
    )


@pytest.mark.parametrize("kind", list(EVERY))
@UNTRUSTED
@given(part=st.floats(0, 0.97))
def test_truncated_files_are_named(desk: Desk, kind: str, part: float) -> None:
    content = EVERY[kind][1]
    path = put(desk, kind, content[: int(part * len(content))])[0]
    outcome = desk.bring(path, options=told(desk, kind))
    if outcome.code == 0:  # lines may end where one ends
        assert kind in ("token-lines", "megatron", "vllm base64")
        return
    assert outcome.code == 3, outcome.err
    assert outcome.err.startswith(f"error: {path}"), outcome.err
    assert "nothing was written" in outcome.err


@pytest.mark.parametrize("kind", list(EVERY))
@UNTRUSTED
@given(data=st.data())
def test_flipped_bytes_are_read_or_named(desk: Desk, kind: str, data: st.DataObject) -> None:
    changed = bytearray(EVERY[kind][1])
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    assert desk.bring(*put(desk, kind, bytes(changed)), options=told(desk, kind)).code in (
        0,
        2,
        3,
    )  # anything else is a crash


@pytest.mark.parametrize("kind", sorted({kind.partition(" ")[0] for kind in EVERY} - {"tensorrt-llm"}))
@pytest.mark.parametrize(
    "content", [b"", b"\0" * 100, b"PK\x03\x04", b"{", b"[[1, 2], [3]]", b"\x93NUMPY", b"\x80\x04."]
)
def test_wrong_files_are_refused_by_every_reader(desk: Desk, kind: str, content: bytes) -> None:
    outcome = desk.bring(desk.put("file", content), options=told(desk, kind) or ["--from", kind])
    assert outcome.code == 3, outcome.err
    assert f"{desk.folder / 'file'}" in outcome.err


def test_what_is_no_file(desk: Desk) -> None:
    assert desk.bring(desk.folder / "absent").code == 2
    assert desk.bring(Path("/dev/zero")).code == 2
    assert "a folder of no known format" in desk.bring(desk.folder).err
    both = [put(desk, "matrix", EVERY["matrix"][1])[0], put(desk, "native", EVERY["native"][1])[0]]
    assert "files of different formats: eplb.npy is matrix, native.npz is native" in desk.bring(*both).err


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("form", ["zip", "bare", "in npz", "in npy", "nested"])
def test_no_pickle_is_ever_run(desk: Desk, protocol: int, form: str) -> None:
    proof = desk.folder / "proof"
    program = pickle.dumps(Malicious(f"touch {proof}"), protocol=protocol)
    nested = Pickled().value({"logical_count": b"cposix\nsystem\n(X\x04\x00\x00\x00truetR"})
    content = {
        "zip": zipped({"a/data.pkl": program}),
        "bare": program,
        "in npz": zipped({"expert_ids.npy": _object_header() + program, "num_experts.npy": npy(np.array(8))}),
        "in npy": _object_header() + program,
        "nested": zipped({"a/data.pkl": b"\x80\x02" + nested + b"."}),
    }[form]
    outcome = desk.bring(desk.put("dump.pt", content))
    assert outcome.code == 3, outcome.err
    assert not proof.exists()
    if form in ("zip", "nested"):
        assert "system in the pickle: refused" in outcome.err or "instruction" in outcome.err


def _object_header() -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|O", "fortran_order": False, "shape": (1,)})
    return stream.getvalue()


@pytest.mark.parametrize(
    "call",
    [
        b"cbuiltins\neval\n",
        b"ctorch\nload\n",
        b"ctorch._utils\n_rebuild_device_tensor_from_numpy\n",
        b"cplanner.files\nwrite_whole\n",
        b"cos\nsystem\n",
        b"c__builtin__\ngetattr\n",
        b"cnumpy.core.multiarray\n_reconstruct\n",
    ],
)
def test_names_beyond_tensors_are_refused(desk: Desk, call: bytes) -> None:
    path = desk.put("dump.pt", zipped({"a/data.pkl": b"\x80\x02" + call + b"."}))
    assert f"{call[1:-1].decode().replace(chr(10), '.')} in the pickle: refused" in desk.bring(path).err


def test_legacy_files_of_torch_are_refused_with_the_way_out(desk: Desk) -> None:
    head = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + pickle.dumps(1001, protocol=2)
    outcome = desk.bring(desk.put("dump.pt", head))
    assert outcome.code == 3
    assert "before PyTorch 1.6" in outcome.err
    assert "weights_only=True" in outcome.err


def storage(numel: int, size: tuple[int, ...], stride: tuple[int, ...], data: bytes, offset: int = 0) -> bytes:
    """A .pt of one int32 tensor that claims this."""
    made = Pickled()
    persistent = made.value(("storage", b"ctorch\nIntStorage\n", "0", "cpu", numel)) + b"Q"
    arguments = made.value((persistent, offset, size, stride, False, b"ccollections\nOrderedDict\n)R"))
    program = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R."
    return zipped({"a/data.pkl": program, "a/data/0": data})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (storage(1 << 30, (1 << 15, 1 << 15), (1 << 15, 1), b"\0" * 64), "promised, but 64 bytes are there"),
        (storage(16, (1 << 15, 1 << 15), (0, 0), b"\0" * 64), "a tensor of [32768, 32768] in a storage of 16"),
        (storage(16, (4, 4), (4, 2), b"\0" * 64), "a tensor of [4, 4] in a storage of 16"),
        (storage(16, (4, 4), (4, 1), b"\0" * 64, offset=1), "a tensor of [4, 4] in a storage of 16"),
        (storage(16, (4, -4), (4, 1), b"\0" * 64), "a call that makes no tensor"),
        (storage(-16, (4, 4), (4, 1), b"\0" * 64), "a reference that is no storage"),
        (zipped({"a/data.pkl": b"\x80\x02].", "a/data/0": b"\0" * 99}, zipfile.ZIP_DEFLATED), "is compressed"),
        (zipped({"a/data.pkl": b"\x80\x02].", "a/constants.pkl": b""}), "a TorchScript archive"),
        (zipped({"a/data.pkl": b"\x80\x02].", "a/byteorder": b"big"}), "big-endian"),
        (zipped({"a/data.pkl": b"\x80\x02]r\xff\xff\xff\x7f."}), "holds a list, not a tensor"),  # memo of 2^31
        (zipped({"a/data.pkl": b"\x80\x02\x8b\xff\xff\xff\x7f."}), "the pickle is damaged"),
    ],
)
def test_tensors_that_promise_or_lie(desk: Desk, content: bytes, message: str) -> None:
    outcome = desk.bring(desk.put("dump.pt", content), options=["--from", "matrix"])
    assert outcome.code == 3
    assert message in outcome.err


def promised(shape: str, descr: str = "|u1") -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def no_more_than_2_gib() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.npy", promised("(1000000000000, 61, 8)")),
        ("a.txt", base64.b64encode(promised("(1000000000000, 61, 8)"))),
        ("a.npz", zipped({"routed_experts.npy": promised("(1000000000000, 61, 8)")})),
        ("a.npy", promised("(61, 1000000000000)", "<f8")),
        (
            "bomb.npz",
            zipped({"routed_experts.npy": promised("(600000000, 1, 1)") + b"\0" * 600_000_000}, zipfile.ZIP_DEFLATED),
        ),
        ("a.safetensors", struct.pack("<Q", 1 << 60) + b"{}"),
    ],
    ids=["npy", "base64", "npz", "matrix", "zip bomb", "safetensors"],
)
def test_terabytes_on_promise(tmp_path: Path, name: str, content: bytes) -> None:
    """In a process of its own that may use 2 GiB of address space."""
    path = tmp_path / name
    if name.endswith("safetensors"):
        (tmp_path / "meta_info.json").write_text('{"num_experts": 8, "num_experts_per_token": 2}')
        path = tmp_path / "rank0.safetensors"
    path.write_bytes(content)
    source = tmp_path if name.endswith("safetensors") else path
    options = ["--num-experts", 8, "--top-k", 2, "-o", tmp_path / "out.npz"]
    result = run("trace", "import", source, *options, cwd=tmp_path, before=no_more_than_2_gib)
    assert result.code == 3, result.err
    assert str(path) in result.err


@pytest.mark.parametrize("kind", ["vllm npz", "matrix pt", "sglang stat", "native"])
def test_zips_of_the_future_are_refused(desk: Desk, kind: str) -> None:
    """The version that is needed to extract, flipped: `zipfile` then raises what no other damage does."""
    content = bytearray(EVERY[kind][1])
    content[content.index(b"PK\x01\x02") + 6] = 120
    outcome = desk.bring(*put(desk, kind, bytes(content)))
    assert outcome.code == 3
    assert "zip file version 12.0" in outcome.err


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((0, 8), int), "[0, 8] found"),
        (np.full((4, 8), 2**63, np.uint64), "9223372036854775808 does not fit"),
        (-np.ones((4, 8), int), "a count of -1"),
        (np.full((4, 8), np.nan), "NaN found"),
        (np.full((4, 8), np.inf), "infinities"),
        (np.ones((4, 8), complex), "complex128"),
        (np.zeros((4, 8), "M8[s]"), "datetime64"),
        (np.array([["a", "b"]]), "<U1"),
        (np.array(5), "[] found"),
    ],
)
def test_arrays_that_are_no_counts(desk: Desk, array: NDArray[Any], message: str) -> None:
    outcome = desk.bring(desk.put("counts.npy", npy(array)), options=["--from", "matrix"])
    assert outcome.code == 3
    assert message in outcome.err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ('{"load_history":' + "[" * 100_000, "nested too deeply"),
        ('{"layer": 1, "topk_ids":' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
        ("[[1, 99999999999999999999], [1, 2]]", "beyond 64 bits"),
        ("[[1, 1e400], [1, 2]]", "infinities"),
        ("[[1, NaN], [1, 2]]", "NaN is no number"),
        ("[[1, -2], [1, 2]]", "a count of -2"),
        ("[[], []]", "[2, 0] found"),
    ],
)
def test_texts_that_are_no_counts(desk: Desk, content: str, message: str) -> None:
    outcome = desk.bring(desk.put("file.json", content))
    assert outcome.code == 3
    assert message in outcome.err


def test_a_gigabyte_of_spaces(tmp_path: Path) -> None:
    """A file with holes, read as far as the limit of one line; in a process that may use 2 GiB of address space."""
    path = tmp_path / "stats.jsonl"
    path.write_text('{"record_type": "eplb_load_stats", "p2l_map": [[0]], "expert_load": [[1]]}\n')
    with path.open("ab") as file:
        file.truncate(1 << 30)
    result = run("trace", "import", path, "--top-k", 1, cwd=tmp_path, before=no_more_than_2_gib)
    assert result.code == 3, result.err
    assert "stats.jsonl:2:1: a line longer than 128 MiB" in result.err


def test_places_in_text(desk: Desk) -> None:
    lines = megatron(IDS, 0, 3, MOE_LAYERS).splitlines()
    lines[5] = lines[5].replace('"topk": 2', '"topk": 3')
    outcome = desk.bring(desk.put("router_trace_rank0.jsonl", "\n".join(lines)))
    assert (
        "router_trace_rank0.jsonl:6:1: top_indices: 20 tokens of 2 choices, but the record states 20 of 3"
        in outcome.err
    )
    outcome = desk.bring(desk.put("stats.jsonl", '{"record_type": "eplb_load_stats",\n'))
    assert "stats.jsonl:1:36: not JSON" in outcome.err or "stats.jsonl:2:1: not JSON" in outcome.err
    outcome = desk.bring(desk.put("c.csv", "layer,expert,count\n0,1,5\n0,2,many\n"))
    assert "c.csv:3:1: 'many' is not a count" in outcome.err


def no_file_over_4_kib() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """Once while the ids are spooled, once while the file is packed: 60 and 3 kB of ids."""
    for tokens in (30_000, 1_500):
        path = tmp_path / "routes.npy"
        path.write_bytes(npy(routes(tokens, layers=1).astype(np.uint8)))
        options = ["--num-experts", 8, "-o", "out.npz"]
        env = {"PYTHONDONTWRITEBYTECODE": "1"}
        result = run("trace", "import", path, *options, cwd=tmp_path, env=env, before=no_file_over_4_kib)
        assert result.code == 7, result.err
        assert [left.name for left in tmp_path.iterdir()] == ["routes.npy"]


def test_usage(desk: Desk) -> None:
    path = put(desk, "matrix", EVERY["matrix"][1])[0]
    assert "is given twice" in desk.bring(path, path).err
    assert desk.bring(path, options=["-o", desk.folder / "no" / "t.npz"], model=False).code == 2
    assert "counts do not say how many experts a token chose" in desk.bring(path, model=False).err
    assert "has 8 experts, not 9" in desk.bring(path, options=["--num-experts", 9]).err
    assert "does not say how many experts" in desk.bring(*put(desk, "vllm", EVERY["vllm"][1]), model=False).err
    assert (
        "--physical-map means nothing"
        in desk.bring(path, options=["--physical-map", desk.put("m.json", "[[0, 1]]")]).err
    )


def test_joined_files_of_different_columns(desk: Desk) -> None:
    np.savez(desk.folder / "0.npz", expert_ids=IDS, layer_ids=MOE_LAYERS, num_experts=8)
    np.savez(desk.folder / "1.npz", expert_ids=IDS, layer_ids=MOE_LAYERS, num_experts=8, step_id=np.arange(60))
    outcome = desk.bring(desk.folder / "0.npz", desk.folder / "1.npz")
    assert outcome.code == 3
    assert "step_id is given for 60 of 120 tokens" in outcome.err


def test_bytes_that_become_wider(desk: Desk) -> None:
    """A request of bytes, then one with -1: the first is kept as it was."""
    lacking = with_dense(IDS).astype(np.int32)
    lacking[3, 2, 1] = -1
    first = desk.put("requests/0.npy", npy(with_dense(IDS).astype(np.uint8)))
    second = desk.put("requests/1.npy", npy(lacking))
    ids = desk.bring(first, second, options=["--from", "vllm"]).arrays["expert_ids"]
    np.testing.assert_array_equal(ids, np.concatenate([IDS, lacking[:, 1:]]))


def test_a_pass_without_end(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planner.trace.importers.passes._MOST_BYTES", 5000)
    lines = [{"layer": 1, "topk_ids": [0, 1]}] * 40
    assert (
        "moe_routes.jsonl:24:1: a pass of more than" in desk.bring(desk.put("moe_routes.jsonl", json_lines(lines))).err
    )
