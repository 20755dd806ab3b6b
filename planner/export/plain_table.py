"""A plain table, one line for each expert in a slot, for spreadsheets and data frames: CSV or Parquet."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Final

import numpy as np

from planner.errors import InputError, MissingEnvironmentError, Place, Problem
from planner.export.layout import Layout
from planner.export.maps import LIMIT_ID, LIMIT_LAYER, FileMap, Row, decoded

COLUMNS: Final = ("layer", "stage", "rank", "slot", "expert", "copies", "gpus")
_PARQUET_MAGIC: Final = b"PAR1"
_MOST_ROWS: Final = 50_000_000
Line = tuple[int, int, int, int, int, int, str]


def lines(layout: Layout) -> Iterator[Line]:
    """The table: `gpus` are all GPUs of the EP rank, in every copy of the expert grid."""
    gpus_KR = [[" ".join(map(str, gpus)) for gpus in stage] for stage in layout.gpus_of_ranks()]
    for row, layer in enumerate(layout.placement.layer_ids):
        stage, by_rank = layout.stage_of(layer), layout.by_rank(row)
        copies = Counter(expert for experts in by_rank for expert in experts)
        for rank, experts in enumerate(by_rank):
            for slot, expert in enumerate(experts):
                yield layer, stage, rank, slot, expert, copies[expert], gpus_KR[stage][rank]


def write(layout: Layout) -> bytes:
    """As CSV."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(lines(layout))
    return stream.getvalue().encode()


def write_parquet(layout: Layout) -> bytes:
    """As Parquet; raises `MissingEnvironmentError` without pyarrow."""
    arrow, parquet = _pyarrow()
    columns = list(zip(*lines(layout), strict=True))
    arrays = [
        arrow.array(column, arrow.string() if index == 6 else arrow.int32()) for index, column in enumerate(columns)
    ]
    stream = io.BytesIO()
    parquet.write_table(arrow.table(arrays, names=list(COLUMNS)), stream)
    return stream.getvalue()


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow as pa  # noqa: PLC0415  # optional
        from pyarrow import parquet  # noqa: PLC0415
    except ImportError:
        hint = "pip install pyarrow, or use --to csv"
        raise MissingEnvironmentError("Parquet needs pyarrow, which is not installed", hint=hint) from None
    return pa, parquet


def read(raw: bytes, file: str) -> FileMap:
    """The map in a table of either kind, told by its first bytes."""
    table = _parquet_lines(raw, file) if raw[:4] == _PARQUET_MAGIC else _csv_lines(raw, file)
    held: dict[int, dict[int, list[int]]] = {}
    gpus: dict[int, dict[int, tuple[int, ...]]] = {}
    for number, values in enumerate(table, 2):
        layer, stage, rank, slot, expert, _, names = values
        ranks = held.setdefault(layer, {}).setdefault(rank, [])
        if slot != len(ranks):
            message = f"layer {layer}, rank {rank}: slot {slot}, expected {len(ranks)}"
            raise InputError(Problem(message, Place(file, number, 1), "slots of a rank stand in order"))
        ranks.append(expert)
        gpus.setdefault(stage, {}).setdefault(rank, tuple(names))
    if not held:
        raise InputError(Problem("no lines", Place(file), f"expected the columns {', '.join(COLUMNS)}"))
    num_ranks = 1 + max(rank for by_rank in held.values() for rank in by_rank)
    rows = {layer: _row([by_rank.get(rank, []) for rank in range(num_ranks)]) for layer, by_rank in held.items()}
    stages = {number: tuple(names for _, names in sorted(stage.items())) for number, stage in gpus.items()}
    return FileMap(file, "hidden", rows, num_ranks=num_ranks, gpus=stages)


def _row(by_rank: list[list[int]]) -> Row:
    experts = [expert for part in by_rank for expert in part]
    return Row(np.array(experts, dtype=np.int64), np.array([len(part) for part in by_rank], dtype=np.int64))


def _csv_lines(raw: bytes, file: str) -> Iterator[tuple[int, int, int, int, int, int, list[int]]]:
    reader = csv.reader(io.StringIO(decoded(raw, file)))
    try:
        header = next(reader, [])
        if tuple(header) != COLUMNS:
            hint = f"expected {','.join(COLUMNS)}"
            raise InputError(Problem(f"columns {','.join(header)[:80]}", Place(file, 1, 1), hint))
        for number, row in enumerate(reader, 2):
            yield _line(row, file, number)
    except csv.Error as error:
        raise InputError(Problem(str(error), Place(file))) from None


def _parquet_lines(raw: bytes, file: str) -> Iterator[tuple[int, int, int, int, int, int, list[int]]]:
    arrow, parquet = _pyarrow()
    try:
        table = parquet.ParquetFile(io.BytesIO(raw))
        if tuple(table.schema_arrow.names) != COLUMNS or table.metadata.num_rows > _MOST_ROWS:
            names = ", ".join(table.schema_arrow.names)[:80]
            raise InputError(Problem(f"columns {names}", Place(file), f"expected {', '.join(COLUMNS)}"))
        columns: Iterable[Any] = [column.to_pylist() for column in table.read().columns]
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise InputError(Problem(f"not a readable Parquet file ({error})", Place(file))) from None
    for number, row in enumerate(zip(*columns, strict=True), 2):
        yield _line([str(value) for value in row], file, number)


def _line(row: list[str], file: str, number: int) -> tuple[int, int, int, int, int, int, list[int]]:
    texts, gpus = row[:-1], row[-1].split() if row else []
    good = len(row) == len(COLUMNS) and all(
        text.isascii() and text.isdecimal() and len(text) < 9 for text in texts + gpus
    )
    values = [int(text) for text in texts] if good else []
    if not good or values[0] >= LIMIT_LAYER or max(values[2:5]) >= LIMIT_ID:
        raise InputError(Problem("not a line of the table", Place(file, number, 1), f"expected {','.join(COLUMNS)}"))
    layer, stage, rank, slot, expert, copies = values
    return layer, stage, rank, slot, expert, copies, [int(gpu) for gpu in gpus]


def how_to_load(layout: Layout, path: str) -> str:
    """How tools read it."""
    del layout
    return f"{path} has the columns {', '.join(COLUMNS)}"
