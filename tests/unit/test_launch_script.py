"""Launch scripts: rank order and nodes of the plan, quoted, and nothing that falls back to a smaller run."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from planner.errors import UsageError
from planner.inputs.documents import validated
from planner.inputs.topology import resolve
from planner.inputs.topology_file import TopologyFile
from planner.measure.script import Launch, Launcher, launch_script
from planner.measure.seats import Seating
from planner.plan.plan import Plan, SplitRecord, StageRecord

CARD = {"memory": "80 GiB", "hbm_bandwidth": "100 GB/s", "compute": {"bf16": "10 TFLOP/s"}}
LINKS = [
    {"level": "node", "bandwidth": "10 GB/s", "latency": "3 us"},
    {"level": "cluster", "bandwidth": "1 GB/s", "latency": "9 us"},
]
NASTY = '/plans/it\'s $HOME; rm -rf "x"/plan.json'


class Inputs:
    topology = validated(
        TopologyFile,
        {
            "groups": [
                {"gpu": CARD, "nodes": 1, "gpus_per_node": 4},
                {"gpu": CARD, "nodes": 1, "gpus_per_node": 2},
            ],
            "links": LINKS,
            "out_of_service": [{"node": 0, "gpus": [1]}],
        },
    )
    machine = resolve(topology, 5)


def launch(plan: str = "/plans/plan.json", hosts: tuple[str, ...] = ("a", "b"), image: str | None = "i:1") -> Launch:
    split = SplitRecord(tp=1, dp=5, pp=1, ep=5)
    stages = (StageRecord(layers=(0, 2), gpus=(0, 1, 2, 3, 4)),)
    made = Plan.model_construct(split=split, stages=stages, inputs=Inputs())  # type: ignore[arg-type, call-arg]
    return Launch(Seating(made), (plan, "--device", "cuda"), hosts, image)


def test_the_topology_numbers_gpus_in_service() -> None:
    assert resolve(Inputs.topology, 5).local_G.tolist() == [0, 2, 3, 0, 1]
    assert launch().gpus_of == [[0, 2, 3], [0, 1]]


@pytest.mark.parametrize("launcher", ["torchrun", "slurm", "kubernetes"])
def test_ranks_nodes_and_gpus(launcher: Launcher) -> None:
    text = launch_script(launcher, launch())
    assert "node 0 (a): ranks 0..2 on GPUs 0,2,3" in text
    assert "node 1 (b): ranks 3..4 on GPUs 0,1" in text
    assert 'gpus_of=("0,2,3" "0,1")' in text
    assert "ranks_of=(3 2)" in text
    assert "--worker" in text
    assert "localhost" not in text
    assert "127.0.0.1" not in text


def script_of(launcher: Launcher, plan: str) -> str:
    text = launch_script(launcher, launch(plan))
    if launcher != "kubernetes":
        return text
    _, job = yaml.safe_load_all(text)
    assert (job["spec"]["completions"], job["spec"]["completionMode"]) == (2, "Indexed")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "i:1"
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 3}
    return "#!/usr/bin/env bash\n" + str(container["args"][0])


@pytest.mark.parametrize("plan", ["/plans/plan.json", NASTY])
@pytest.mark.parametrize("launcher", ["torchrun", "slurm", "kubernetes"])
def test_scripts_are_sound_shell(launcher: Launcher, plan: str, tmp_path: Path) -> None:
    path = tmp_path / "launch.sh"
    path.write_text(script_of(launcher, plan))
    subprocess.run(["bash", "-n", str(path)], check=True)
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed: only bash has read the script")
    expected = ["--exclude=SC2016"] if plan == NASTY else []  # a dollar sign in single quotes is meant
    done = subprocess.run(["shellcheck", *expected, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def started(folder: Path, launcher: Launcher, node: str) -> subprocess.CompletedProcess[str]:
    """A script run on one node, with a stand-in for torchrun that prints its arguments."""
    (folder / "torchrun").write_text('#!/bin/sh\nprintf "%s\\n" "$CUDA_VISIBLE_DEVICES" "$@"\n')
    (folder / "torchrun").chmod(0o755)
    (folder / "launch.sh").write_text(script_of(launcher, NASTY))
    environment = {"PATH": f"{folder}:/usr/bin:/bin", "JOB_COMPLETION_INDEX": node}
    command = ["bash", str(folder / "launch.sh"), node]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("launcher", "first"), [("torchrun", "a"), ("kubernetes", "ep-plan-validate-0.ep-plan-validate")]
)
def test_words_reach_the_program_as_they_are(tmp_path: Path, launcher: Launcher, first: str) -> None:
    done = started(tmp_path, launcher, "1")
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()
    assert words[0] == "0,1"
    assert {"--nnodes=2", "--node-rank=1", "--nproc-per-node=2", f"--master-addr={first}"} <= set(words)
    assert "--max-restarts=0" in words
    assert NASTY in words
    assert words[-2:] == ["--rendezvous", f"{first}:29500"]


@pytest.mark.parametrize("wrong", ["2", "x", "-1"])
def test_a_node_that_the_plan_does_not_have(tmp_path: Path, wrong: str) -> None:
    failed = started(tmp_path, "torchrun", wrong)
    assert failed.returncode == 2
    assert "the plan has nodes 0..1" in failed.stderr


@pytest.mark.parametrize("plan", ["/plans/a\nreboot.json", "/plans/caf\udce9.json", "/plans/a\u2028b.json"])
@pytest.mark.parametrize("launcher", ["torchrun", "slurm", "kubernetes"])
def test_paths_that_no_comment_and_no_yaml_can_hold_are_refused(launcher: Launcher, plan: str) -> None:
    with pytest.raises(UsageError, match="cannot stand in a script"):
        launch_script(launcher, launch(plan))


def test_the_slurm_script_starts_every_rank_on_its_host_with_its_gpus(tmp_path: Path) -> None:
    """The script run with stand-ins: srun starts each task as the host file says, with its variables."""
    (tmp_path / "scontrol").write_text('#!/bin/sh\nprintf "%s\\n" "x-1" "x-2"\n')
    (tmp_path / "srun").write_text(
        "#!/usr/bin/env bash\n"
        'while [[ "$1" == -* ]]; do shift; done\n'
        'node=-1 last=""\n'
        "while read -r host; do\n"
        '  [[ "$host" == "$last" ]] || node=$((node + 1))\n'
        '  last=$host; echo "host $host"; SLURM_NODEID=$node "$@"\n'
        'done <"$SLURM_HOSTFILE"\n'
    )
    (tmp_path / "ep-plan").write_text('#!/bin/sh\nprintf "%s|" "$CUDA_VISIBLE_DEVICES" "$@"; echo\n')
    for name in ("scontrol", "srun", "ep-plan"):
        (tmp_path / name).chmod(0o755)
    (tmp_path / "launch.sh").write_text(script_of("slurm", NASTY))
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_NODELIST": "x-[1-2]"}
    done = subprocess.run(
        ["bash", str(tmp_path / "launch.sh")], env=environment, capture_output=True, text=True, check=True
    )
    said = f"|validate|{NASTY}|--device|cuda|--worker|--rendezvous|x-1:29500|"
    expected = [("x-1", "0,2,3")] * 3 + [("x-2", "0,1")] * 2
    assert done.stdout.splitlines() == [line for host, gpus in expected for line in (f"host {host}", gpus + said)]


@pytest.mark.parametrize(
    ("launcher", "hosts", "image", "words"),
    [
        ("torchrun", (), None, "needs --hosts"),
        ("torchrun", ("a",), None, "names 1 hosts, the plan has 2 nodes"),
        ("slurm", ("a", "$(reboot)"), None, "no host name"),
        ("slurm", ("a", "-Mother"), None, "no host name"),
        ("torchrun", ("a", "b\udcff"), None, "no host name"),
        ("kubernetes", (), "image:1\nhostNetwork: true", "cannot stand in a script"),
        ("kubernetes", (), None, "needs --image"),
    ],
)
def test_what_is_missing_is_not_guessed(
    launcher: Launcher, hosts: tuple[str, ...], image: str | None, words: str
) -> None:
    with pytest.raises(UsageError, match=words.replace("$", r"\$")):
        launch_script(launcher, launch(hosts=hosts, image=image))
