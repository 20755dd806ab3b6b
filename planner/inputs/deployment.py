"""The deployment file: which model, machine, traces and work, and what to solve for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from planner.errors import InputError, Problem, ProblemLog, UsageError
from planner.inputs import documents, profiles
from planner.inputs.documents import Frozen
from planner.inputs.efficiency import Efficiency, load_default_efficiency
from planner.inputs.engines import EngineFile, EngineMemory, EngineName, Share, load_engine
from planner.inputs.kernels import KernelFile, KernelName, as_used, on_machine
from planner.inputs.model import Model
from planner.inputs.model_files import model_of
from planner.inputs.named_files import (
    OPTIONS,
    named_in,
    topology_of,
    trace_paths,
)
from planner.inputs.precision import ActivationName, Precision, WeightName
from planner.inputs.strict_yaml import read_yaml
from planner.inputs.topology import Topology
from planner.inputs.units import Duration, Percentage
from planner.inputs.workload import Communication, CopyRule, Dedup, Overlap, Workload

LIMIT_DEGREE: Final = 1 << 16
LIMIT_COPIES: Final = 1 << 16
Degree = Annotated[int, Field(ge=1, le=LIMIT_DEGREE)]


class PrecisionSection(Frozen):
    """`precision:` of a deployment; what is left out comes from the model."""

    weights: WeightName | None = None
    """Format of experts and of dense weights; embeddings and LM head stay as they are."""
    experts: WeightName | None = None
    """Format of expert weights alone; default: `weights`, else the model's."""
    dense: WeightName | None = None
    """Format of attention, dense and shared weights alone; default: `weights`, else the model's."""
    kv_cache: Literal["fp32", "bf16", "fp8"] | None = None
    """Format of the KV cache; default bf16 (fp32 for fp32 models)."""
    dispatch: ActivationName | None = None
    """Format of tokens on the way to experts; default fp8 for 8-bit experts, else the model's activations."""
    combine: ActivationName | None = None
    """Format of results on the way back; default: the model's activations."""


class CommunicationSection(Frozen):
    """`communication:` of a deployment; what is left out comes from engine and phase."""

    kernel: KernelName | None = None
    """A kernel profile; default: the engine's for this phase, without engine all-to-all."""
    dedup: Dedup | None = None
    """Which copies of a token are sent: one per expert, GPU or node; default: the kernel's for this phase."""
    overlap: Overlap | None = None
    """What traffic hides behind: none, the shared experts, or (two_batch) the other of two micro-batches;
    default: the engine's for this phase."""
    copies: CopyRule | None = None
    """How copies of an expert share its tokens: even, or nearest (own rank, else own node, else evenly);
    default: the engine's. Where all tokens come to every rank, always even."""


class SplitPins(Frozen):
    """`solve.split:` pins any of the degrees."""

    tp: Degree | None = None
    """Tensor-parallel attention ranks."""
    dp: Degree | None = None
    """Data-parallel attention ranks."""
    pp: Degree | None = None
    """Pipeline stages."""
    ep: Degree | None = None
    """Ranks that the experts of a stage are spread over."""
    etp: Degree | None = None
    """GPUs that share each expert."""
    edp: Degree | None = None
    """Copies of the whole expert grid in a stage."""
    micro_batches: Degree | None = None
    """Parts that a step's tokens are cut into; at least pp if pp > 1."""

    def pinned(self) -> dict[str, int]:
        """The degrees that are set."""
        return {name: value for name, value in self.model_dump().items() if value is not None}


