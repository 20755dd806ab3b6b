"""Launches: golden texts, what a shell makes of them, engines' argument rules, refusals by name."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from planner import __version__
from planner.errors import InputError, UsageError
from planner.export.fits import check_version
from planner.export.launch.options import LaunchOptions, address
from planner.export.launch.slurm import segment_nodes
from planner.export.launch.write import gpus_started, launch_text
from planner.export.layout import Layout
from planner.export.table import LAUNCHES
from planner.inputs.links import Link
from planner.inputs.topology import resolve
from planner.inputs.topology_file import TopologyFile
from planner.plan.placement import Placement, linear, slots_of_ranks
from planner.plan.split import Split
from tests import building
from tests.unit.export.layouts import SEEDS, random_layout

SCRIPTS = [name for name in LAUNCHES if name != "kubernetes"]
HOSTILE = "a b'c\"d$(touch /tmp/ep-plan-was-here)`id`;&|<>*?[x]\\n#~!é"
HOSTS = tuple(f"h{number} $(id)'\"`;" for number in range(4))


def layout(
    split: Split, *, nodes: int = 2, experts: int = 16, copies: int = 0, layers: int = 4, dense: int = 0, **more: Any
) -> Layout:
    """Nodes of equal size, experts placed in reverse, or linearly."""
    model = building.model(experts=experts, layers=layers - dense, dense_layers=dense, heads=16, kv_heads=16)
    gpus = split.pp * split.stage_gpus
    slots_R = slots_of_ranks(experts + copies, split.ep)
    row = linear(experts, slots_R)
    placed = row if more.pop("linear_rows", False) else experts - 1 - row
    placement = Placement(model.moe_layer_ids, int(slots_R.max()), np.tile(placed, (layers - dense, 1)))
    ids = np.arange(gpus).reshape(split.pp, -1).tolist()
    per = layers // split.pp
    return Layout(
        split=split,
        cuts=tuple(range(k * per, layers if k == split.pp - 1 else (k + 1) * per) for k in range(split.pp)),
        gpus=tuple(map(tuple, ids)),
        model=model,
        topology=building.topology(nodes, gpus // nodes),
        placement=placement,
        redundant_experts=copies,
        **more,
    )


def options(nodes: int = 2, **changes: Any) -> LaunchOptions:
    given = {
        "model": "models/x",
        "hosts": tuple(f"node{n}" for n in range(nodes)) if nodes > 1 else (),
        "map_path": "map.json",
    }
    return LaunchOptions(**{**given, "image": "registry/image:1", "program": ("train.py", "--steps", "10"), **changes})


def text_of(name: str, of: Layout, given: LaunchOptions, version: str | None = None) -> str:
    return launch_text(of, name, given, check_version(name, LAUNCHES[name], version))


SERVED = layout(Split(1, 16, 1, 16), copies=16, kernel="deepep-normal")
PIPED = layout(Split(2, 2, 2, 4), layers=5, dense=1, linear_rows=True)
GOLDEN: dict[str, tuple[Layout, str | None]] = {
    "launch-vllm": (SERVED, "pr-41141"),
    "launch-vllm-ascend": (SERVED, None),
    "launch-sglang": (SERVED, None),
    "launch-tensorrt-llm": (SERVED, None),
    "launch-megatron": (PIPED, None),
    "torchrun": (PIPED, None),
    "slurm": (PIPED, None),
    "kubernetes": (PIPED, None),
}
GOLDEN_FOLDER = Path(__file__).resolve().parent / "golden"


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(name: str) -> None:
    """The whole text; after a wanted change copy what the assertion shows, and read it."""
    of, version = GOLDEN[name]
    text = text_of(name, of, options(), version)
    expected = GOLDEN_FOLDER / f"{name}{LAUNCHES[name].suffix}"
    assert text.replace(__version__, "VERSION") == expected.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("hostile", [False, True])
def test_shellcheck_is_content(name: str, hostile: bool, tmp_path: Path) -> None:
    shellcheck = shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed: scripts are not linted")
    of, version = GOLDEN[name]
    given = options(model=HOSTILE, hosts=HOSTS[:2], map_path=HOSTILE) if hostile else options()
    file = tmp_path / "launch.sh"
    file.write_text(text_of(name, of, given, version), encoding="utf-8")
    done = subprocess.run([shellcheck, "--severity=style", file], capture_output=True, encoding="utf-8", check=False)
    assert (done.returncode, done.stdout) == (0, "")


STUB = """import json, os, sys
names = ("CUDA_VISIBLE_DEVICES", "ASCEND_RT_VISIBLE_DEVICES", "VLLM_PP_LAYER_PARTITION", "SGLANG_PP_LAYER_PARTITION",
         "MASTER_ADDR", "MASTER_PORT")
