"""Every map: what the engine would read is the plan, or a refusal names what the format cannot say."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from planner.errors import InputError, UsageError
from planner.export.fits import check_fits, check_version, is_linear, needs
from planner.export.layout import Layout
from planner.export.maps import placement_of_map
from planner.export.table import MAPS, Need
from planner.export.write import map_bytes, read_map, verify, write_map
from planner.plan.placement import Placement, linear, slots_of_ranks
from tests.unit.export import engine_rules
from tests.unit.export.layouts import SEEDS, random_layout

PLAN = Path("plan.json")
WITHOUT_PYARROW = [name for name in MAPS if name != "parquet"]


def fits(layout: Layout, name: str) -> InputError | None:
    """The refusal of a format, if it refuses."""
    try:
        check_fits(layout, name, MAPS[name], str(PLAN))
    except InputError as error:
        return error
    return None


def engine_reads(layout: Layout, name: str, raw: bytes) -> dict[int, list[int]] | None:
    """Slots as the engine's own rules read them; None for formats that no engine reads."""
    moe, experts, extra, ep = (
        list(layout.model.moe_layer_ids),
        layout.num_experts,
        layout.redundant_experts,
        layout.split.ep,
    )
    if name == "sglang":
        return engine_rules.sglang(raw, layout.model.num_layers, moe, experts, extra, ep)
    if name == "tensorrt-llm":
        return engine_rules.tensorrt_llm(raw, moe, experts, ep)
    if name == "vllm-ascend":
        return engine_rules.vllm_ascend(raw, moe, experts, ep)
    if name == "vllm-pr41141":
        return engine_rules.vllm_pr41141(raw, moe, experts, extra, ep)
    if name in ("vllm-pr49572", "vllm-pr53022"):
        return engine_rules.vllm_slots(raw, moe, experts, extra, ep)
    if name == "vllm-pr34811":
        return engine_rules.vllm_pr34811(raw, moe, experts, ep)
    if name == "omni-infer":
        return engine_rules.omni_infer(raw, moe, experts, ep)
    if name == "eplb":
        return engine_rules.eplb(raw, moe, experts, extra, ep)
    if name == "megatron":
        engine_rules.megatron(raw, experts)
    return None


@pytest.mark.parametrize("name", WITHOUT_PYARROW)
def test_200_random_plans_come_back_or_are_refused_by_name(name: str) -> None:
    """The engine's rules hold for every file written, and the importer gives the same placement."""
    outcomes: Counter[str] = Counter()
    for seed in SEEDS:
        layout = random_layout(seed)
        if MAPS[name].family:
            layout = replace(layout, model=layout.model.model_copy(update={"family": MAPS[name].family}))
        refusal = fits(layout, name)
        asked = set(needs(layout)) & set(MAPS[name].cannot)
        outcomes["refused" if refusal else "written"] += 1
        if refusal:
            told = " ".join(str(problem) for problem in refusal.problems)
            for need in asked:
                assert needs(layout)[need][1] in told
                assert MAPS[name].cannot[need] in told
            assert all(problem.where is not None and problem.where.key for problem in refusal.problems)
            continue
        assert not asked
        raw = map_bytes(layout, name)
        verify(layout, name, raw, "map")
        again = placement_of_map(read_map(raw, name, "map"), layout.model, layout.split.ep)
        assert again.layer_ids == layout.placement.layer_ids
        assert np.array_equal(again.expert_LP, layout.placement.expert_LP)
        slots = engine_reads(layout, name, raw)
        if slots is not None:
            assert list(slots.values()) == layout.placement.expert_LP.tolist()
    assert outcomes["written"] >= 4, "too few layouts that this format can say"
    if MAPS[name].cannot:
        assert outcomes["refused"] >= 10


def test_the_random_plans_hold_every_kind() -> None:
    seen: Counter[str] = Counter()
    for seed in SEEDS:
        layout = random_layout(seed)
        seen.update(list(needs(layout)))
        seen["dense"] += layout.model.num_layers > len(layout.model.moe_layer_ids)
        seen["sharded"] += layout.split.etp > 1
        seen["grid copies"] += layout.split.edp > 1
    kinds: list[Need] = ["copies", "uneven ranks", "layers that differ", "several stages", "no expert parallelism"]
    assert all(seen[kind] >= 15 for kind in [*kinds, "dense", "sharded", "grid copies"]), seen


def test_a_changed_file_is_noticed() -> None:
    """Verification is no formality: any two slots exchanged, or another GPU, are seen."""
    for seed in (3, 5, 8, 13, 21):
        layout = random_layout(seed)
        raw = map_bytes(layout, "csv")
        lines = raw.decode().splitlines()
        layer, stage, rank, slot, expert, copies, gpus = lines[1].split(",")
        other = str((int(expert) + 1) % layout.num_experts)
        for changed in (
            [layer, stage, rank, slot, other, copies, gpus],
            [layer, stage, rank, slot, expert, copies, "99"],
        ):
            text = "\n".join([lines[0], ",".join(changed), *lines[2:]]) + "\n"
            with pytest.raises(AssertionError, match="read back with other"):
                verify(layout, "csv", text.encode(), "map")