class SolveSection(Frozen):
    """`solve:` of a deployment."""

    redundant_experts: Annotated[int, Field(ge=0, le=LIMIT_COPIES)] | Literal["auto"] = 0
    """Redundant experts per layer, over all ranks; auto: the number with the least step time."""
    split: SplitPins = SplitPins()
    """Degrees that are pinned; the others are chosen."""
    keep_groups: Literal["node"] | None = None
    """node: keep the experts of a routing group on one node."""
    target: Literal["checkpoint"] | None = None
    """checkpoint: only placements that permuting the checkpoint realises: no copies, equal ranks, each
    made of whole pieces of routing groups."""
    time_limit: Duration | None = None
    """Stop after this long; the plan is then not reproducible."""
    gap: Percentage = 0.01
    """Stop when (objective - bound) / objective is at most this."""
    risk: Share | None = None
    """Minimise the mean step of the slowest windows, this part of them (conditional value at risk); left out: the
    mean over all windows."""
    seed: Annotated[int, Field(ge=0, lt=1 << 31)] = 0
    """Seed of the integer program."""


class ChecksSection(Frozen):
    """`checks:` of a deployment: thresholds for `ep-plan check`."""

    min_memory_headroom: Percentage | None = None
    """Least part of the memory that the engine uses of a GPU that must stay free."""
    min_balancedness: Annotated[float, Field(ge=0, le=1)] | None = None
    """Least balancedness."""
    max_held_out_imbalance: Annotated[float, Field(ge=1)] | None = None
    """Most max/mean of the ranks' rows on windows that were not planned on."""
    max_gap: Percentage | None = None
    """Most that the plan may be away from its proven bound."""
    max_step: Duration | None = None
    """Longest step."""
    expect: Literal["feasible", "infeasible"] = "feasible"
    """infeasible: an example that must fail."""


class DeploymentFile(Frozen):
    """A deployment.yaml."""

    model: Annotated[str, Field(min_length=1)]
    """A shipped model, or a path to a config.json or model.yaml."""
    topology: Annotated[str, Field(min_length=1)]
    """A path to a topology.yaml, or nodes such as "4 x hgx-h100"."""
    traces: tuple[str, ...] = ()
    """Recorded routing; without it every expert counts as equally popular."""
    engine: EngineName | None = None
    """An engine profile: limits the splits to what it can run."""
    precision: PrecisionSection = PrecisionSection()
    """Number formats; what is left out comes from the model."""
    communication: CommunicationSection = CommunicationSection()
    """How tokens travel; what is left out comes from engine and phase."""
    memory_share: Share | None = None
    """Part of each GPU's memory that the engine may use (vLLM's --gpu-memory-utilization); default: the
    engine's own."""
    workload: Workload
    """The work: phase, tokens_per_gpu, context_length."""
    solve: SolveSection = SolveSection()
    """What to solve for, and when to stop."""
    checks: ChecksSection = ChecksSection()
    """Thresholds for `ep-plan check`."""


@dataclass(frozen=True)
class Overrides:
    """What the command line says instead of the file."""

    model: str | None = None
    topology: str | None = None
    traces: tuple[str, ...] = ()
    gpus: int | None = None
    split: dict[str, int] | None = None
    redundant_experts: int | Literal["auto"] | None = None
    time_limit_s: float | None = None
    gap: float | None = None
    risk: float | None = None
    seed: int | None = None
    target: Literal["checkpoint"] | None = None


LookAtTraces = Callable[[Sequence[Path], Model | None], Sequence[Problem]]
"""Finds what is wrong with traces, and with the model, if it could be read, what does not go with it."""


@dataclass(frozen=True)
class Deployment:
    """Everything that solving needs, looked up and checked, traces not yet read."""

    path: Path
    file: DeploymentFile
    model: Model
    topology: Topology
    engine_name: str | None
    engine: EngineFile
    precision: Precision
    communication: Communication
    kernel: KernelFile
    collectives: KernelFile
    small_collectives: KernelFile | None
    default_efficiency: Efficiency
    engine_memory: EngineMemory
    copy_rule: CopyRule
    workload: Workload
    trace_paths: tuple[Path, ...]
    read_paths: tuple[Path, ...]
    """Every file of the user that is read, traces included: none of them may be written over."""
    warnings: tuple[str, ...] = ()


