"""Writes recordings as the engines do, and imports them through the command line.

The layouts follow the sources named in `planner/trace/importers/`; .pt files are made by hand here, and
by torch itself in `test_torch_written.py`.
"""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.cli.main import call

Ids = NDArray[np.int64]
RNG = np.random.default_rng(7)
MODEL = """\
schema: ep-plan/model/1
name: four-of-five
family: test
hidden_size: 64
vocab_size: 100
layers:
  - count: 1
    attention: {kind: gqa, num_heads: 4, num_kv_heads: 4, head_dim: 16}
    ffn: {kind: dense, intermediate_size: 128}
  - count: 4
    attention: {kind: gqa, num_heads: 4, num_kv_heads: 4, head_dim: 16}
    ffn: {kind: moe, num_experts: 8, top_k: 2, intermediate_size: 32}
"""
"""Five layers, the first dense; 8 experts, top-2."""
MOE_LAYERS = [1, 2, 3, 4]


def routes(tokens: int, layers: int = 4, experts: int = 8, top_k: int = 2, seed: int = 0) -> Ids:
    """Distinct experts for each token and layer, in random order: [tokens, layers, top_k]."""
    scores = np.random.default_rng(seed).random((tokens, layers, experts))
    return np.argsort(scores, axis=2)[:, :, :top_k]


def with_dense(ids: Ids) -> Ids:
    """The same with a row of zeros in front, as engines leave for a dense layer."""
    return np.concatenate([np.zeros_like(ids[:, :1]), ids], axis=1)


def counted(ids: Ids, experts: int = 8) -> Ids:
    """How often each expert was chosen: [layers, experts], counted one by one."""
    counts = np.zeros((ids.shape[1], experts), dtype=np.int64)
    for token in ids.tolist():
        for layer, chosen in enumerate(token):
            for expert in chosen:
                counts[layer, expert] += 1
    return counts


@dataclass(frozen=True)
class Outcome:
    """How an import ended."""

    code: int
    err: str
    path: Path

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """What was written."""
        assert self.code == 0, self.err
        with np.load(self.path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}


class Desk:
    """A folder with a model, in which recordings are written and imported."""

    def __init__(self, folder: Path, capture: Any) -> None:
        self.folder = folder
        self.capture = capture
        (folder / "model.yaml").write_text(MODEL)

    def put(self, name: str, content: bytes | str) -> Path:
        """Write a file."""
        path = self.folder / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def bring(self, *paths: Path, model: bool = True, options: Sequence[object] = ()) -> Outcome:
        """Import files; by default with the model."""
        out = self.folder / "trace.npz"
        out.unlink(missing_ok=True)
        with_model = ["--model", self.folder / "model.yaml"] if model else []
        code = call(["trace", "import", *map(str, [*paths, *with_model, *options, "-o", out])])
        assert out.exists() == (code == 0)
        left = [path.name for path in self.folder.iterdir() if path.name.startswith(".")]
        assert not left, left
        return Outcome(code, self.capture.readouterr().err, out)


def json_lines(records: Sequence[object]) -> str:
    """One record a line."""
    return "".join(json.dumps(record) + "\n" for record in records)


def safetensors(tensors: dict[str, Ids]) -> bytes:
    """A .safetensors file of int64 tensors."""
    header, data = {}, b""
    for name, array in tensors.items():
        raw = array.astype("<i8").tobytes()
        header[name] = {"dtype": "I64", "shape": list(array.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


class Pickled:
    """Builds the pickle of `torch.save` (protocol 2) by hand, tensors as int32 storages."""

    def __init__(self) -> None:
        self.storages: list[bytes] = []

    def value(self, value: Any) -> bytes:
        """The instructions that make one value."""
        match value:
            case None:
                return b"N"
            case bool():
                return b"\x88" if value else b"\x89"
            case int():
                return b"J" + struct.pack("<i", value)
            case float():
                return b"G" + struct.pack(">d", value)
            case str():
                return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
            case list():
                return b"](" + b"".join(map(self.value, value)) + b"e"
            case tuple():
                return b"(" + b"".join(map(self.value, value)) + b"t"
            case dict():
                items = b"".join(self.value(key) + self.value(item) for key, item in value.items())
                return b"}(" + items + b"u"
            case np.ndarray():
                return self.tensor(value)
            case bytes():
                return value  # instructions as they stand
        raise TypeError(type(value))

    def tensor(self, array: NDArray[Any]) -> bytes:
        """A contiguous int32 tensor on a GPU, as a recorder saves it."""
        self.storages.append(np.ascontiguousarray(array, dtype="<i4").tobytes())
        key = str(len(self.storages) - 1)
        stride = [int(np.prod(array.shape[axis + 1 :], dtype=int)) for axis in range(array.ndim)]
        persistent = self.value(("storage", b"ctorch\nIntStorage\n", key, "cuda:0", array.size)) + b"Q"
        arguments = (persistent, 0, tuple(array.shape), tuple(stride), False, b"ccollections\nOrderedDict\n)R")
        return b"ctorch._utils\n_rebuild_tensor_v2\n" + self.value(arguments) + b"R"


def pt(value: Any) -> bytes:
    """A file of torch.save with this content."""
    import io

    pickled = Pickled()
    program = b"\x80\x02" + pickled.value(value) + b"."
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("dump/data.pkl", program)
        archive.writestr("dump/byteorder", "little")
        for index, storage in enumerate(pickled.storages):
            archive.writestr(f"dump/data/{index}", storage)
        archive.writestr("dump/version", "3\n")
    return stream.getvalue()


def npy(array: NDArray[Any]) -> bytes:
    """A .npy file."""
    import io

    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()