argv = sys.argv[1:]
print(json.dumps({"argv": argv, "env": {name: os.environ[name] for name in names if name in os.environ}}))
"""


def run_script(text: str, folder: Path, *arguments: str, stubs: tuple[str, ...] = ()) -> Any:
    """What the script's command is called with, by a real shell."""
    tools = folder / "tools"
    tools.mkdir(exist_ok=True)
    (folder / "stub.py").write_text(STUB, encoding="utf-8")
    # This interpreter by its own path: python3 on the PATH may be a shim that goes by the name it is called with.
    tell = f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(folder / "stub.py"))} "$0" "$@"\n'
    for name in ("vllm", "python3", "torchrun", "mpirun", "trtllm-serve", "srun", "scontrol", *stubs):
        (tools / name).write_text("#!/bin/sh\necho first; echo second\n" if name == "scontrol" else tell)
        (tools / name).chmod(0o755)
    script = folder / "launch.sh"
    script.write_text(text, encoding="utf-8")
    env = {"PATH": f"{tools}:/usr/bin:/bin", "SLURM_JOB_NODELIST": "x[0-1]", "LANG": "C.UTF-8", "PYTHONUTF8": "1"}
    done = subprocess.run(
        ["bash", script, *arguments], cwd=folder, env=env, capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def flag(argv: list[str], name: str) -> str:
    """The value of a flag, 1 if it is not there."""
    return argv[argv.index(name) + 1] if name in argv else "1"


@pytest.mark.parametrize("name", ["launch-vllm", "launch-vllm-ascend", "launch-sglang", "launch-tensorrt-llm"])
def test_hostile_names_arrive_whole(name: str, tmp_path: Path) -> None:
    of, version = GOLDEN[name]
    text = text_of(name, of, options(model=HOSTILE, hosts=HOSTS[:2], map_path=HOSTILE), version)
    nodes = [[]] if name == "launch-tensorrt-llm" else [["0"], ["1"]]
    for node in nodes:
        called = run_script(text, tmp_path, *node, "--extra flag", "$HOME")
        argv = called["argv"]
        assert HOSTILE in argv
        assert argv[-2:] == ["--extra flag", "$HOME"]
        assert any(HOSTS[0] in word for word in argv)
    if name == "launch-tensorrt-llm":
        config = yaml.safe_load((tmp_path / "ep-plan.trtllm.yaml").read_text())
        assert config["moe_config"]["load_balancer"] == HOSTILE
    elif name == "launch-sglang":
        assert flag(argv, "--init-expert-location") == HOSTILE
    else:
        config = json.loads(flag(argv, "--eplb-config" if name == "launch-vllm" else "--additional-config"))
        assert HOSTILE in config.get("eplb_config", config).values()
    assert not Path("/tmp/ep-plan-was-here").exists()


def test_control_characters_are_refused() -> None:
    for bad in ("a\nb", "", "a\x00b", "\x1b[31m", "--flag"):
        with pytest.raises(UsageError, match="control characters"):
            LaunchOptions(model=bad).check()
        with pytest.raises(UsageError, match="control characters"):
            LaunchOptions(hosts=(bad,)).check()
    with pytest.raises(UsageError, match="stands twice"):
        LaunchOptions(hosts=("a", "a")).check()


def test_names_that_only_the_user_knows_must_be_given() -> None:
    one = layout(Split(1, 4, 1, 4), nodes=1, linear_rows=True)
    with pytest.raises(UsageError, match="--model is needed"):
        text_of("launch-vllm", one, LaunchOptions())
    with pytest.raises(UsageError, match="0 hosts given, the plan runs on 2 nodes"):
        text_of("torchrun", PIPED, LaunchOptions())
    with pytest.raises(UsageError, match="--map is needed"):
        text_of("launch-sglang", SERVED, options(map_path=None))
    with pytest.raises(UsageError, match="--image and --program"):
        text_of("kubernetes", PIPED, options(image=None))
    with pytest.raises(UsageError, match="nobody has compared"):
        text_of("launch-vllm", SERVED, options(), "0.12.0")


# --- the engines' own rules, written down once more ------------------------------------------------------


def vllm_rules(called: list[Any], of: Layout) -> None:
    """EP = TP x DP or 1; ranks are numbered replica, stage, shard; each node says which replicas it runs."""
    seen: dict[int, tuple[int, int]] = {}
    for node, one in enumerate(called):
        argv, devices = one["argv"], one["env"].get("CUDA_VISIBLE_DEVICES") or one["env"]["ASCEND_RT_VISIBLE_DEVICES"]
        tp, pp, dp = (int(flag(argv, f"--{n}-parallel-size")) for n in ("tensor", "pipeline", "data"))
        assert (tp, pp, dp) == (of.split.tp, of.split.pp, of.split.dp)
        assert ("--enable-expert-parallel" in argv) == (of.split.ep > 1)
        assert of.split.ep in (1, tp * dp)
        start = int(flag(argv, "--data-parallel-start-rank")) if "--data-parallel-start-rank" in argv else 0
        local = int(flag(argv, "--data-parallel-size-local")) if "--data-parallel-size-local" in argv else dp
        first, count = start * tp * pp, local * tp * pp
        if "--nnodes" in argv:
            assert dp == 1
            count = tp * pp // int(flag(argv, "--nnodes"))
            first = int(flag(argv, "--node-rank")) * count
        assert len(devices.split(",")) == count
        assert ("--headless" in argv) == (node > 0)
        seen |= {first + index: (node, int(device)) for index, device in enumerate(devices.split(","))}
    for rank, (_, device) in seen.items():
        replica, rest = divmod(rank, of.split.pp * of.split.tp)
        stage, shard = divmod(rest, of.split.tp)
        gpu = of.gpus[stage][replica * of.split.tp + shard]
        assert of.topology.local_G[gpu] == device
    assert len(seen) == of.num_gpus


def sglang_rules(called: list[Any], of: Layout) -> None:
    """tp is the width of a stage; ep x moe_dp divides it; dp attention divides it; DeepEP needs ep = tp."""
    ranks = []
    for node, one in enumerate(called):
        argv = one["argv"]
        tp, pp, ep, dp = (int(flag(argv, f"--{n}-size")) for n in ("tp", "pp", "ep", "dp"))
        moe_dp, nodes = int(flag(argv, "--moe-dp-size")), int(flag(argv, "--nnodes"))
        assert ep * moe_dp <= tp
        assert tp % (ep * moe_dp) == 0
        assert ep == 1 or moe_dp == 1 or ep * moe_dp == tp
        assert tp % dp == 0
        assert (dp > 1) == ("--enable-dp-attention" in argv)
        assert (tp * pp) % nodes == 0
        assert (tp, pp, ep, dp) == (of.split.stage_gpus, of.split.pp, of.split.ep, of.split.dp)
        if flag(argv, "--moe-a2a-backend") == "deepep":
            assert ep == tp
        assert nodes == 1 or int(flag(argv, "--node-rank")) == node
        ranks += [(node, int(device)) for device in one["env"]["CUDA_VISIBLE_DEVICES"].split(",")]
        if "--init-expert-location" in argv:
            redundant = int(flag(argv, "--ep-num-redundant-experts")) if of.redundant_experts else 0
            assert (of.num_experts + redundant) % ep == 0
    assert [device for _, device in ranks] == [of.topology.local_G[gpu] for gpu in of.ranks]


def tensorrt_rules(called: list[Any], of: Layout, config: dict[str, Any]) -> None:
    """moe_tp x moe_ep = tp; attention data parallel or not at all; the world is tp x pp."""
    argv = called[0]["argv"]
    tp, pp, ep = (int(flag(argv, f"--{n}_size")) for n in ("tp", "pp", "ep"))
    assert config["moe_tensor_parallel_size"] * config["moe_expert_parallel_size"] == tp
    assert config["moe_expert_parallel_size"] == ep == of.split.ep
    assert config["enable_attention_dp"] == (of.split.dp > 1)
    assert of.split.dp in (1, tp)
    assert tp * pp == of.num_gpus
    if argv[0].endswith("mpirun"):
        assert (
            int(flag(argv, "-np"))
            == tp * pp
            == sum(int(slot.rpartition(":")[2]) for slot in flag(argv, "--host").split(","))
        )
    if "moe_config" in config:
        assert ep > 1
        assert config["enable_attention_dp"]


def megatron_rules(called: list[Any], of: Layout) -> None:
    """world % (TP PP) = 0, world % (ETP EP PP) = 0, experts % EP = 0; the layout names every layer once."""
    world = 0
    for node, one in enumerate(called):
        argv = one["argv"]
        world += int(flag(argv, "--nproc-per-node"))
        assert int(flag(argv, "--node-rank")) == node
        assert int(flag(argv, "--nnodes")) == len(called)
    tp, pp = int(flag(argv, "--tensor-model-parallel-size")), int(flag(argv, "--pipeline-model-parallel-size"))
    ep, etp = int(flag(argv, "--expert-model-parallel-size")), int(flag(argv, "--expert-tensor-parallel-size"))
    assert world == of.num_gpus
    assert world % (tp * pp) == 0
    assert world % (etp * ep * pp) == 0
    assert int(flag(argv, "--num-experts")) % ep == 0
    if pp > 1:
        text = flag(argv, "--pipeline-model-parallel-layout")
        assert re.fullmatch(r"E(t\*\d+\|)*t\*\d+L", text)
        assert [int(n) for n in re.findall(r"t\*(\d+)", text)] == [len(cut) for cut in of.cuts]


def calls(text: str, of: Layout, folder: Path, nodes: int, *arguments: str) -> list[Any]:
    if nodes == 1:
        return [run_script(text, folder, *arguments)]
    return [run_script(text, folder, str(node), *arguments) for node in range(nodes)]


def engine_layout(seed: int) -> Layout:
    """A random layout of a split that engines are likely to run, nodes of 2 or 4 GPUs."""
    rng = np.random.default_rng(seed)
    stage, pp = int(rng.choice([2, 4, 8])), int(rng.choice([1, 1, 2]))
    tp = int(rng.choice([d for d in (1, 2, 4, 8) if stage % d == 0]))
    ep = int(rng.choice([stage, stage, stage // 2, 1]))
    etp = int(rng.choice([1, stage // ep]))
    split = Split(tp, stage // tp, pp, ep, etp, stage // ep // etp, pp)
    layers = int(rng.integers(max(2, pp), 7))
    copies = int(rng.choice([0, ep])) if ep > 1 else 0
    nodes = int(rng.choice([n for n in (1, 2, 4) if stage * pp % n == 0]))
    made = layout(split, nodes=nodes, copies=copies, layers=layers, linear_rows=bool(rng.random() < 0.5 and not copies))
    return replace(made, kernel=str(rng.choice(["deepep-normal", "deepep-low-latency", "nccl"])))


@pytest.mark.parametrize(
    "name", ["launch-vllm", "launch-vllm-ascend", "launch-sglang", "launch-tensorrt-llm", "launch-megatron"]
)
def test_engines_take_what_is_written(name: str, tmp_path: Path) -> None:
    """Over random plans: the engine's rules hold for what a shell really passes, and GPU counts are the plan's."""
    outcomes: Counter[str] = Counter()
    for seed in range(60):
        of = engine_layout(seed)
        if name == "launch-vllm" and seed % 2:
            of = replace(of, for_checkpoint=not of.redundant_experts)
        nodes = of.topology.num_nodes
        try:
            version = "pr-49572" if name == "launch-vllm" and of.redundant_experts else None
            text = text_of(name, of, options(nodes), version)
        except InputError:
            outcomes["refused"] += 1
            continue
        outcomes["written"] += 1
        assert gpus_started(name, text) == of.num_gpus
        if outcomes["written"] > 12:
            continue  # enough shells
        if name == "launch-tensorrt-llm":
            called = [run_script(text, tmp_path)]
            tensorrt_rules(called, of, yaml.safe_load((tmp_path / "ep-plan.trtllm.yaml").read_text()))
            continue
        called = calls(text, of, tmp_path, nodes, *(["pretrain.py"] if name == "launch-megatron" else []))
        rules: dict[str, Callable[[list[Any], Layout], None]] = {
            "launch-sglang": sglang_rules,
            "launch-megatron": megatron_rules,
        }
        rules.get(name, vllm_rules)(called, of)
    assert outcomes["written"] >= 8
    assert outcomes["refused"] >= 3


@pytest.mark.parametrize("name", ["torchrun", "slurm", "kubernetes"])
def test_gpu_counts_are_the_plans_over_random_plans(name: str) -> None:
    outcomes: Counter[str] = Counter()
    for seed in SEEDS:
        of = random_layout(seed)
        try:
            text = text_of(name, of, options(of.topology.num_nodes))
        except InputError:
            outcomes["refused"] += 1
            continue
        outcomes["written"] += 1
        assert gpus_started(name, text) == of.num_gpus
    assert outcomes["written"] >= 50
    assert outcomes["refused"] >= 5  # ranks of a node that are not consecutive


def test_torchrun_passes_the_program_on(tmp_path: Path) -> None:
    text = text_of("torchrun", PIPED, options())
    second = run_script(text, tmp_path, "1", "train.py", "--x", "a b")
    assert second["argv"][-3:] == ["train.py", "--x", "a b"]
    assert second["env"]["CUDA_VISIBLE_DEVICES"] == "0,1,2,3"
    assert flag(second["argv"], "--master-addr") == "node0"


def test_slurm_meets_at_the_first_host_of_the_allocation(tmp_path: Path) -> None:
    called = run_script(text_of("slurm", PIPED, options()), tmp_path, "train.py", "a b")
    assert called["env"]["MASTER_ADDR"] == "first"
    assert called["argv"][-3:] == ["ep-plan", "train.py", "a b"]
    assert "--ntasks=8" in called["argv"]
    inner = called["argv"][called["argv"].index("-c") + 1]
    task = {"SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NTASKS": "8", "PATH": "/usr/bin:/bin"}
    shell = ["bash", "-c", inner, "ep-plan", "bash", "-c", 'echo "$RANK $LOCAL_RANK $WORLD_SIZE"']
    assert subprocess.run(shell, env=task, capture_output=True, encoding="utf-8", check=True).stdout == "5 1 8\n"


def test_slurm_asks_for_nodes_of_one_block() -> None:
    """An all-to-all group in a rack of 4 nodes must not lie across two racks."""
    links: Any = [
        {"level": "node", "bandwidth": "10 GB/s", "latency": "1 us"},
        {"level": "rack", "nodes": 4, "bandwidth": "10 GB/s", "latency": "1 us"},
        {"level": "cluster", "bandwidth": "1 GB/s", "latency": "10 us"},
    ]
    file = TopologyFile(
        gpu=building.gpu(),
        nodes=8,
        gpus_per_node=2,
        links=tuple(Link.model_validate_json(json.dumps(one)) for one in links),
    )
    racks = resolve(file)
    inside = replace(layout(Split(1, 8, 2, 8, 1, 1, 2), nodes=8, linear_rows=True), topology=racks)
    assert segment_nodes(inside) == 4
    assert "#SBATCH --segment=4\n" in text_of("slurm", inside, options(8))
    across = replace(layout(Split(1, 16, 1, 16), nodes=8, linear_rows=True), topology=racks)
    assert segment_nodes(across) == 1


def test_stock_vllm_refuses_what_it_cannot_load() -> None:
    with pytest.raises(InputError, match="loads no static placement") as error:
        text_of("launch-vllm", SERVED, options())
    assert "target: checkpoint" in error.value.problems[0].hint
    permuted = replace(layout(Split(1, 8, 1, 8)), for_checkpoint=True)
    assert "--expert-placement-strategy linear" in text_of("launch-vllm", permuted, options())


def test_a_replica_on_several_nodes_is_refused() -> None:
    wide = layout(Split(4, 2, 1, 8), nodes=4, linear_rows=True)
    with pytest.raises(InputError, match="lies on several nodes"):
        text_of("launch-vllm", wide, options(4))


def test_ranks_that_leave_a_node_and_come_back_are_refused() -> None:
    mixed = replace(PIPED, gpus=((0, 4, 1, 5), (2, 3, 6, 7)))
    with pytest.raises(InputError, match="go back to a node"):
        text_of("torchrun", mixed, options())


@pytest.mark.parametrize("name", ["launch-vllm", "launch-vllm-ascend"])
def test_what_keeps_the_stages_of_a_replica_together(name: str) -> None:
    """Stages on nodes of their own are what vLLM's order crosses; without stages or without replicas it does not."""
    crossed = layout(Split(1, 8, 2, 8, 1, 1, 2), linear_rows=True)
    assert [set(crossed.topology.node_G[list(stage)].tolist()) for stage in crossed.gpus] == [{0}, {1}]
    with pytest.raises(InputError, match="go back to a node") as error:
        text_of(name, crossed, options())
    assert "solve with split: {pp: 1} or {dp: 1}" in error.value.problems[0].hint
    for split in (Split(1, 16, 1, 16), Split(8, 2, 1, 16), Split(8, 1, 2, 8, 1, 1, 2), Split(16, 1, 1, 16)):
        assert "vllm serve" in text_of(name, layout(split, linear_rows=True), options())


def test_unequal_stages_are_refused_where_they_cannot_be_said() -> None:
    cuts = replace(layout(Split(1, 4, 2, 4, 1, 1, 2), linear_rows=True), cuts=(range(3), range(3, 4)))
    with pytest.raises(InputError, match=r"stages of \[3, 1\] layers"):
        text_of("launch-tensorrt-llm", cuts, options())
    assert "VLLM_PP_LAYER_PARTITION=3,1" in text_of("launch-vllm", layout_on_nodes(cuts), options(1))
    assert "SGLANG_PP_LAYER_PARTITION=3,1" in text_of("launch-sglang", cuts, options())


def layout_on_nodes(of: Layout) -> Layout:
    """The same on one node: vLLM's replicas then lie on no two."""
    return replace(of, topology=building.topology(1, of.num_gpus))


def test_heads_count_by_the_attention_that_the_config_asks_for() -> None:
    """16 data-parallel GPUs with 12 heads: fine, though 12 do not divide by 16."""
    model = building.model(experts=16, layers=4, heads=12, kv_heads=12)
    odd = replace(layout(Split(1, 16, 1, 16), linear_rows=True), model=model)
    assert "enable_attention_dp: true" in text_of("launch-tensorrt-llm", odd, options())
    sharded = replace(layout(Split(16, 1, 1, 16), linear_rows=True), model=model)
    with pytest.raises(InputError, match="12 attention heads mod tp 16"):
        text_of("launch-sglang", sharded, options())


def test_kubernetes_keeps_names_whole() -> None:
    program = ("train.py", "$(cat /etc/passwd)", "a: b # c")
    text = text_of("kubernetes", PIPED, options(image=HOSTILE, program=program))
    service, job = yaml.safe_load_all(text)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["image"] == HOSTILE
    assert container["command"][-2:] == ["$$(cat /etc/passwd)", "a: b # c"]  # `$$(` is Kubernetes' own quoting
    assert job["spec"]["completions"] == 2
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}


def test_addresses() -> None:
    assert address("node0", 5) == "node0:5"
    assert address("fe80::1", 5) == "[fe80::1]:5"
    assert address("[fe80::1]", 5) == "[fe80::1]:5"


def test_a_launch_that_starts_other_gpus_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planner.export.launch.sglang.joined", lambda devices: ",".join(map(str, devices[:-1])))
    with pytest.raises(AssertionError, match="14 GPUs are started, the plan has 16"):
        text_of("launch-sglang", SERVED, options())