def load_deployment(
    path: Path, overrides: Overrides | None = None, look_at_traces: LookAtTraces | None = None
) -> Deployment:
    """Read a deployment and all files it names, traces excepted.

    Args:
        path: the deployment file.
        overrides: what the command line says instead.
        look_at_traces: called if anything is wrong; its problems are told with the others.

    Raises:
        InputError: with the problems of all files.
        UsageError: the deployment does not exist, or an option is wrong; also with all problems.
    """
    given = overrides or Overrides()
    document = read_yaml(path, keep_duplicates=True)
    documents.check_kind(document, DeploymentFile, "deployment")
    log = ProblemLog()
    file = _tried(log, lambda: _overridden(documents.validate(document, DeploymentFile, "deployment"), given))
    options = (given.model, given.topology, given.traces)
    model_named, topology_named, traces_named = named_in(document, path.parent, *options)
    found = _tried(log, lambda: model_named and model_of(model_named))
    topology_found = _tried(log, lambda: topology_named and topology_of(topology_named, given.gpus))
    engine = load_engine(file.engine) if file else None  # a valid file names what there is
    machine = topology_found[0] if topology_found else None
    kernel_name = _kernel_name(file, engine, machine) if file else ""
    kernel = load_kernel(kernel_name) if file else None
    traces = trace_paths(traces_named, log)
    if log.problems and look_at_traces is not None:
        log.extend(look_at_traces(traces, found[0] if found else None))
    if any(problem.where in OPTIONS for problem in log.problems):
        raise UsageError.of(log.problems)
    log.raise_if_any()
    assert None not in (file, found, topology_found, engine, kernel), "a missing part was noted as a problem"
    model, warnings, model_paths = found
    topology, topology_paths = topology_found
    named = Found(model, topology, traces, (path, *model_paths, *topology_paths, *traces), warnings)
    return assembled(path, file, named, engine, kernel)


@dataclass(frozen=True)
class Found:
    """What a deployment names, looked up."""

    model: Model
    topology: Topology
    trace_paths: tuple[Path, ...]
    read_paths: tuple[Path, ...]
    warnings: tuple[str, ...] = ()


def assembled(
    path: Path, file: DeploymentFile, found: Found, engine: EngineFile | None = None, kernel: KernelFile | None = None
) -> Deployment:
    """A deployment from its file and what that names; everything left out gets its default.

    Args:
        path: the deployment file.
        file: what stands in it.
        found: what it names.
        engine: its engine, if that has been read; so, too, its kernel.
        kernel: the communication kernel's profile.

    Raises:
        InputError: no such engine or kernel.
    """
    model, topology = found.model, found.topology
    engine = engine or load_engine(file.engine)
    kernel_name = _kernel_name(file, engine, topology)
    kernel = kernel or load_kernel(kernel_name)
    return Deployment(
        path=path,
        file=file,
        model=model,
        topology=topology,
        engine_name=file.engine,
        engine=engine,
        precision=_precision(file.precision, model),
        communication=Communication(
            kernel=kernel_name,
            dedup=file.communication.dedup or getattr(kernel.dedup, file.workload.phase),
            overlap=file.communication.overlap or engine.overlap.get(file.workload.phase, "none"),
        ),
        kernel=as_used(_on(topology, kernel, kernel_name), engine.buffers.get(kernel_name)),
        collectives=_on(topology, load_kernel(engine.collectives), engine.collectives),
        small_collectives=_small_collectives(engine, topology),
        default_efficiency=load_default_efficiency(),
        engine_memory=_engine_memory(engine, file.memory_share),
        copy_rule=_copy_rule(file, engine, kernel),
        workload=file.workload,
        trace_paths=found.trace_paths,
        read_paths=found.read_paths,
        warnings=found.warnings,
    )


def _kernel_name(file: DeploymentFile, engine: EngineFile | None, topology: Topology | None) -> str:
    """The kernel that is asked for, else the one that the engine runs unless told otherwise."""
    if file.communication.kernel is not None:
        return file.communication.kernel
    if engine is None:
        return "all-to-all"
    one_node = topology is not None and topology.num_nodes == 1
    return engine.one_node_kernel if one_node and engine.one_node_kernel else engine.kernel[file.workload.phase]


