"""Changing single values of a deployment that has been looked up: `links.cluster.bandwidth=100 GB/s`.

A path names a key of the deployment file (`solve.redundant_experts`), of its topology
(`links.cluster.bandwidth`, `gpu.memory`, `nodes`) or of its model (`model.vocab_size`); links go by the name of
their level. The value is read as in a file, with the same units, and the record is validated anew as a whole, so
an edit gives exactly what the edited file would give.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import ValidationError

from planner.errors import InputError, Place, Problem, ProblemLog, UsageError
from planner.inputs import documents
from planner.inputs.deployment import Deployment, DeploymentFile, Found, assembled
from planner.inputs.documents import Frozen
from planner.inputs.gpu import load_gpu
from planner.inputs.model_files import model_named
from planner.inputs.named_files import Named, topology_of
from planner.inputs.strict_yaml import Document, Key, key_text, parse_yaml
from planner.inputs.topology import Topology, resolve
from planner.inputs.topology_file import TopologyFile

_PART: Final = re.compile(r"\.?([A-Za-z0-9_-]+)|\[(\d{1,6})\]")
_WHOLE: Final = ("model", "topology", "gpus")
"""Paths that replace a whole input: another model, another machine, so many of its GPUs."""
_NO_PATH: Final = ("traces", "checks")
Record = TypeVar("Record", bound=Frozen)


@dataclass(frozen=True)
class Setting:
    """One value to set."""

    text: str
    """As given, for messages."""
    key: Key
    value: Any

    @property
    def path(self) -> str:
        """The path as it is written."""
        return self.text.partition("=")[0].strip()

    @property
    def where(self) -> Place:
        """Its place, for messages."""
        return Place(f"--set {self.text}")


def parse_setting(text: str) -> Setting:
    """Read `path=value`; raises `UsageError`."""
    path, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--set {text}: expected path=value", hint="such as solve.redundant_experts=64")
    return Setting(text, parse_path(path), parse_yaml(value.strip(), f"--set {text}").data)


def parse_path(text: str) -> Key:
    """Read `links[1].bandwidth` or `links.cluster.bandwidth`; raises `UsageError`."""
    key: list[str | int] = []
    at, text = 0, text.strip()
    while at < len(text):
        part = _PART.match(text, at)
        if part is None:
            break
        key.append(part[1] if part[1] is not None else int(part[2]))
        at = part.end()
    if not key or at < len(text) or text.startswith((".", "[")):
        raise UsageError(f"{text!r} is no path of keys", hint="such as links.cluster.bandwidth or links[1].bandwidth")
    return tuple(key[1:]) if key[0] == "topology" and len(key) > 1 else tuple(key)


def edited(deployment: Deployment, settings: Sequence[Setting], lost_nodes: Sequence[int] = ()) -> Deployment:
    """The deployment with values set and nodes taken out of service.

    Raises:
        UsageError: an unknown path, with the nearest known one; a value that the file could not hold either; a
            node that is not there. All of them at once.
    """
    whole = {setting.path: setting for setting in settings if setting.path in _WHOLE}
    parts = [setting for setting in settings if setting.path not in _WHOLE]
    _known_roots(parts)
    file, model, topology = deployment.file, deployment.model, deployment.topology
    log = ProblemLog()
    in_file = [one for one in parts if one.key[0] in DeploymentFile.model_fields and one.key[0] != "model"]
    in_model = [replace(one, key=one.key[1:]) for one in parts if one.key[0] == "model"]
    if "model" in whole:
        model = model_named(str(whole["model"].value))
        file = file.model_copy(update={"model": str(whole["model"].value)})
    if in_file:
        file = _tried(log, lambda: _set(file, in_file)) or file
    if in_model:
        model = _tried(log, lambda: _set(model, in_model)) or model
    topology = _tried(log, lambda: _machine(topology, parts, whole, lost_nodes)) or topology
    if "topology" in whole:
        file = file.model_copy(update={"topology": str(whole["topology"].value)})
    found = Found(model, topology, deployment.trace_paths, deployment.read_paths, deployment.warnings)
    made: Deployment | None = None
    if not log.problems:
        made = _tried(log, lambda: assembled(deployment.path, file, found))
    if made is None:
        names = next((one.where for one in settings if one.key[-1] in ("engine", "kernel")), None)
        raise UsageError.of([replace(one, where=one.where or names) for one in log.problems])
    return made


def roots() -> list[str]:
    """First keys that a path may begin with."""
    own = [name for name in DeploymentFile.model_fields if name not in _NO_PATH]
    return sorted({*own, *TopologyFile.model_fields, "gpus"})


def _known_roots(settings: Sequence[Setting]) -> None:
    problems = []
    for setting in settings:
        first = str(setting.key[0])
        if first not in roots():
            close = difflib.get_close_matches(first, roots(), n=1)
            hint = f"did you mean {close[0]}?" if close else f"paths begin with: {', '.join(roots())}"
            problems.append(Problem(f"unknown path {setting.path}", setting.where, hint))
    if problems:
        raise UsageError.of(problems)


def _tried(log: ProblemLog, make: Callable[[], Any]) -> Any:
    try:
        return make()
    except (InputError, UsageError) as error:
        log.extend(error.problems)
        return None


# --- the machine ------------------------------------------------------------------------------------


def _machine(
    topology: Topology, parts: Sequence[Setting], whole: dict[str, Setting], lost_nodes: Sequence[int]
) -> Topology:
    settings = [one for one in parts if one.key[0] in TopologyFile.model_fields]
    file, gpus = topology.file, _limited(topology)
    if "gpus" in whole:
        gpus = whole["gpus"].value
        if isinstance(gpus, bool) or not isinstance(gpus, int):
            raise InputError(Problem(f"{gpus!r}: a number of GPUs is needed", whole["gpus"].where))
    if "topology" in whole:
        named = Named(str(whole["topology"].value), Path(), whole["topology"].where)
        file, gpus = topology_of(named, None)[0].file, gpus if "gpus" in whole else None
    if settings:
        file = _set(file, [_with_gpu_profile(one) for one in settings])
    for node in lost_nodes:
        file = _without_node(file, node)
    try:
        return resolve(file, gpus if gpus is None or "gpus" in whole else min(gpus, resolve(file).num_gpus))
    except InputError as error:
        where = whole["gpus"].where if "gpus" in whole else None
        raise InputError(replace(one, where=one.where or where) for one in error.problems) from None


def _limited(topology: Topology) -> int | None:
    """How many GPUs `--gpus` left of the machine; None if all."""
    return topology.num_gpus if topology.num_gpus < resolve(topology.file).num_gpus else None


def _with_gpu_profile(setting: Setting) -> Setting:
    """Another GPU by the name of its profile, looked up: a plan keeps GPUs inline."""
    if setting.key[-1] != "gpu" or not isinstance(setting.value, str):
        return setting
    return replace(setting, value=load_gpu(setting.value, setting.where).model_dump(mode="json"))


def _without_node(file: TopologyFile, node: int) -> TopologyFile:
    where = f"node {node}"
    if node >= file.num_nodes:
        raise UsageError(f"--lose: no {where}", hint=f"nodes count from 0 to {file.num_nodes - 1}")
    data = file.model_dump(mode="json")
    gone = [entry for entry in data.get("out_of_service", []) if entry["node"] != node]
    data["out_of_service"] = [*gone, {"node": node}]
    return _validated(TopologyFile, data, Place(f"--lose {node}"), ())


# --- records ----------------------------------------------------------------------------------------


def _set(record: Record, settings: Sequence[Setting]) -> Record:
    """The record with values set, validated as a whole."""
    kind, data = type(record), record.model_dump(mode="json")
    problems: list[Problem] = []
    for setting in settings:
        try:
            _place(kind, data, setting)
        except UsageError as error:
            problems += error.problems
    if problems:
        raise UsageError.of(problems)
    return _validated(kind, data, settings[0].where, settings)


def _validated(kind: type[Record], data: Any, where: Place, settings: Sequence[Setting]) -> Record:
    try:
        return documents.validated(kind, data)
    except ValidationError as error:
        found = documents.problems_of(error, Document(where.file, data, {}, {}), kind)
        raise InputError(_told(problem, where, settings) for problem in found) from None


def _told(problem: Problem, where: Place, settings: Sequence[Setting]) -> Problem:
    """The problem with the setting that it comes from as its place."""
    key = problem.where.key if problem.where else ""
    mine = next((one.where for one in settings if key and _names(one, key)), where)
    message = problem.message if not key or mine is not where else f"{key}: {problem.message}"
    return replace(problem, where=mine, message=message)


def _names(setting: Setting, key: str) -> bool:
    """Whether a located key is the setting's, or inside it; levels of links stand there by number."""
    last = setting.key[-1]
    return str(setting.key[0]) == re.split(r"[.\[]", key)[0] and str(last) in re.split(r"[.\[\]]+", key)


