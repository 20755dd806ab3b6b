"""Writing a launch and reading it again: every GPU of the plan is started once, and the engine takes the flags."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from planner.errors import InputError, Place, Problem, UsageError
from planner.export.fits import check_version, served_linearly
from planner.export.launch.options import LaunchOptions
from planner.export.launch.shell import NodeCommand, commands_in
from planner.export.layout import Layout
from planner.export.lint.arithmetic import About
from planner.export.lint.command import command_in_words
from planner.export.lint.run import Linted, lint_command
from planner.export.table import LAUNCHES
from planner.files import write_whole

_WRITERS: Final = {"launch-vllm-ascend": "write_ascend", "launch-megatron": "write_megatron"}
_MAP_OF: Final = {
    "launch-vllm-ascend": "vllm-ascend",
    "launch-sglang": "sglang",
    "launch-tensorrt-llm": "tensorrt-llm",
    "pr-41141": "vllm-pr41141",
    "pr-49572": "vllm-pr49572",
    "pr-53022": "vllm-pr53022",
}
"""The map that a launch, or a build of vLLM, loads."""
_LINTED: Final = frozenset({"launch-vllm", "launch-sglang", "launch-tensorrt-llm"})


def launch_text(layout: Layout, name: str, options: LaunchOptions, version: str) -> str:
    """The script or manifest, verified but not yet written.

    Raises:
        UsageError: a name is missing or cannot stand in a script.
        InputError: the engine or launcher cannot start the ranks of this plan.
    """
    options.check()
    _check_names(layout, name, options, version)
    if name == "launch-megatron" and not served_linearly(layout):
        hint = "solve with target: checkpoint, and start from the permuted weights"
        raise InputError(Problem("Megatron-LM lays experts out in order, this plan does not", Place("plan"), hint))
    write: Callable[[Layout, LaunchOptions, str], str]
    module = importlib.import_module(f"planner.export.{LAUNCHES[name].module}")
    write = getattr(module, _WRITERS.get(name, "write"))
    text = write(layout, options, version)
    verify(layout, name, text, version)
    return text


def _check_names(layout: Layout, name: str, options: LaunchOptions, version: str) -> None:
    """Raise `UsageError` for all names at once that are missing: the model, and the map of a placement not linear."""
    map_format = _MAP_OF.get(name) or (_MAP_OF.get(version) if name == "launch-vllm" else None)
    problems = []
    if name in (*_MAP_OF, "launch-vllm") and options.model is None:
        hint = "a plan's own name may mean another checkpoint"
        problems.append(Problem("--model is needed: the folder or name that the engine is to load", None, hint))
    if map_format is not None and options.map_path is None and not served_linearly(layout):
        hint = f"write it with --to {map_format}"
        problems.append(Problem("--map is needed: the placement is not linear", None, hint))
    if problems:
        raise UsageError.of(problems)


def write_launch(layout: Layout, name: str, options: LaunchOptions, output: Path, version: str | None) -> str:
    """Write a launch, read it again, and return the version that it is for."""
    chosen = check_version(name, LAUNCHES[name], version)
    text = launch_text(layout, name, options, chosen)
    write_whole(output, text, lambda raw: verify(layout, name, raw.decode(), chosen))
    return chosen


def verify(layout: Layout, name: str, text: str, version: str) -> None:
    """Hold a launch against the plan: GPUs on every node, degrees, flags that the engine ignores or refuses.

    Raises:
        AssertionError: other GPUs or degrees, which is a bug.
        InputError: the engine would refuse, ignore or change a flag for this model on this machine.
    """
    started = gpus_started(name, text)
    wrong = [] if started == layout.num_gpus else [f"{started} GPUs are started, the plan has {layout.num_gpus}"]
    problems: dict[str, Problem] = {}
    for command in commands_in(text) if name in _LINTED else []:
        linted = _linted(layout, command, version)
        wrong += _other_degrees(layout, linted)
        for remark in linted.remarks:
            if remark.level in ("fatal", "ignored", "coerced"):
                source = remark.source or "arithmetic of the plan's degrees"
                problems[remark.message] = Problem(str(remark), Place("plan", key="split"), source)
    if wrong:  # not an assert: it must hold under python -O, too
        raise AssertionError(f"{name}: {'; '.join(wrong)}")
    if problems:
        raise InputError(problems.values())


def _linted(layout: Layout, command: NodeCommand, version: str) -> Linted:
    about = About(layout.model, layout.topology, tuple(version.split("-")[1:]))
    return lint_command(command_in_words(command.argv, command.env), about)


def _other_degrees(layout: Layout, linted: Linted) -> list[str]:
    split, grid = layout.split, linted.grid
    same = (grid.tp * grid.dp, grid.pp, grid.ep) == (split.stage_gpus, split.pp, split.ep)
    if same and (grid.tp == split.tp or linted.engine == "tensorrt-llm"):  # there the config says it
        return []
    return [f"degrees {grid} are not those of the plan"]


def gpus_started(name: str, text: str) -> int:
    """GPUs that all nodes of a launch start together, as its reader would count them."""
    if name == "kubernetes":
        _, job = yaml.safe_load_all(text)
        (container,) = job["spec"]["template"]["spec"]["containers"]
        (count,) = container["resources"]["limits"].values()
        return int(job["spec"]["parallelism"]) * int(count)
    if name == "slurm":
        given: dict[str, int] = {}
        for line in text.splitlines():
            key, _, value = line.removeprefix("#SBATCH --").partition("=")
            if line.startswith("#SBATCH") and value.isdecimal():
                given[key] = int(value)
        return given["nodes"] * given["ntasks-per-node"]
    return sum(_devices(command) for command in commands_in(text))


def _devices(command: NodeCommand) -> int:
    visible = next(value for key, value in command.env.items() if key.endswith("VISIBLE_DEVICES"))
    devices = visible.split(",")
    if command.argv[0] == "mpirun":
        return int(_after(command.argv, "-np"))
    return len(set(devices))


def _after(argv: Sequence[Any], flag: str) -> str:
    return str(argv[list(argv).index(flag) + 1])
