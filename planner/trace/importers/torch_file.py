"""A file of `torch.save`, read without torch and without running anything in it.

Since PyTorch 1.6 such a file is a zip of one pickle and the raw bytes of each storage, none of them
compressed (https://pytorch.org/docs/stable/notes/serialization.html).
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from planner.trace.importers.found import bad
from planner.trace.importers.torch_pickle import Storage, StoredTensor, load

_LEGACY: Final = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_PICKLE_BYTES: Final = 2 << 30
_SAVE_AGAIN: Final = "where you trust it: torch.save(torch.load(PATH, map_location='cpu', weights_only=True), PATH)"
_BROKEN: Final = (zipfile.BadZipFile, EOFError, ValueError, OSError, RuntimeError)


class TorchFile:
    """An opened file: `content` holds containers, numbers, texts and `StoredTensor`s."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            head = file.read(len(_LEGACY))
        if head == _LEGACY:
            raise bad(path, "a file of torch.save before PyTorch 1.6, which is a bare pickle", _SAVE_AGAIN)
        if head[:1] == b"\x80":
            raise bad(path, "a bare pickle, which can run code when it is loaded: refused", _SAVE_AGAIN)
        try:
            with zipfile.ZipFile(path) as archive:
                self._members = {info.filename: info for info in archive.infolist()}
                self._check(archive)
        except _BROKEN as error:
            raise bad(path, f"not a readable file of torch.save ({error})", "copy it again") from None

    def _check(self, archive: zipfile.ZipFile) -> None:
        pickles = [name for name in self._members if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise bad(self.path, "not a file of torch.save: no data.pkl in it", "expected what torch.save writes")
        self._root = pickles[0].removesuffix("data.pkl")
        if f"{self._root}constants.pkl" in self._members:
            raise bad(self.path, "a TorchScript archive, not a recording", "expected what torch.save writes")
        packed = [name for name, info in self._members.items() if info.compress_type != zipfile.ZIP_STORED]
        if packed:
            raise bad(self.path, f"{packed[0]} is compressed, which torch.save never does: refused", "copy it again")
        if self._members[pickles[0]].file_size > _PICKLE_BYTES:
            raise bad(self.path, f"a pickle of more than {_PICKLE_BYTES >> 30} GiB", "record in shorter pieces")
        order = f"{self._root}byteorder"
        if order in self._members and archive.read(order) != b"little":
            raise bad(self.path, "saved on a big-endian machine", "save it again on a little-endian one")
        self.content: Any = load(archive.read(pickles[0]), self.path)

    def array(self, tensor: StoredTensor, key: str) -> NDArray[Any]:
        """Read a tensor; raises `InputError` if it does not lie inside its storage."""
        flat = self._storage(tensor.storage, key)
        last = tensor.offset + sum((n - 1) * s for n, s in zip(tensor.size, tensor.stride, strict=True))
        numel = int(np.prod(tensor.size, dtype=object))
        if numel == 0:
            return np.zeros(tensor.size if max(tensor.size) < 1 << 20 else (0,), flat.dtype)
        if last >= len(flat) or numel > len(flat):
            message = f"a tensor of {list(tensor.size)} in a storage of {len(flat):,}"
            raise bad(self.path, message, "copy the file again", key=key)
        strides = tuple(step * flat.itemsize for step in tensor.stride)
        return np.lib.stride_tricks.as_strided(flat[tensor.offset :], tensor.size, strides, writeable=False)

    def _storage(self, storage: Storage, key: str) -> NDArray[Any]:
        info = self._members.get(f"{self._root}data/{storage.key}")
        dtype = np.dtype("<u2" if storage.dtype == "bfloat16" else storage.dtype)
        if info is None or info.file_size != storage.numel * dtype.itemsize:
            there = 0 if info is None else info.file_size
            message = f"{storage.numel:,} numbers of {dtype} promised, but {there:,} bytes are there"
            raise bad(self.path, message, "copy the file again", key=key)
        try:
            with zipfile.ZipFile(self.path) as archive:
                raw = archive.read(info)
        except _BROKEN as error:
            raise bad(self.path, f"cannot be read: {error}", "copy the file again", key=key) from None
        flat = np.frombuffer(raw, dtype)
        # bfloat16 is the upper half of a float32
        return (flat.astype("<u4") << np.uint32(16)).view("<f4") if storage.dtype == "bfloat16" else flat
