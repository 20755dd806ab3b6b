"""Small models, machines and loads from which tests build instances."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from planner.check import windows_of
from planner.cost.instance import Instance
from planner.cost.step import split_cost
from planner.inputs.constants import Constants
from planner.inputs.deployment import load_kernel
from planner.inputs.documents import validated
from planner.inputs.efficiency import Curve, Efficiency, load_default_efficiency
from planner.inputs.engines import EngineMemory, EngineRules
from planner.inputs.gpu import Gpu
from planner.inputs.kernels import KernelLimits
from planner.inputs.links import Link
from planner.inputs.model import Attention, DenseFfn, Ffn, GroupedAttention, LayerRun, Model, MoeFfn
from planner.inputs.precision import Precision
from planner.inputs.sourced import Sourced
from planner.inputs.topology import Topology, resolve
from planner.inputs.topology_file import TopologyFile
from planner.inputs.units import ComputeRate, Duration, Percentage, Rate, Size
from planner.inputs.workload import Communication, CopyRule, Dedup, Overlap, Phase, Workload
from planner.plan.placement import from_ranks
from planner.plan.plan import PlanInputs, SearchRecord
from planner.plan.split import Split
from planner.rules import Limits
from planner.rules.grid import SearchSpace
from planner.solve.problem import LayerProblem
from planner.trace.homes import CountSource, Homes, Source, Spread, Wanted, count_homes, homes_of
from planner.trace.trace import CountTrace
from planner.trace.windows import TokenSets, Windows

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
FREE = EngineRules(expert_grid="free", attention="any", uneven_experts="always", redundant_experts=True)


def gpu(memory: str = "80 GiB", bf16: str = "10 TFLOP/s", hbm: str = "100 GB/s") -> Gpu:
    """A slow GPU, so that work shows in time."""
    return Gpu(
        name="test-gpu",
        memory=Sourced[Size](value=memory),  # type: ignore[arg-type]
        hbm_bandwidth=Sourced[Rate](value=hbm),  # type: ignore[arg-type]
        compute={"bf16": Sourced[ComputeRate](value=bf16)},  # type: ignore[arg-type]
    )


def topology(
    nodes: int = 1,
    per_node: int = 4,
    *,
    inner: str = "10 GB/s",
    outer: str = "1 GB/s",
    of: Gpu | None = None,
    gpus: int | None = None,
) -> Topology:
    """A machine of equal nodes with two levels of links."""
    links = (
        Link(level="node", bandwidth=Sourced[Rate](value=inner), latency=Sourced[Duration](value="3 us")),  # type: ignore[arg-type]
        Link(level="cluster", bandwidth=Sourced[Rate](value=outer), latency=Sourced[Duration](value="10 us")),  # type: ignore[arg-type]
    )
    file = TopologyFile(gpu=of or gpu(), nodes=nodes, gpus_per_node=per_node, links=links)
    return resolve(file, gpus)


def unequal_topology(seed: int) -> Topology:
    """A random machine of two to four GPUs of two kinds, whose links differ, too; sometimes all is alike."""
    rng = np.random.default_rng(seed)

    def card() -> dict[str, object]:
        return {
            "memory": "80 GiB",
            "hbm_bandwidth": f"{rng.integers(50, 300)} GB/s",
            "compute": {"bf16": f"{rng.integers(5, 40)} TFLOP/s"},
        }

    cards = [card(), card()]
    if rng.random() < 0.3:  # both kinds in one node
        per_node = int(rng.integers(2, 4))
        groups: list[dict[str, object]] = [{"gpus": [cards[int(rng.random() < 0.5)] for _ in range(per_node)]}]
    else:
        sizes = [(1, 1), (2, 2), (2, 1), (1, 3)][rng.integers(4)]
        groups = [{"gpu": cards[i], "gpus_per_node": size} for i, size in enumerate(sizes)]
        if rng.random() < 0.5:
            groups[1]["links"] = [{"level": "node", "bandwidth": f"{rng.integers(1, 40)} GB/s"}]
    between: dict[str, object] = {"level": "cluster", "bandwidth": f"{rng.integers(1, 10)} GB/s", "latency": "10 us"}
    between |= {"shared_by": int(rng.integers(1, 3)), "oversubscription": float(rng.choice([1.0, 1.5, 3.0]))}
    inside = {"level": "node", "bandwidth": f"{rng.integers(1, 40)} GB/s", "latency": "3 us"}
    data: dict[str, object] = {"groups": groups, "links": [inside, between]}
    if rng.random() < 0.5:
        ends = [{"node": 0, "gpu": 0}, {"node": len(groups) - 1, "gpu": 0 if len(groups) > 1 else 1}]
        data["overrides"] = [{"between": ends, "bandwidth": f"{rng.integers(50, 900)} MB/s", "latency": "50 us"}]
    if len(groups) > 1 and groups[1]["gpus_per_node"] == 3:
        data["out_of_service"] = [{"node": 1, "gpus": [1]}]
    return resolve(validated(TopologyFile, data))


def model(
    *,
    experts: int = 8,
    top_k: int = 2,
    layers: int = 2,
    dense_layers: int = 0,
    hidden: int = 64,
    width: int = 96,
    heads: int = 4,
    kv_heads: int = 2,
    groups: int = 1,
    shared: int = 0,
) -> Model:
    """A small decoder: `dense_layers` dense ones first, then MoE layers."""
    attention: Attention = GroupedAttention(num_heads=heads, num_kv_heads=kv_heads, head_dim=16)
    moe: Ffn = MoeFfn(
        num_experts=experts,
        top_k=top_k,
        intermediate_size=width,
        num_groups=groups,
        groups_per_token=groups,
        shared_intermediate_size=shared,
    )
    runs = [LayerRun(count=layers, attention=attention, ffn=moe)]
    if dense_layers:
        dense: Ffn = DenseFfn(intermediate_size=4 * hidden)
        runs.insert(0, LayerRun(count=dense_layers, attention=attention, ffn=dense))
    return Model(name="small", family="mixtral", hidden_size=hidden, vocab_size=128, layers=tuple(runs))


def engine_memory(reserve: str = "1 MiB", share: str = "100%") -> EngineMemory:
    """An engine that takes a constant for itself."""
    line = {"name": "engine reserve", "fixed": reserve, "basis": "assumed", "source": "made by a test"}
    return EngineMemory.model_validate({"share": {"value": share}, "lines": (line,)})


def constants(
    dedup: Dedup = "expert",
    *,
    hides: Overlap = "none",
    overlap: str = "0%",
    reserve: str = "1 MiB",
    kernel: str = "all-to-all",
    copies: CopyRule = "even",
    several: bool = False,
) -> Constants:
    """The shipped constants with another overlap, reserve and kernel, the kernel without limits.

    Args:
        several: whether a second compute kernel begins sooner and works more slowly than each shipped one.
    """
    efficiency: Efficiency = load_default_efficiency().model_copy(
        update={"overlap": Sourced[Percentage](value=overlap)}  # type: ignore[arg-type]
    )
    if several:
        efficiency = efficiency.model_copy(
            update={
                work: {name: (*curves, _sooner(curves[0])) for name, curves in getattr(efficiency, work).items()}
                for work in ("experts", "gemm", "attention_prefill", "attention_decode")
            }
        )
    plain = Precision(experts="bf16", dense="bf16", embedding="bf16", kv_cache="bf16", dispatch="bf16", combine="bf16")
    return Constants(
        precision=plain,
        communication=Communication(kernel=kernel, dedup=dedup, overlap=hides),
        kernel=load_kernel(kernel).model_copy(update={"limits": KernelLimits(), "on": {}}),
        collectives=load_kernel("nccl"),
        small_collectives=load_kernel("vllm-all-reduce"),
        efficiency=efficiency,
        engine_memory=engine_memory(reserve),
        copy_rule=copies,
    )


def _sooner(curve: Curve) -> Curve:
    """A kernel that begins in a third of the time, and reaches half of the rates."""
    r = curve.value
    slower = {"base": r.base / 3, "compute": r.compute / 2, "memory": r.memory / 2, "exponent": 2.0}
    return curve.model_copy(update={"value": r.model_copy(update=slower)})


def counted(counts_SLE: NDArray[np.int64], layer_ids: list[int], top_k: int) -> Windows:
    """Windows from counts."""
    names_S, layer_ids_L = tuple(f"window {index}" for index in range(len(counts_SLE))), np.array(layer_ids, np.int64)
    trace = CountTrace(Path("made by a test"), counts_SLE.shape[2], top_k, layer_ids_L, counts_SLE, names_S)
    tokens_S = np.maximum(counts_SLE[:, 0].sum(axis=1) // top_k, 1)
    return Windows(
        counts_SLE=counts_SLE,
        tokens_S=tokens_S,
        choices_SL=np.full(counts_SLE.shape[:2], float(top_k)),
        layer_ids_L=layer_ids_L,
        names_S=names_S,
        how="made by a test",
        homes=homes_in(CountSource(trace), counts_SLE.shape[1]),
    )


def homes_in(source: Source, layers: int) -> Homes:
    """All windows and layers of one trace, to be counted by home."""
    return Homes((source,), tuple(range(source.num_windows)), tuple(range(layers)))


@dataclass(frozen=True)
class HeldTokens:
    """Every token's choices in memory, in the place of a trace."""

    experts_TLK: NDArray[np.int64]
    window_T: NDArray[np.int32]
    experts: int

    @property
    def num_windows(self) -> int:
        """Windows that the tokens are in."""
        return int(self.window_T.max()) + 1

    def count(self, spread: Spread, wanted: Wanted, keep: NDArray[np.int64]) -> list[NDArray[Any]]:
        """Choices of the wanted experts by home, in some windows."""
        total = [np.zeros((self.num_windows, len(expert_C), spread.ep), dtype=np.int32) for _, expert_C in wanted]
        home_T = homes_of(self.window_T, self.num_windows, spread)
        count_homes(self.experts_TLK, self.window_T, home_T, self.experts, wanted, total)
        return [counts_SCR[keep] for counts_SCR in total]


