"""What a deployment or the command line names: files and profiles, looked up where they are named."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from planner.errors import InputError, Place, Problem, ProblemLog
from planner.files import why_no_file
from planner.inputs.strict_yaml import Document
from planner.inputs.topology import Topology, load_topology, topology_of_nodes

MODEL_OPTION: Final = Place("--model")
TOPOLOGY_OPTION: Final = Place("--topology")
TRACE_OPTION: Final = Place("--trace")
OPTIONS: Final = (MODEL_OPTION, TOPOLOGY_OPTION, TRACE_OPTION)
"""Places of values that the command line gives instead of the file: what is wrong there is wrong usage."""

_NODES: Final = re.compile(r"\s*(\d{1,40})\s*[x×*]\s*([A-Za-z0-9._-]+)\s*")
_SUFFIXES: Final = (".json", ".yaml", ".yml")


@dataclass(frozen=True)
class Named:
    """A value that names a file or a profile, and where it stands."""

    text: str
    base: Path
    """Folder that a relative path starts from."""
    where: Place
    """In the file, or one of `OPTIONS`."""

    @property
    def path(self) -> Path:
        """The value as a path."""
        return self.base / self.text

    @property
    def is_profile(self) -> bool:
        """Whether this can only be the name of a profile."""
        return "/" not in self.text and not self.text.endswith(_SUFFIXES) and not self.path.exists()


def named_in(
    document: Document, folder: Path, model: str | None, topology: str | None, traces: Sequence[str]
) -> tuple[Named | None, Named | None, list[Named]]:
    """Model, topology and traces of a deployment, as far as they are named: other things in it may be wrong.

    Args:
        document: the deployment, a mapping.
        folder: where it lies.
        model: what the command line says instead, if anything; so, too, the next two.
        topology: the same.
        traces: the same.
    """

    def one(key: str, instead: str | None, option: Place) -> Named | None:
        if instead is not None:
            return Named(instead, Path(), option)
        text = document.data.get(key)
        return Named(text, folder, document.place((key,))) if isinstance(text, str) and text else None

    listed = document.data.get("traces")
    found = [
        Named(text, folder, document.place(("traces", index)))
        for index, text in enumerate(listed if isinstance(listed, list) else [])
        if isinstance(text, str)
    ]
    if traces:
        found = [Named(text, Path(), TRACE_OPTION) for text in traces]
    return one("model", model, MODEL_OPTION), one("topology", topology, TOPOLOGY_OPTION), found


def existing_file(named: Named) -> Path:
    """The file, or the config.json of a folder; raises `InputError` if there is none."""
    path = named.path
    if path.is_dir() and (path / "config.json").is_file():
        path = path / "config.json"
    if not path.is_file():
        hint = "" if named.where in OPTIONS else f"looked for {path}"
        raise InputError(Problem(f"{named.text}: {why_no_file(path)}", named.where, hint))
    return path


def topology_of(named: Named, gpus: int | None) -> tuple[Topology, tuple[Path, ...]]:
    """The topology, of so many GPUs, and the files read."""
    nodes = _NODES.fullmatch(named.text)
    if nodes:
        return topology_of_nodes(int(nodes[1]), nodes[2], named.where, gpus), ()
    if named.is_profile:
        return topology_of_nodes(1, named.text, named.where, gpus), ()
    path = existing_file(named)
    return load_topology(path, gpus), (path,)


def trace_paths(all_named: Sequence[Named], log: ProblemLog) -> tuple[Path, ...]:
    """Paths of the traces; those that are missing or named twice are noted."""
    found: dict[Path, Path] = {}
    for named in all_named:
        try:
            path = existing_file(named)
        except InputError as error:
            log.extend(error.problems)
            continue
        first = found.setdefault(path.resolve(), path)
        if first is not path:
            log.extend([_twice(named.text, first, named.where)])
    return tuple(found.values())


def named_twice(paths: Sequence[Path], where: Place = TRACE_OPTION) -> list[Problem]:
    """Traces of the command line that an earlier one names already."""
    found: dict[Path, Path] = {}
    problems = []
    for path in paths:
        resolved = path.resolve()
        if resolved in found:
            problems.append(_twice(str(path), found[resolved], where))
        found.setdefault(resolved, path)
    return problems


def _twice(text: str, first: Path, where: Place) -> Problem:
    message = f"{text} is the same file as {first}: its windows would count double"
    return Problem(message, where, "name every trace once")
