"""The three arrays that EPLB's `rebalance_experts` returns (d52c72d5b2f2), for tools that compare maps.

phy2log [L, P]: expert in each slot; log2phy [L, E, X]: slots of each expert, padded with -1, X the most
copies of any expert; logcnt [L, E]: copies of each expert. Layers are MoE layers, in order.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from planner.errors import InputError, Place, Problem
from planner.export.layout import Layout
from planner.export.maps import LIMIT_ID, FileMap, Row
from planner.plan.placement import copies_E
from planner.trace.importers.npy_file import array_of

_NAMES: Final = ("phy2log", "log2phy", "logcnt")
_LIMIT_BYTES: Final = 1 << 30


def write(layout: Layout) -> bytes:
    """The arrays as an npz; the same placement gives the same bytes."""
    phy2log = layout.placement.expert_LP
    logcnt = np.stack([copies_E(row, layout.num_experts) for row in phy2log])
    log2phy = _slots_of(phy2log, logcnt)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in zip(_NAMES, (phy2log, log2phy, logcnt), strict=True):
            inside = io.BytesIO()
            np.save(inside, np.ascontiguousarray(array, dtype=np.int64), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), inside.getvalue())
    return stream.getvalue()


def _slots_of(phy2log: NDArray[np.int64], logcnt: NDArray[np.int64]) -> NDArray[np.int64]:
    log2phy = np.full((*logcnt.shape, int(logcnt.max())), -1, dtype=np.int64)
    for layer, row in enumerate(phy2log):
        seen = [0] * logcnt.shape[1]
        for slot, expert in enumerate(row.tolist()):
            log2phy[layer, expert, seen[expert]] = slot
            seen[expert] += 1
    return log2phy


def read(raw: bytes, file: str) -> FileMap:
    """The map, if the three arrays agree with each other."""
    found = _arrays(raw, file)
    phy2log, log2phy, logcnt = (found[name].astype(np.int64) for name in _NAMES)
    shapes_fit = phy2log.ndim == 2 and logcnt.ndim == 2 and log2phy.ndim == 3 and len(phy2log) == len(logcnt)
    if not shapes_fit or not phy2log.size or not logcnt.size:
        message = f"shapes {phy2log.shape}, {log2phy.shape}, {logcnt.shape}"
        raise InputError(Problem(message, Place(file), "expected [L, P], [L, E, X] and [L, E]"))
    experts = logcnt.shape[1]
    if phy2log.min() < 0 or phy2log.max() >= min(experts, LIMIT_ID):
        message = f"experts {phy2log.min()}..{phy2log.max()}, but logcnt has {experts} of them"
        raise InputError(Problem(message, Place(file, key="phy2log")))
    if not np.array_equal(logcnt, np.stack([copies_E(row, experts) for row in phy2log])):
        raise InputError(Problem("does not count the experts of phy2log", Place(file, key="logcnt")))
    if not np.array_equal(_trimmed(log2phy), _trimmed(_slots_of(phy2log, logcnt))):
        raise InputError(Problem("does not name the slots of phy2log", Place(file, key="log2phy")))
    return FileMap(file, "moe", {layer: Row(row) for layer, row in enumerate(phy2log)}, num_experts=experts)


def _trimmed(log2phy: NDArray[np.int64]) -> NDArray[np.int64]:
    """Slots of each expert ascending, padding first; columns of padding alone left out."""
    ordered = np.sort(log2phy, axis=2)
    return ordered[:, :, (ordered >= 0).any(axis=(0, 1))]


def _arrays(raw: bytes, file: str) -> dict[str, NDArray[Any]]:
    hint = f"expected an npz with {', '.join(_NAMES)}"
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            entries = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            missing = [name for name in _NAMES if name not in entries]
            if missing:
                raise InputError(Problem(f"{', '.join(missing)} missing", Place(file), hint))
            if sum(entries[name].file_size for name in _NAMES) > _LIMIT_BYTES:
                raise InputError(Problem(f"more than {_LIMIT_BYTES >> 30} GiB of arrays", Place(file)))
            arrays = {name: array_of(archive.read(entries[name]), Path(file), name) for name in _NAMES}
    except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, ValueError) as error:
        raise InputError(Problem(f"not a readable .npz ({error})", Place(file), hint)) from None
    for name, array in arrays.items():
        if array.dtype.kind not in "iu":
            raise InputError(Problem(f"holds {array.dtype}", Place(file, key=name), "expected integers"))
    return arrays


def how_to_load(layout: Layout, path: str) -> str:
    """How tools read it."""
    del layout
    return f"numpy.load({path!r}) gives phy2log, log2phy and logcnt"