def routed(experts_TLK: NDArray[np.int64], window_T: NDArray[np.int32], layer_ids: list[int], experts: int) -> Windows:
    """Windows with token sets from every token's choices; tokens sorted by window."""
    windows = int(window_T.max()) + 1
    layers = experts_TLK.shape[1]
    counts = np.zeros((windows, layers, experts), dtype=np.int64)
    for token, window in enumerate(window_T):
        for layer in range(layers):
            np.add.at(counts[window, layer], experts_TLK[token, layer], 1)
    made = counted(counts, layer_ids, experts_TLK.shape[2])
    sets = TokenSets(window_T.astype(np.int32), experts_TLK.astype(np.int32))
    homes = homes_in(HeldTokens(experts_TLK, window_T, experts), layers)
    return replace(made, sets=sets, homes=homes)


def instance(
    of: Model | None = None,
    on: Topology | None = None,
    *,
    phase: Phase = "decode",
    tokens: int = 64,
    context: int = 128,
    windows: Windows | None = None,
    using: Constants | None = None,
) -> Instance:
    """An instance from parts."""
    work = Workload(phase=phase, tokens_per_gpu=tokens, context_length=context)
    return Instance(of or model(), on or topology(), work, using or constants(), windows)


def random_windows(rng: np.random.Generator, of: Model, count: int, tokens: int = 500) -> Windows:
    """Skewed counts for all MoE layers."""
    layers, experts = len(of.moe_layer_ids), of.moe.num_experts
    share = rng.dirichlet(np.full(experts, 0.7), size=(count, layers))
    counts = np.stack([[rng.multinomial(tokens * of.moe.top_k, row) for row in window] for window in share])
    return counted(counts.astype(np.int64), list(of.moe_layer_ids), of.moe.top_k)