def _copy_rule(file: DeploymentFile, engine: EngineFile, kernel: KernelFile) -> CopyRule:
    """As asked for, else as the engine does; where every rank gets all tokens no copy is nearer than another."""
    if kernel.method == "all_gather":
        return "even"
    return file.communication.copies or engine.copy_rule


def _on(topology: Topology, kernel: KernelFile, name: str) -> KernelFile:
    gpus = [tuple(filter(None, (gpu.name, gpu.curves_of))) for gpu in topology.kinds]
    return on_machine(kernel, name, gpus, topology.file.calibration)


def _small_collectives(engine: EngineFile, topology: Topology) -> KernelFile | None:
    name = engine.small_collectives
    return None if name is None else _on(topology, load_kernel(name), name)


def _tried(log: ProblemLog, read: Any) -> Any:
    try:
        return read()
    except InputError as error:
        log.extend(error.problems)
        return None


def _overridden(file: DeploymentFile, given: Overrides) -> DeploymentFile:
    pins = {**file.solve.split.pinned(), **(given.split or {})}
    solve = {
        "split": SplitPins(**pins),
        "redundant_experts": given.redundant_experts,
        "time_limit": given.time_limit_s,
        "gap": given.gap,
        "risk": given.risk,
        "seed": given.seed,
        "target": given.target,
    }
    update: dict[str, Any] = {"solve": file.solve.model_copy(update={k: v for k, v in solve.items() if v is not None})}
    if given.model is not None:
        update["model"] = given.model
    if given.topology is not None:
        update["topology"] = given.topology
    if given.traces:
        update["traces"] = given.traces
    return file.model_copy(update=update)


def _precision(section: PrecisionSection, model: Model) -> Precision:
    plain: WeightName = "fp32" if model.dense_weights == "fp32" else "bf16"
    activations: ActivationName = "fp32" if plain == "fp32" else "bf16"
    experts = section.experts or section.weights or model.expert_weights
    eight_bit = experts in ("fp8", "fp8_block")
    return Precision(
        experts=experts,
        dense=section.dense or section.weights or model.dense_weights,
        embedding=plain,
        kv_cache=section.kv_cache or ("fp32" if plain == "fp32" else "bf16"),
        dispatch=section.dispatch or ("fp8" if eight_bit else activations),
        combine=section.combine or activations,
    )


def _engine_memory(engine: EngineFile, share: float | None) -> EngineMemory:
    """The engine's memory, with the part of each GPU that the deployment allows it."""
    if share is None:
        return engine.memory
    given = {"value": share, "basis": "given", "source": "memory_share of the deployment"}
    return engine.memory.model_copy(update={"share": engine.memory.share.model_copy(update=given)})


def load_kernel(name: str) -> KernelFile:
    """Read a communication kernel profile."""
    kernel, _ = documents.load(profiles.path_of("kernels", name), KernelFile, "kernel")
    return kernel


def parse_split(text: str) -> dict[str, int]:
    """Read `tp=1,ep=32,pp=1` from the command line; raises `ValueError` with the repair."""
    pins: dict[str, Any] = {}
    for part in text.split(","):
        name, equals, value = part.strip().partition("=")
        if not equals or not value.strip().isdecimal():
            raise ValueError(f"{part.strip()!r}: expected degrees such as tp=1,ep=32,pp=1")
        degree, digits = name.strip(), value.strip()
        if degree not in SplitPins.model_fields:
            known = ", ".join(SplitPins.model_fields)
            raise ValueError(f"{degree!r} is not a degree; degrees: {known}")
        if degree in pins:
            raise ValueError(f"{degree} stands twice")
        if len(digits) > 20 or not 1 <= int(digits) <= LIMIT_DEGREE:
            raise ValueError(f"{degree}={digits}: degrees are whole numbers from 1 to {LIMIT_DEGREE:,}")
        pins[degree] = int(digits)
    return SplitPins(**pins).pinned()
