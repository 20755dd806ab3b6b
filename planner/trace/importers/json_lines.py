"""JSON in recordings: one record a line, whole documents, and long lists element by element."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from planner.trace.importers.found import bad

_LINE_BYTES: Final = 128 << 20
_DOCUMENT_BYTES: Final = 128 << 20
_PIECE: Final = 1 << 20
_CUT_OFF: Final = "cut off while it was written or copied? leave out what is incomplete"


def records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Objects of a JSONL file, each with its line number; empty lines are skipped."""
    with path.open("rb") as file:
        number = 0
        while raw := file.readline(_LINE_BYTES + 1):
            number += 1
            if len(raw) > _LINE_BYTES:
                raise bad(path, f"a line longer than {_LINE_BYTES >> 20} MiB", line=number)
            if not raw.strip():
                continue
            record = parsed(raw, path, number)
            if not isinstance(record, dict):
                raise bad(path, "not a JSON object", "expected one object a line", line=number)
            yield number, record


def parsed(raw: bytes, path: Path, line: int = 1) -> Any:
    """One JSON value; raises `InputError` with the place at which it breaks."""
    try:
        return json.loads(raw, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        at = line + error.lineno - 1
        raise bad(path, f"not JSON: {error.msg}", _CUT_OFF, line=at, column=error.colno) from None
    except UnicodeDecodeError as error:
        raise bad(path, f"not UTF-8 text (byte {error.start} of the line)", line=line) from None
    except RecursionError:
        raise bad(path, "nested too deeply", line=line) from None
    except ValueError as error:
        raise bad(path, str(error), line=line) from None


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no number")


def responses(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Objects of a JSONL file, or of one document over several lines: an object or a list of them."""
    with path.open("rb") as file:
        start = file.read(1024).split(maxsplit=1)
    if start and (start[0].startswith(b"[") or (start[0] == b"{" and not _begins_with_an_object(path))):
        content = document(path)
        yield from (
            (1, item) for item in (content if isinstance(content, list) else [content]) if isinstance(item, dict)
        )
    else:
        yield from records(path)


def _begins_with_an_object(path: Path) -> bool:
    """Whether the first line that is not empty is an object by itself."""
    with path.open("rb") as file:
        raw = b"\n"
        while raw and not raw.strip():
            raw = file.readline(_LINE_BYTES + 1)
    try:
        return isinstance(json.loads(raw), dict)
    except (ValueError, RecursionError):
        return False


def document(path: Path) -> Any:
    """A whole JSON file of at most 128 MiB."""
    with path.open("rb") as file:
        raw = file.read(_DOCUMENT_BYTES + 1)
    if len(raw) > _DOCUMENT_BYTES:
        raise bad(path, f"larger than {_DOCUMENT_BYTES >> 20} MiB", "split it, or save the numbers as .npy")
    return parsed(raw, path)


def elements(path: Path, key: str) -> Iterator[Any]:
    """The elements of the list under `key`, one in memory at a time."""
    decoder = json.JSONDecoder(parse_constant=_refuse)
    letters = codecs.getincrementaldecoder("utf-8")()
    with path.open("rb") as file:
        text = ""

        def more() -> bool:
            nonlocal text
            piece = file.read(max(_PIECE, len(text)))  # as much again: what is incomplete is parsed again, too
            text += letters.decode(piece, final=not piece)
            if len(text) > _LINE_BYTES:
                raise bad(path, f"an element of {key} is larger than {_LINE_BYTES >> 20} MiB", key=key)
            return bool(piece)

        try:
            while f'"{key}"' not in text and more():
                pass
            text = text.partition(f'"{key}"')[2].lstrip(" :\t\r\n")
            while not text and more():
                text = text.lstrip(" :\t\r\n")
            if not text.startswith("["):
                raise bad(path, "not a list", key=key)
            text = text[1:]
            while True:
                text = text.lstrip(" ,\t\r\n")
                if text.startswith("]"):
                    return
                try:
                    element, end = decoder.raw_decode(text)
                except json.JSONDecodeError as error:
                    if not more():
                        raise bad(path, f"not JSON: {error.msg}", _CUT_OFF, key=key) from None
                    continue
                yield element
                text = text[end:]
        except RecursionError:
            raise bad(path, "nested too deeply", key=key) from None
        except (UnicodeDecodeError, ValueError) as error:
            raise bad(path, f"not readable: {error}", _CUT_OFF, key=key) from None