def random_sets(rng: np.random.Generator, of: Model, count: int, tokens: int) -> Windows:
    """Skewed token sets for all MoE layers, so many tokens in each window."""
    layers, experts, top_k = len(of.moe_layer_ids), of.moe.num_experts, of.moe.top_k
    score = rng.gumbel(size=(count * tokens, layers, experts)) + 1.5 * rng.standard_normal((layers, experts))
    chosen = np.argsort(-score, axis=2)[:, :, :top_k].astype(np.int64)
    return routed(chosen, np.repeat(np.arange(count, dtype=np.int32), tokens), list(of.moe_layer_ids), experts)


def space(redundant: int | None = 0, **pins: int) -> SearchSpace:
    """Everything allowed, except what is pinned."""
    return SearchSpace(Limits(FREE, "engine", keep_groups=False), pins, redundant)


def keeping_groups(of: SearchSpace) -> SearchSpace:
    """The same with routing groups kept on nodes."""
    return replace(of, limits=replace(of.limits, keep_groups=True))


def inputs_of(made: Instance, of: SearchSpace, gap: float = 0.01, risk: float | None = None) -> PlanInputs:
    """What a plan of this instance and space says about its inputs (no trace files)."""
    redundant: int | Literal["auto"] = "auto" if of.redundant_experts is None else of.redundant_experts
    return PlanInputs(
        name=made.model.name,
        model=made.model,
        topology=made.topology.file,
        gpus=made.topology.num_gpus,
        workload=made.workload,
        cost=made.constants,
        engine=None,
        engine_version=None,
        rules=of.limits.rules,
        keep_groups="node" if of.limits.keep_groups else None,
        target="checkpoint" if of.limits.for_checkpoint else None,
        search=SearchRecord(pins=of.pins, redundant_experts=redundant, gap=gap, seed=0, risk=risk),
        traces=(),
        traced_layer_ids=made.traced_layer_ids if made.windows is not None else (),
        windows=windows_of(made),
    )


