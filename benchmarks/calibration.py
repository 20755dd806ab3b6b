"""Are predicted times of plans on this very machine right, and does a measured topology bring them closer?

Two cores stand for two GPUs. A topology is written by hand, as from a data sheet. One plan made for it is
measured (`ep-plan validate --calibrate`), and so is the machine (`ep-plan probe`). Other plans are then priced
with all three topologies, the same split and placement each time, and measured. Other programs of the machine
make a run slower, never faster: of several runs of a plan the quickest counts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from planner.check import cost_of
from planner.cost.prepare import from_deployment
from planner.inputs.deployment import Overrides, load_deployment
from planner.plan.decision import cuts_of, placement_of
from planner.plan.plan_file import read_plan
from planner.processes import available_cores

RANKS = 2
WINDOWS = 2
ROUNDS = 5
"""Runs of every plan, in turn."""
SHOWN = 0.05
"""Terms above this part of the step are shown."""
GIVEN = """\
schema: ep-plan/topology/1
gpu: {memory: 12 GiB, hbm_bandwidth: 20 GB/s, compute: {fp32: 83 GFLOP/s}}
nodes: 1
gpus_per_node: 2
links:
  - {level: node, bandwidth: 5 GB/s, latency: 20 us}
"""
"""A core at 2.6 GHz with 32 operations a cycle; half of what a socket reads; a memory copy."""
SPLIT = "{ep: 2, tp: 1, pp: 1}"


@dataclass(frozen=True)
class Case:
    """A deployment: its model is small, but every phase takes milliseconds."""

    name: str
    phase: str = "prefill"
    tokens: int = 256
    context: int = 256
    hidden: int = 512
    width: int = 1024
    experts: int = 8
    layers: int = 4

    def written(self, folder: Path) -> Path:
        """Write it with routing of unequal popularity; its deployment file."""
        folder.mkdir()
        config = {
            "model_type": "mixtral",
            "hidden_size": self.hidden,
            "intermediate_size": self.width,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "num_hidden_layers": self.layers,
            "num_local_experts": self.experts,
            "num_experts_per_tok": 2,
            "vocab_size": 128,
            "dtype": "float32",
            "max_position_embeddings": 4096,
            "tie_word_embeddings": False,
        }
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "given.yaml").write_text(GIVEN)
        (folder / "deployment.yaml").write_text(
            "schema: ep-plan/deployment/1\nmodel: config.json\ntopology: given.yaml\ntraces: [trace.npz]\n"
            "communication: {kernel: all-to-all, dedup: expert}\n"
            f"workload: {{phase: {self.phase}, tokens_per_gpu: {self.tokens}, context_length: {self.context}}}\n"
            f"solve: {{split: {SPLIT}}}\n"
        )
        rng = np.random.default_rng(0)
        tokens = 2 * WINDOWS * RANKS * self.tokens
        scores = 0.5 * rng.gumbel(size=(self.layers, self.experts)) + rng.gumbel(
            size=(tokens, self.layers, self.experts)
        )
        ids = np.argpartition(-scores, 2, axis=2)[..., :2].astype(np.int16)
        step_id = np.arange(tokens) * 2 * WINDOWS // tokens
        np.savez(folder / "trace.npz", expert_ids=ids, num_experts=self.experts, step_id=step_id)
        return folder / "deployment.yaml"


LEARNT_FROM = Case("256 tokens")
OTHERS = (
    Case("64 tokens", tokens=64),
    Case("512 tokens, longer prompt", tokens=512, context=1024),
    Case("narrow model, 16 experts", hidden=256, width=512, experts=16, tokens=512),
    Case("decode, 64 sequences", phase="decode", tokens=64),
)


def run(data: Path | None, console: Console) -> None:
    """Print a line for every term of every other plan."""
    del data
    if find_spec("torch") is None or available_cores() < RANKS:
        console.print(f"calibration: needs torch and {RANKS} cores")
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        topologies = _topologies(folder)
        plans = {case.name: _solved(case, folder / str(number)) for number, case in enumerate(OTHERS)}
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in plans}
        for _ in range(ROUNDS):
            for case, plan in plans.items():
                runs[case].append(_validated(plan))
        _print(console, {case: _priced(plan, topologies) for case, plan in plans.items()}, runs)


def _ep_plan(*words: object, codes: tuple[int, ...] = (0,)) -> None:
    command = [sys.executable, "-m", "planner", *map(str, words), "-q"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    if done.returncode not in codes:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr}")


def _topologies(folder: Path) -> dict[str, Path]:
    """The topology by hand, what a validation made of it, and the machine as measured."""
    plan = _solved(LEARNT_FROM, folder / "learnt")
    found = {
        "by hand": folder / "learnt" / "given.yaml",
        "calibrated": folder / "calibrated.yaml",
        "probed": folder / "probed.yaml",
    }
    step_s = np.inf
    for _ in range(ROUNDS):
        step = _step_s(_validated(plan, "--calibrate", folder / "tried.yaml"))
        if step < step_s:
            step_s = step
            (folder / "tried.yaml").replace(found["calibrated"])
    _ep_plan("probe", "--device", "cpu", "--ranks", RANKS, "-o", found["probed"])
    return found


def _solved(case: Case, folder: Path) -> Path:
    _ep_plan("solve", case.written(folder), "-o", folder / "plan.json")
    return folder / "plan.json"


def _validated(plan: Path, *options: object) -> dict[str, Any]:
    """Measure a plan; times that are off, or spread, are what is looked for."""
    output = plan.parent / "validation.json"
    _ep_plan("validate", plan, "--device", "cpu", "--windows", WINDOWS, "-o", output, *options, codes=(0, 6))
    found: dict[str, Any] = json.loads(output.read_text())
    assert found["counts"]["judged"] == found["outputs"]["judged"] == "pass", found["reasons"]
    return found


def _priced(plan_path: Path, topologies: Mapping[str, Path]) -> dict[str, dict[str, float]]:
    """Seconds of the terms of a plan, and of its step, by topology."""
    from planner.measure.plan_run import timed_windows  # noqa: PLC0415 - needs torch
    from planner.measure.predicted import predicted_parts  # noqa: PLC0415

    plan = read_plan(plan_path)
    priced = {}
    for name, topology in topologies.items():
        overrides = Overrides(topology=str(topology))
        instance = from_deployment(load_deployment(plan_path.parent / "deployment.yaml", overrides)).instance
        assert instance.windows is not None
        timed = timed_windows(instance.windows.num_windows, WINDOWS)
        parts = predicted_parts(
            cost_of(plan, instance), cuts_of(plan), placement_of(plan), instance.traced_layer_ids, timed
        )
        priced[name] = {**parts.terms, "step": parts.step_s}
    return priced


def _step_s(found: Mapping[str, Any]) -> float:
    return float(found["placements"][0]["step_s"])


def _seconds(found: Mapping[str, Any]) -> dict[str, float]:
    """Measured terms and step of a run."""
    return {**{term["name"]: term["measured_s"] for term in found["terms"]}, "step": _step_s(found)}


def _print(
    console: Console, priced: Mapping[str, dict[str, dict[str, float]]], runs: Mapping[str, list[dict[str, Any]]]
) -> None:
    names = list(next(iter(priced.values())))
    table = Table(title="other plans: predicted over measured", box=None, title_justify="left")
    for column in ("plan", "term", "measured", "all runs", *names):
        table.add_column(column, justify="left" if column in ("plan", "term") else "right")
    errors: dict[str, list[float]] = {name: [] for name in names}
    for case, predictions in priced.items():
        every = [_seconds(found) for found in runs[case]]
        quickest = min(every, key=lambda seconds: seconds["step"])
        for term in predictions[names[0]]:
            measured = quickest.get(term, 0.0)
            if measured < SHOWN * quickest["step"]:
                continue
            ratios = {name: predictions[name][term] / measured for name in names}
            all_s = [seconds[term] for seconds in every]
            span = f"{1e3 * min(all_s):.1f} to {1e3 * max(all_s):.1f}"
            style = "bold" if term == "step" else None
            cells = (f"{1e3 * measured:.1f} ms", span, *(f"{ratio:.2f}" for ratio in ratios.values()))
            table.add_row(case if term == "step" else "", term, *cells, style=style)
            if term == "step":
                for name, ratio in ratios.items():
                    errors[name].append(abs(ratio - 1))
    console.print(table)
    means = ", ".join(f"{name} {np.mean(found):.0%}" for name, found in errors.items())
    console.print(f"error of the step, mean of {len(priced)} plans: {means}\n")