def test_nothing_takes_its_name_before_it_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = next(one for one in map(random_layout, SEEDS) if fits(one, "sglang") is None)
    target = tmp_path / "map.json"
    target.write_text("older")
    monkeypatch.setattr("planner.export.sglang.write", lambda _: b'{"physical_to_logical_map": [[0]]}')
    with pytest.raises((AssertionError, InputError)):
        write_map(layout, "sglang", PLAN, target)
    assert target.read_text() == "older"
    assert [path.name for path in tmp_path.iterdir()] == ["map.json"]


def test_uneven_ranks_are_refused_by_every_engine_but_not_by_the_table() -> None:
    layout = next(one for one in map(random_layout, SEEDS) if "uneven ranks" in needs(one))
    assert fits(layout, "csv") is None
    for name in (
        "sglang",
        "tensorrt-llm",
        "vllm-ascend",
        "vllm-pr41141",
        "vllm-pr49572",
        "vllm-pr34811",
        "omni-infer",
        "eplb",
        "megatron",
    ):
        refusal = fits(layout, name)
        assert refusal is not None
        assert "unequal numbers of experts" in str(refusal)


def test_a_split_that_the_engine_cannot_run_is_refused() -> None:
    """etp and edp beside ep: fine for Megatron, not for vLLM, whatever the plan was solved for."""
    layout = next(one for one in map(random_layout, SEEDS) if one.split.etp > 1 and one.split.ep > 1)
    refusal = fits(layout, "vllm-pr49572")
    assert refusal is not None
    assert "vllm cannot run this split" in str(refusal)


def test_megatron_takes_a_plan_for_a_permuted_checkpoint() -> None:
    layout = next(
        one
        for one in map(random_layout, SEEDS)
        if set(needs(one)) & {"copies", "uneven ranks", "any placement"} == {"any placement"}
    )
    refusal = fits(layout, "megatron")
    assert refusal is not None
    assert "target: checkpoint" in str(refusal)
    assert fits(replace(layout, for_checkpoint=True), "megatron") is None


def test_linear_layouts_are_known() -> None:
    layout = next(one for one in map(random_layout, SEEDS) if one.split.ep > 1 and not is_linear(one))
    slots_R = slots_of_ranks(layout.num_experts + layout.redundant_experts, layout.split.ep)
    row = linear(layout.num_experts, slots_R)
    rows = np.tile(row, (len(layout.placement.layer_ids), 1))
    assert is_linear(replace(layout, placement=Placement(layout.placement.layer_ids, int(slots_R.max()), rows)))


def test_versions_are_gates() -> None:
    assert check_version("sglang", MAPS["sglang"], None) == "0.5.23"
    assert check_version("csv", MAPS["csv"], None) == ""
    with pytest.raises(UsageError, match=r"0\.4\.0.*nobody has compared") as unknown:
        check_version("sglang", MAPS["sglang"], "0.4.0")
    assert "0.5.23" in unknown.value.problems[0].hint
    with pytest.raises(UsageError, match="announced for removal"):
        check_version("vllm-ascend", MAPS["vllm-ascend"], "0.25.1")
    with pytest.raises(UsageError, match="loads no static placement"):
        check_version("vllm-pr41141", MAPS["vllm-pr41141"], "0.33.0")
    with pytest.raises(UsageError, match="no engine reads"):
        check_version("csv", MAPS["csv"], "1")


def test_how_to_load_quotes_the_path(tmp_path: Path) -> None:
    layout = next(one for one in map(random_layout, SEEDS) if fits(one, "vllm-ascend") is None)
    written = write_map(layout, "vllm-ascend", PLAN, tmp_path / "it's; a $(map).json")
    assert "'\"'\"'" in written.how_to_load  # a quote inside quotes, as shlex writes it
    with pytest.raises(UsageError, match=r"end in \.json"):
        write_map(layout, "vllm-ascend", PLAN, tmp_path / "map.txt")


def test_parquet_comes_back() -> None:
    pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    for seed in range(30):
        layout = random_layout(seed)
        raw = map_bytes(layout, "parquet")
        verify(layout, "parquet", raw, "map")


def test_files_are_the_same_bytes_every_time() -> None:
    layout = next(one for one in map(random_layout, SEEDS) if not needs(one).keys() & {"uneven ranks"})
    for name in WITHOUT_PYARROW:
        if fits(layout, name) is None:
            assert map_bytes(layout, name) == map_bytes(layout, name)


def test_sglang_fills_rows_of_dense_layers() -> None:
    layout = next(
        one for one in map(random_layout, SEEDS) if fits(one, "sglang") is None and one.model.moe_layer_ids[0] > 0
    )
    rows = json.loads(map_bytes(layout, "sglang"))["physical_to_logical_map"]
    assert rows[0] == [slot % layout.num_experts for slot in range(len(rows[0]))]