def random_placement(rng: np.random.Generator, experts: int, slots_R: NDArray[np.int64]) -> NDArray[np.int64]:
    """One layer's slots, any that are legal: every expert somewhere, none twice on a rank."""
    while True:
        held = [set(rng.choice(experts, count, replace=False).tolist()) for count in slots_R.tolist()]
        for missing in set(range(experts)) - set().union(*held):
            # Take the place of an expert that is held twice, on a rank chosen at random.
            spare = [
                (rank, expert)
                for rank, members in enumerate(held)
                for expert in members
                if sum(expert in other for other in held) > 1
            ]
            if not spare:
                break
            rank, expert = spare[int(rng.integers(len(spare)))]
            held[rank].remove(expert)
            held[rank].add(missing)
        if len(set().union(*held)) == experts:
            return from_ranks([sorted(members) for members in held], int(slots_R.max()))


def uneven_slots(rng: np.random.Generator, total: int, ranks: int, most: int) -> NDArray[np.int64]:
    """A total in random parts, 1 to `most` each."""
    parts = np.ones(ranks, dtype=np.int64)
    while parts.sum() < total:
        parts[rng.choice(np.flatnonzero(parts < most))] += 1
    return parts


def random_layer(seed: int, dedup: Dedup, *, recorded: bool = False, unequal: bool = False) -> LayerProblem:
    """One layer of a random machine (unequal: of different GPUs and links), model, split and routing."""
    rng = np.random.default_rng(seed)
    nodes, per_node = ((1, 2), (1, 4), (2, 2), (3, 2), (2, 3))[rng.integers(5)]
    on = topology(nodes, per_node, inner=f"{rng.integers(2, 40)} GB/s", outer=f"{rng.integers(1, 10)} GB/s")
    if unequal:
        on = unequal_topology(seed)
    gpus, experts, top_k = on.num_gpus, int(rng.integers(4, 9)), int(rng.integers(1, 4))
    of = model(experts=experts, top_k=top_k, layers=1, hidden=64 * int(rng.integers(1, 4)))
    if recorded:
        window_T = np.sort(rng.integers(0, 3, 60)).astype(np.int32)
        window_T[:3] = [0, 1, 2]
        chosen = (rng.random((60, 1, experts)) * rng.dirichlet(np.ones(experts))).argsort(axis=2)[:, :, -top_k:]
        windows = routed(chosen, np.sort(window_T), [0], experts)
    else:
        windows = random_windows(rng, of, 3)
    hides: Overlap = rng.choice(["none", "shared", "two_batch"])
    using = constants(dedup, hides=hides, overlap="60%")
    made = instance(of, on, tokens=int(rng.integers(1, 2000)), windows=windows, using=using)
    etp = 2 if gpus % 2 == 0 and gpus > 2 and rng.random() < 0.3 else 1
    edp = 2 if gpus // etp % 2 == 0 and gpus // etp > 2 and rng.random() < 0.3 else 1
    ep = gpus // etp // edp
    redundant = max(ep - experts, int(rng.integers(0, 1 + min(4, ep * experts - experts))))
    split = Split(tp=1, dp=gpus, pp=1, ep=ep, etp=etp, edp=edp)
    slots_KR = [uneven_slots(rng, experts + redundant, ep, experts)] if unequal else None
    cost = split_cost(made, split, redundant, None, slots_KR)
    return LayerProblem(cost.stages[0].moe, made.loads[0], cost.stages[0].slots_R)