def _place(kind: type[Frozen], data: Any, setting: Setting) -> None:
    """Set a value in plain data; raises `UsageError` for a path that the record does not have."""
    here, key = data, list(setting.key)
    for depth in range(len(key)):
        part: Any = key[depth]
        if isinstance(here, list):
            part = key[depth] = _index(here, part, setting)
        elif not isinstance(here, dict):
            raise _unknown(setting, f"{key_text(tuple(key[:depth]))} has no parts", [])
        elif part not in here:
            known = documents.keys_at(kind, tuple(key[: depth + 1]))
            if str(part) not in known and (known or depth == 0):
                raise _unknown(setting, f"unknown path {setting.path}", known, str(part))
        if depth == len(key) - 1:
            here[part] = setting.value
            return
        if isinstance(here, dict) and here.get(part) is None:
            here[part] = {}
        here = here[part]


def _index(here: list[Any], part: str | int, setting: Setting) -> int:
    """The place in a list: a number, or for links the name of a level."""
    levels = [entry.get("level") for entry in here if isinstance(entry, dict)]
    if isinstance(part, str) and part in levels:
        return levels.index(part)
    number = int(part) if isinstance(part, int) or part.isdecimal() else None
    if number is None or number >= len(here):
        names = [str(name) for name in levels if name]
        raise _unknown(setting, f"unknown path {setting.path}", names or list(map(str, range(len(here)))), str(part))
    return number


def _unknown(setting: Setting, message: str, known: Sequence[str], part: str = "") -> UsageError:
    close = difflib.get_close_matches(part, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"known here: {', '.join(known)}" if known else ""
    return UsageError.of([Problem(message, setting.where, hint)])


def on_machine(deployment: Deployment, topology: Topology, name: str) -> Deployment:
    """The deployment on another machine, which is called so."""
    file = deployment.file.model_copy(update={"topology": name})
    found = Found(deployment.model, topology, deployment.trace_paths, deployment.read_paths, deployment.warnings)
    return assembled(deployment.path, file, found)


def with_tokens(deployment: Deployment, tokens_per_gpu: int) -> Deployment:
    """The deployment with so many tokens per GPU and step."""
    work = deployment.workload.model_copy(update={"tokens_per_gpu": tokens_per_gpu})
    file = deployment.file.model_copy(update={"workload": work})
    return replace(deployment, file=file, workload=work)
