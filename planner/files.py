"""Reading with a size limit, and writing whole files or nothing."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from planner.errors import InputError, MissingEnvironmentError, Place, Problem, UsageError

_CHUNK_BYTES = 1 << 20


def read_text(path: Path, *, limit_bytes: int) -> str:
    """The UTF-8 text of a file of at most `limit_bytes`.

    Raises `UsageError` if it cannot be opened, `InputError` if it is too large or not UTF-8.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(limit_bytes + 1)
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UsageError(f"{path} is a directory, a file is needed") from None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    where = Place(str(path))
    if len(raw) > limit_bytes:
        message = f"larger than {limit_bytes >> 20} MiB: this cannot be such a file"
        raise InputError(Problem(message, where))
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        message = f"not UTF-8 text (byte {error.start} is 0x{raw[error.start]:02x})"
        hint = "save the file as UTF-8"
        if raw.startswith(b"PK"):
            message, hint = "not text but a zip archive, as traces are", "what traces hold: `ep-plan trace info`"
        raise InputError(Problem(message, where, hint)) from None


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def check_target(path: Path) -> None:
    """Refuse a path that cannot become a file, before long work is done for it.

    Raises `UsageError` (a directory, or no such folder) or `MissingEnvironmentError` (no permission).
    """
    hint = "give the path of a file with -o"
    try:
        folder = path.resolve().parent
        if path.is_dir():
            raise UsageError(f"{path} is a directory, a file is needed", hint=hint)
        if not folder.is_dir():
            raise UsageError(f"{path}: there is no folder {folder}", hint=hint)
        place = path if _is_special(path) else folder
    except (OSError, RuntimeError) as error:  # a loop of symbolic links, a name too long
        raise UsageError(f"{path}: {getattr(error, 'strerror', None) or error}", hint=hint) from None
    if not os.access(place, os.W_OK):
        raise MissingEnvironmentError(f"cannot write {path}: permission denied", hint=hint)


def refuse_overwriting(output: Path, read: Iterable[Path]) -> None:
    """Refuse to write over a file that the same command reads, links looked through.

    Raises `UsageError` that names both.
    """
    for path in read:
        with contextlib.suppress(OSError):  # one of the two is not there: they cannot be the same
            if output.samefile(path):
                same = "" if str(path) == str(output) else f" (read as {path})"
                hint = "give another path with -o"
                raise UsageError(f"{output} is an input of this command{same} and would be overwritten", hint=hint)


def why_no_file(path: Path) -> str:
    """What to say of a path that is not a file, though one is needed."""
    return "this is a directory, a file is needed" if path.is_dir() else "no such file"


def _is_special(path: Path) -> bool:
    """Whether this is a device or a pipe."""
    return path.exists() and not path.is_file() and not path.is_dir()


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file under a temporary name beside it and rename: whole or not at all.

    Raises `MissingEnvironmentError` (disk full, no permission); an older file then stays as it was.
    """
    data = content.encode() if isinstance(content, str) else content
    with replacing(path) as file:
        file.write(data)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A new file beside `path`, which takes its name when the block ends well, and is gone otherwise.

    Raises `MissingEnvironmentError` (disk full, no permission); an older file then stays as it was.
    """
    target = path.resolve()  # a symbolic link keeps pointing where it pointed
    temporary: str | None = None
    try:
        if _is_special(path):
            with path.open("wb") as file:  # renaming would put a file in the place of the device
                yield file
            return
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        mode = target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~_umask()
        os.chmod(temporary, mode)
        os.replace(temporary, target)
        temporary = None
    except OSError as error:
        raise MissingEnvironmentError(
            f"cannot write {path}: {error.strerror or error}",
            hint="nothing was written; give another path with -o, or free some space",
        ) from None
    finally:  # also after Ctrl-C
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
