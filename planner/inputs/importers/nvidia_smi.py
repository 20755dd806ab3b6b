"""The table that `nvidia-smi topo -m` prints: how each GPU reaches each other GPU and NIC."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from planner.errors import InputError, Place, Problem, ProblemLog

_ANSI: Final = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")
_GPU: Final = re.compile(r"GPU\d+")
_NVLINK: Final = re.compile(r"NV(\d+)")
_LEGEND_ENTRY: Final = re.compile(r"\s*(NIC\d+)\s*:\s*(\S+)\s*")
CLOSENESS: Final = ("PIX", "PXB", "PHB", "NODE", "SYS")
"""Paths over PCIe, the nearest first: one switch, several, the host bridge, the NUMA node, beyond."""
_KNOWN: Final = f"X, NV1..NV18, {', '.join(CLOSENESS)}"
_EXPECTED: Final = "expected the whole output of `nvidia-smi topo -m`: a header GPU0 GPU1 ..., then a row for each"
_MIG: Final = "MIG instances are not planned, only whole GPUs: take the table where MIG is off"
_LIMIT_GPUS: Final = 64


@dataclass(frozen=True)
class Matrix:
    """The table of one host: G GPUs, N NICs."""

    nvlinks: tuple[tuple[int, ...], ...]
    """[G][G] NVLinks of a pair; 0: the pair meets over PCIe, or it is the GPU itself."""
    paths: tuple[tuple[str, ...], ...]
    """[G][G] path over PCIe, a member of `CLOSENESS`; "" for NVLink and for the GPU itself."""
    nics: tuple[str, ...]
    """[N] names, e.g. mlx5_0."""
    nic_paths: tuple[tuple[str, ...], ...]
    """[G][N] path from a GPU to a NIC, a member of `CLOSENESS`."""

    @property
    def num_gpus(self) -> int:
        """GPUs of the host."""
        return len(self.nvlinks)


@dataclass(frozen=True)
class _Cell:
    text: str
    where: Place


def looks_like(text: str) -> bool:
    """Whether a text has the header of the table."""
    return any(_is_header(_ANSI.sub("", line)) for line in text.splitlines())


def _is_header(line: str) -> bool:
    words = line.split()
    if not words or not _GPU.fullmatch(words[0]):
        return False
    return len(words) == 1 or not (words[1] in ("X", *CLOSENESS) or _NVLINK.fullmatch(words[1]))


def read_matrix(text: str, file: str) -> Matrix:
    """Read the table.

    Raises:
        InputError: all problems, each with line and column.
    """
    lines = [_ANSI.sub("", line) for line in text.splitlines()]
    start = next((index for index, line in enumerate(lines) if _is_header(line)), None)
    if start is None:
        raise InputError(Problem("no table of GPUs", Place(file, 1, 1), _EXPECTED))
    log = ProblemLog()
    columns = _columns(lines[start])
    if any(name.startswith("MIG") for name in columns):
        raise InputError(Problem(f"MIG instances: {' '.join(columns)[:60]}", Place(file, start + 1, 1), _MIG))
    gpus = [name for name in columns if _GPU.fullmatch(name)]
    if not gpus or gpus != columns[: len(gpus)] or len(gpus) > _LIMIT_GPUS or len(set(columns)) < len(columns):
        raise InputError(Problem(f"odd header: {' '.join(columns)[:60]}", Place(file, start + 1, 1), _EXPECTED))
    rows = _rows(lines, start, columns, file, log)
    for name in gpus:
        if name not in rows:
            log.add(f"no row for {name}", where=Place(file, start + 1, 1), hint=_EXPECTED)
    log.raise_if_any()
    _check(rows, gpus, columns, log)
    log.raise_if_any()
    return _matrix(rows, gpus, columns, _legend(lines[start:]))


def _columns(header: str) -> list[str]:
    words = header.split()
    ends = [index for index, word in enumerate(words) if word in ("CPU", "NUMA")]
    if ends and words[ends[0]] == "NUMA" and words[ends[0] - 1] == "GPU":  # "GPU NUMA ID" comes first
        ends[0] -= 1
    return words[: ends[0]] if ends else words


def _rows(lines: list[str], start: int, columns: list[str], file: str, log: ProblemLog) -> dict[str, list[_Cell]]:
    """The rows of GPUs, each cut to the columns of GPUs and NICs."""
    rows: dict[str, list[_Cell]] = {}
    for number, line in enumerate(lines[start + 1 :], start + 2):
        found = [_Cell(word[0], Place(file, number, word.start() + 1)) for word in re.finditer(r"\S+", line)]
        if not found or found[0].text.startswith("Legend"):
            if rows:
                break
            continue
        name, cells = found[0].text, found[1 : len(columns) + 1]
        if not _GPU.fullmatch(name):
            continue  # rows of NICs say nothing new
        if name not in columns or name in rows:
            what = "stands twice" if name in rows else "is not in the header"
            log.add(f"row {name} {what}", where=found[0].where, hint=_EXPECTED)
        elif len(cells) < len(columns):
            message = f"row {name} has {len(cells)} of {len(columns)} entries"
            log.add(message, where=found[0].where, hint="was the line cut? paste the output unwrapped")
        rows.setdefault(name, cells)
    return rows


def _check(rows: dict[str, list[_Cell]], gpus: list[str], columns: list[str], log: ProblemLog) -> None:
    for name in gpus:
        for column, cell in zip(columns, rows[name], strict=True):
            to_gpu, itself = column in gpus, column == name
            if not (cell.text in CLOSENESS or cell.text == "X" or _NVLINK.fullmatch(cell.text)):
                log.add(f"{name} to {column}: unknown path {cell.text!r}", where=cell.where, hint=f"known: {_KNOWN}")
            elif (cell.text == "X") != itself:
                log.add(
                    f"{name} to {column}: {cell.text}", where=cell.where, hint="X stands on the diagonal, only there"
                )
            elif cell.text.startswith("NV") and not to_gpu:
                log.add(f"{name} to {column}: {cell.text} to a NIC", where=cell.where, hint="NVLink joins GPUs")
            elif to_gpu and gpus.index(column) < gpus.index(name):
                back = rows[column][gpus.index(name)]
                if back.text != cell.text:
                    hint = f"line {back.where.line} says {back.text}: both directions must agree"
                    log.add(f"{name} to {column}: {cell.text}", where=cell.where, hint=hint)


def _legend(lines: list[str]) -> dict[str, str]:
    found = (_LEGEND_ENTRY.fullmatch(line) for line in lines)
    return {match[1]: match[2] for match in found if match}


def _matrix(rows: dict[str, list[_Cell]], gpus: list[str], columns: list[str], legend: dict[str, str]) -> Matrix:
    count = len(gpus)
    texts = [[cell.text for cell in rows[name]] for name in gpus]
    links = [[_NVLINK.fullmatch(text) for text in row[:count]] for row in texts]
    return Matrix(
        nvlinks=tuple(tuple(int(match[1]) if match else 0 for match in row) for row in links),
        paths=tuple(tuple(text if text in CLOSENESS else "" for text in row[:count]) for row in texts),
        nics=tuple(legend.get(name, name) for name in columns[count:]),
        nic_paths=tuple(tuple(row[count:]) for row in texts),
    )
