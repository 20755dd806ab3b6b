"""Every format: written as its engine writes it, imported, compared id by id (or count by count)."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.importers.recording import (
    MOE_LAYERS,
    Desk,
    Ids,
    counted,
    json_lines,
    npy,
    pt,
    routes,
    safetensors,
    with_dense,
)

IDS = routes(60)
PLACED = np.array([[0, 1, 2, 3, 4, 5, 6, 7, 0, 5], [7, 6, 5, 4, 3, 2, 1, 0, 2, 2], [3, 1, 2, 0, 4, 5, 6, 7, 1, 3]])
PLACED = np.vstack([np.arange(10)[None] % 8, PLACED, PLACED[:1]])
"""Slot to expert [5 layers, 10 slots]: row 0 is the dense layer's filler."""


def megatron(ids: Ids, rank: int, steps: int, layers: list[int]) -> str:
    """Records of one rank; the tokens in equal steps."""
    lines = []
    for step, part in enumerate(np.split(ids, steps)):
        for row, layer in enumerate(layers):
            record = {"step": step, "stage": "pre_dispatch", "block": "decoder", "layer": layer, "rank": rank}
            record |= {"num_tokens": len(part), "topk": 2, "top_indices": part[:, row].tolist()}
            lines.append(record)
        lines.append({**lines[-1], "mtp_idx": 0})
    return json_lines(lines)


def on_slots(ids: Ids, seed: int = 1) -> Ids:
    """Slots [layers, tokens, 8] of physical experts, as SGLang records them: width 8, padded with -1."""
    rng = np.random.default_rng(seed)
    slots = np.full((5, len(ids), 8), -1)
    for token, chosen in enumerate(with_dense(ids).tolist()):
        for layer, experts in enumerate(chosen):
            for place, expert in enumerate(experts):
                if layer > 0:
                    slots[layer, token, place] = rng.choice(np.flatnonzero(PLACED[layer] == expert))
    return slots


def slot_counts(slots: Ids) -> Ids:
    """Choices of each slot [layers, 10]."""
    return np.stack([np.bincount(row[row >= 0], minlength=10) for row in slots])


def same_tokens(arrays: dict[str, Any], ids: Ids = IDS) -> None:
    np.testing.assert_array_equal(arrays["expert_ids"], ids)
    assert arrays["layer_ids"].tolist() == MOE_LAYERS
    assert arrays["num_experts"] == 8


def same_counts(arrays: dict[str, Any], *windows: Ids) -> None:
    np.testing.assert_array_equal(arrays["counts"], np.stack([counted(ids) for ids in windows]))
    assert arrays["layer_ids"].tolist() == MOE_LAYERS
    assert (arrays["num_experts"], arrays["topk"], len(arrays["scenario_names"])) == (8, 2, len(windows))


def test_megatron_data_parallel_ranks_follow_each_other(desk: Desk) -> None:
    for rank, part in enumerate(np.split(IDS, 2)):
        desk.put(f"dump/router_trace_rank{rank}.jsonl", megatron(part, rank, 3, MOE_LAYERS))
    outcome = desk.bring(desk.folder / "dump")
    same_tokens(outcome.arrays)
    assert outcome.arrays["step_id"].tolist() == np.repeat([0, 1, 2, 0, 1, 2], 10).tolist()
    assert "6 records of multi-token prediction" in outcome.err


def test_megatron_pipeline_stages_are_joined(desk: Desk) -> None:
    paths = []
    for stage, layers in enumerate(([1, 2], [3, 4])):
        for lane, part in enumerate(np.split(IDS, 2)):
            rows = part[:, 2 * stage : 2 * stage + 2]
            name = f"router_trace_rank{2 * stage + lane}.jsonl"
            paths.append(desk.put(name, megatron(rows, 2 * stage + lane, 3, layers)))
    same_tokens(desk.bring(*paths).arrays)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_vllm_npy(desk: Desk, dtype: type) -> None:
    path = desk.put("routes.npy", npy(with_dense(IDS).astype(dtype)))
    arrays = desk.bring(path).arrays
    same_tokens(arrays)
    assert arrays["pos"].tolist() == list(range(60))
    assert arrays["expert_ids"].dtype == np.uint8


def test_vllm_base64_and_responses(desk: Desk) -> None:
    text = base64.b64encode(npy(with_dense(IDS).astype(np.uint8))).decode()
    same_tokens(desk.bring(desk.put("routes.txt", text)).arrays)
    usage = {"prompt_tokens": 41, "total_tokens": 61}
    response = {"id": "a", "choices": [{"index": 0, "routed_experts": text}], "usage": usage}
    for content in (json.dumps(response), json.dumps(response, indent=1), json.dumps([response])):
        path = desk.put("answer.json", content)
        assert "mixed-phases" in desk.bring(path).err
        same_tokens(desk.bring(path, options=["--phase", "prefill"]).arrays, IDS[:41])
        same_tokens(desk.bring(path, options=["--phase", "decode"]).arrays, IDS[41:])


def test_vllm_npz_of_each_request(desk: Desk) -> None:
    """Prompt of 12, output of 9: 20 tokens were forwarded, positions 0..19; with a prefix of 5 skipped, 5..19."""
    for index, skipped in enumerate((0, 5)):
        part = IDS[20 * index + skipped : 20 * index + 20]
        stream = io.BytesIO()
        np.savez(
            stream,
            request_id=np.array(str(index)),
            prompt_token_ids=np.arange(12),
            output_token_ids=np.arange(9),
            routed_experts=with_dense(part).astype(np.uint8),
        )
        desk.put(f"requests/{index}.npz", stream.getvalue())
    arrays = desk.bring(desk.folder / "requests", options=["--accept", "mixed-phases"]).arrays
    same_tokens(arrays, np.concatenate([IDS[:20], IDS[25:40]]))
    assert arrays["seq_id"].tolist() == [0] * 20 + [1] * 15
    assert arrays["pos"].tolist() == [*range(20), *range(5, 20)]
    decode = desk.bring(desk.folder / "requests", options=["--phase", "decode"]).arrays
    same_tokens(decode, np.concatenate([IDS[12:20], IDS[32:40]]))


def test_sglang_responses(desk: Desk) -> None:
    lines = []
    for part in np.split(IDS, 3):
        raw = with_dense(part).astype("<i4").tobytes()
        meta = {"prompt_tokens": 8, "completion_tokens": 13, "routed_experts": base64.b64encode(raw).decode()}
        lines.append({"text": "word " * 30_000, "output_ids": list(range(13)), "meta_info": meta})
    path = desk.put("answers.jsonl", json_lines(lines))
    assert desk.bring(path, model=False, options=["--num-experts", 8]).code == 2
    arrays = desk.bring(path, options=["--phase", "decode"]).arrays
    same_tokens(arrays, np.concatenate([part[8:] for part in np.split(IDS, 3)]))
    assert arrays["seq_id"].tolist() == np.repeat([0, 1, 2], 12).tolist()
    spaced = json_lines(lines).replace('{"text"', '{ "text"')
    again = desk.bring(desk.put("spaced.jsonl", spaced), options=["--phase", "decode"])
    assert again.code == 0, again.err
    assert again.arrays["seq_id"].tolist() == arrays["seq_id"].tolist()
    same_tokens(again.arrays, np.concatenate([part[8:] for part in np.split(IDS, 3)]))


def test_one_response_over_several_lines(desk: Desk) -> None:
    """Or on one, whether or not a blank follows its brace."""
    raw = with_dense(IDS[:20]).astype("<i4").tobytes()
    meta = {"prompt_tokens": 8, "completion_tokens": 13, "routed_experts": base64.b64encode(raw).decode()}
    whole = json.dumps({"meta_info": meta}, indent=1)
    for text in (whole, whole.replace("{\n", "{ ", 1), json.dumps({"meta_info": meta}).replace("{", "{ ", 1)):
        outcome = desk.bring(desk.put("answer.json", text), options=["--phase", "decode"])
        assert outcome.code == 0, outcome.err
        same_tokens(outcome.arrays, IDS[8:20])


def test_sglang_stat(desk: Desk) -> None:
    """A finite buffer: two steps recorded, the rest is zeros, dense row included."""
    steps = np.zeros((4, 5, 8), dtype=np.int64)
    steps[1, 1:], steps[2, 1:] = counted(IDS[:40]), counted(IDS[40:])
    content = {"rank": 0, "logical_count": steps, "average_utilization_rate_over_window": None}
    outcome = desk.bring(desk.put("expert_distribution_recorder_1.pt", pt(content)))
    same_counts(outcome.arrays, IDS[:40], IDS[40:])
    assert outcome.arrays["scenario_names"].tolist() == ["step 1", "step 2"]
    assert "2 windows in which nothing ran" in outcome.err
    assert "[dense-layer]" in outcome.err
    assert "went round" not in outcome.err
    full = {"rank": 0, "logical_count": steps[1:3]}  # no empty step: the buffer may have turned over
    outcome = desk.bring(desk.put("expert_distribution_recorder_2.pt", pt(full)))
    same_counts(outcome.arrays, IDS[:40], IDS[40:])
    assert "all 2 steps are used" in outcome.err


def test_sglang_per_pass_sums_ranks_and_maps_slots_back(desk: Desk) -> None:
    slots = on_slots(IDS)
    for rank in range(2):
        mine = np.where((slots >= 5 * rank) & (slots < 5 * rank + 5), slots, -1)  # each rank holds five slots
        records = [
            {"forward_pass_id": 3 + index, "rank": rank, "gatherer_key": "primary", "global_physical_count": part}
            for index, part in enumerate([slot_counts(mine[:, :40]), slot_counts(mine[:, 40:])])
        ]
        desk.put(f"dump/r_{rank}.pt", pt({"records": records, "last_physical_to_logical_map": PLACED}))
    same_counts(desk.bring(desk.folder / "dump").arrays, IDS[:40], IDS[40:])


def test_sglang_per_pass_takes_each_dump_by_its_own_map(desk: Desk) -> None:
    """Experts were moved between two dumps: slots of the second hold others than those of the first."""
    parts = [IDS[:40], IDS[40:], IDS[20:50]]
    for number, (mapped, held) in enumerate([(PLACED, parts[:2]), (PLACED[:, ::-1], parts[2:])]):
        counts = [slot_counts(on_slots(part))[:, :: 1 - 2 * number] for part in held]
        records = [
            {
                "forward_pass_id": 10 * number + index,
                "rank": 0,
                "gatherer_key": "primary",
                "global_physical_count": part,
            }
            for index, part in enumerate(counts)
        ]
        desk.put(f"dump/r_{number}.pt", pt({"records": records, "last_physical_to_logical_map": mapped.copy()}))
    same_counts(desk.bring(desk.folder / "dump").arrays, *parts)


def test_sglang_per_token(desk: Desk) -> None:
    records = []
    for index, (mode, part) in enumerate([(1, IDS[:40]), (4, IDS[:0]), (2, IDS[40:50]), (2, IDS[50:])]):
        record = {"forward_pass_id": index, "rank": 0, "gatherer_key": "primary", "forward_mode": mode}
        record |= {"input_ids": list(range(len(part))), "positions": [0] * len(part), "misc_objects": []}
        records.append(record | {"extend_seq_lens": None, "topk_ids_of_layer": on_slots(part, seed=index)})
    path = desk.put("r_0.pt", pt({"records": records, "last_physical_to_logical_map": PLACED}))
    assert "mixed-phases" in desk.bring(path).err
    outcome = desk.bring(path, options=["--phase", "decode"])
    same_tokens(outcome.arrays, IDS[40:])
    assert outcome.arrays["step_id"].tolist() == [2] * 10 + [3] * 10
    assert "1 idle pass left out" in outcome.err
    outcome = desk.bring(path, model=False, options=["--top-k", 10])
    assert outcome.code == 3
    assert "per_token keeps 8 choices of a token, but this model makes 10" in outcome.err


def trt(desk: Desk, columns: int, by_rank: list[list[Ids]], name: str = "stats") -> Path:
    """A statistics folder: counts [layers, columns] by rank and iteration, as hidden layers 1..4."""
    desk.put(f"{name}/meta_info.json", json.dumps({"num_experts": columns, "num_experts_per_token": 2}))
    for rank, iterations in enumerate(by_rank):
        tensors = {f"{100 + i}_{1 + row}": c[row] for i, c in enumerate(iterations) for row in range(4)}
        desk.put(f"{name}/rank{rank}.safetensors", safetensors(tensors))
        desk.put(f"{name}/rank{rank}_raw.safetensors", b"not read")
    return desk.folder / name


def test_tensorrt_llm_sums_ranks(desk: Desk) -> None:
    folder = trt(desk, 8, [[counted(IDS[:20]), counted(IDS[40:50])], [counted(IDS[20:40]), counted(IDS[50:])]])
    outcome = desk.bring(folder)
    same_counts(outcome.arrays, IDS[:40], IDS[40:])
    assert outcome.arrays["scenario_names"].tolist() == ["iteration 100", "iteration 101"]


@pytest.mark.parametrize(
    ("folders", "told"), [(("night", "day"), ("night", "day")), (("a/stats", "b/stats"), ("*a/stats", "*b/stats"))]
)
def test_tensorrt_llm_folders_are_windows(desk: Desk, folders: tuple[str, ...], told: tuple[str, ...]) -> None:
    parts = np.split(IDS, 2)
    paths = [trt(desk, 8, [[counted(part)]], name) for name, part in zip(folders, parts, strict=True)]
    outcome = desk.bring(*paths)
    same_counts(outcome.arrays, *parts)
    expected = [f"{name.replace('*', f'{desk.folder}/')} iteration 100" for name in told]
    assert outcome.arrays["scenario_names"].tolist() == expected


def test_tensorrt_llm_files_of_one_folder_are_read_once(desk: Desk) -> None:
    folder = trt(desk, 8, [[counted(IDS[:20])], [counted(IDS[20:])]])
    files = [folder / f"rank{rank}.safetensors" for rank in range(2)]
    outcome = desk.bring(*files, options=["--from", "tensorrt-llm"])
    same_counts(outcome.arrays, IDS)
    assert outcome.arrays["scenario_names"].tolist() == ["iteration 100"]


def test_tensorrt_llm_folders_of_different_layers(desk: Desk) -> None:
    trt(desk, 8, [[counted(IDS)]], "first")
    desk.put("second/meta_info.json", json.dumps({"num_experts": 8, "num_experts_per_token": 2}))
    desk.put("second/rank0.safetensors", safetensors({"100_1": counted(IDS)[0]}))
    outcome = desk.bring(desk.folder / "first", desk.folder / "second")
    assert outcome.code == 3
    assert "second: other layers, experts or top-k than" in outcome.err


def test_tensorrt_llm_slots(desk: Desk) -> None:
    folder = trt(desk, 10, [[slot_counts(on_slots(IDS))[1:]]])
    assert "physical-ids" in desk.bring(folder).err
    assignments = "".join(f"  {layer}: {PLACED[layer].tolist()}\n" for layer in MOE_LAYERS)
    text = f"initial_global_assignments:\n{assignments}num_slots: 10\nlayer_updates_per_iter: 0\n"
    outcome = desk.bring(folder, options=["--physical-map", desk.put("eplb.yaml", text)])
    same_counts(outcome.arrays, IDS)


def test_vllm_load_stats(desk: Desk) -> None:
    lines: list[object] = [{"record_type": "eplb_load_meta", "version": 1}]
    for step, part in enumerate((IDS[:40], IDS[40:])):
        load = slot_counts(on_slots(part))[1:].tolist()
        stats = {"record_type": "eplb_load_stats", "version": 1, "step": step, "num_ranks": 2}
        lines.append(stats | {"expert_load": load, "p2l_map": PLACED[1:].tolist()})
    same_counts(desk.bring(desk.put("stats.jsonl", json_lines(lines))).arrays, IDS[:40], IDS[40:])


def ascend_map(desk: Desk) -> Path:
    """The expert map that vllm-ascend writes beside its loads."""
    layers = [
        {"layer_id": index, "device_count": 2, "device_list": [
            {"device_id": rank, "device_expert": row[5 * rank : 5 * rank + 5].tolist()} for rank in range(2)
        ]}
        for index, row in enumerate(PLACED[1:])
    ]  # fmt: skip
    return desk.put("expert_map.json", json.dumps({"moe_layer_count": 4, "layer_list": layers}))


@pytest.mark.parametrize("suffix", ["npy", "pt", "json"])
def test_vllm_ascend(desk: Desk, suffix: str) -> None:
    """[layers, ranks, slots], two ranks of five."""
    load = slot_counts(on_slots(IDS))[1:].reshape(4, 2, 5)
    content = {"npy": npy(load), "pt": pt(load), "json": json.dumps(load.tolist()).encode()}[suffix]
    path = desk.put(f"moe_load.{suffix}", content)
    options = ["--from", "vllm-ascend", "--physical-map", ascend_map(desk)]
    same_counts(desk.bring(path, options=options).arrays, IDS)


def test_omni_infer_files_and_log(desk: Desk) -> None:
    for step, part in enumerate((IDS[:40], IDS[40:])):
        for rank in range(2):
            rows = counted(part)[:, 4 * rank : 4 * rank + 4]
            text = "".join("\t".join(map(str, row)) + "\t\n" for row in rows.tolist())
            desk.put(f"dump/decoder/activation_counts_recordstep_{step}_rank_{rank}.txt", text)
    same_counts(desk.bring(desk.folder / "dump").arrays, IDS[:40], IDS[40:])
    log = ["INFO something else\n"]
    for rank in range(2):
        for layer, row in enumerate(counted(IDS)[:, 4 * rank : 4 * rank + 4].tolist()):
            data = "\t".join(map(str, row))
            log.append(
                f"(1) [dump activation] decode step 9 in rank {rank} for layer {layer} get 4 experts data: {data}\n"
            )
    outcome = desk.bring(desk.put("server.log", "".join(log)))
    same_counts(outcome.arrays, IDS)
    assert outcome.arrays["scenario_names"].tolist() == ["decode step 9"]


def matrices() -> dict[str, bytes]:
    """The same counts as every kind of matrix; some with the dense row, some without."""
    counts = counted(IDS)
    hidden = np.vstack([np.zeros((1, 8), dtype=np.int64), counts])
    cells = [(layer, expert) for layer in range(5) for expert in range(8)]
    triples = "layer,expert,count\n" + "".join(f"{l},{e},{hidden[l, e]}\n" for l, e in cells)
    rows = "".join(f"layer_{l}," + ",".join(map(str, row)) + "\n" for l, row in enumerate(counts.tolist()))
    return {
        "eplb.npy": npy(counts),
        "eplb_float.npy": npy(counts.astype(np.float32)),
        "fortran.npy": npy(np.asfortranarray(hidden)),
        "eplb.pt": pt(counts),
        "lmdeploy.json": json.dumps(hidden.tolist()).encode(),
        "count.json": json.dumps({"logical_count": hidden[None].tolist()}).encode(),
        "load.json": json.dumps({"load_history": [{"logical_expert_load": counts.tolist()}]}).encode(),
        "triples.csv": triples.encode(),
        "choices.csv": ("Expert_ID,layer\n" + "".join(f"{e},{l}\n" * hidden[l, e] for l, e in cells)).encode(),
        "omni.csv": (",".join(["", *(f"ep_{e}" for e in range(8))]) + "\n" + rows).encode(),
        "indexed_triples.csv": (
            ",layer,expert,count\n" + "".join(f"{r + 9},{l},{e},{hidden[l, e]}\n" for r, (l, e) in enumerate(cells))
        ).encode(),
        "indexed.csv": (
            ",0,1,2,3,4,5,6,7\n" + "".join(f"{l},{','.join(map(str, r))}\n" for l, r in enumerate(counts.tolist()))
        ).encode(),
        "indexed_named.csv": (
            ",a,b,c,d,e,f,g,h\n" + "".join(f"{l},{','.join(map(str, r))}\n" for l, r in enumerate(counts.tolist()))
        ).encode(),
        "numbered.csv": (",0,1,2,3,4,5,6,7\n" + rows).encode(),
        "plain.csv": "".join(",".join(map(str, row)) + "\n" for row in counts.tolist()).encode(),
    }


@pytest.mark.parametrize("name", list(matrices()))
def test_matrices(desk: Desk, name: str) -> None:
    same_counts(desk.bring(desk.put(name, matrices()[name])).arrays, IDS)


def test_windows_of_matrices(desk: Desk) -> None:
    parts = np.split(IDS, 3)
    history = {"load_history": [{"logical_expert_load": counted(part).tolist()} for part in parts]}
    same_counts(desk.bring(desk.put("load.json", json.dumps(history, indent=1))).arrays, *parts)
    stacked = desk.put("stacked.npy", npy(np.stack([counted(part) for part in parts])))
    same_counts(desk.bring(stacked).arrays, *parts)
    files = [desk.put(f"{index}.npy", npy(counted(part))) for index, part in enumerate(parts)]
    same_counts(desk.bring(*files).arrays, *parts)
    rows = [
        f"{20 + step},{1 + layer},{expert},{count}\n"
        for step, part in enumerate(parts)
        for layer, row in enumerate(counted(part).tolist())
        for expert, count in enumerate(row)
    ]
    same_counts(desk.bring(desk.put("steps.csv", "step,layer_id,expert_id,tokens\n" + "".join(rows))).arrays, *parts)


@pytest.mark.parametrize("model", [True, False])
@pytest.mark.parametrize("header", ["layer,expert,count", "layer,expert", "step,layer,expert,count"])
def test_experts_that_a_list_never_names(desk: Desk, header: str, model: bool) -> None:
    """Nobody chose expert 7; files without a list have a column for it, or lack it."""
    ids = routes(60, experts=7)
    cells = [(1 + layer, expert, count) for layer, row in enumerate(counted(ids).tolist())
             for expert, count in enumerate(row)]  # fmt: skip
    if header == "layer,expert":
        rows = [f"{layer},{expert}\n" * count for layer, expert, count in cells]
    else:
        step = "0," if header.startswith("step") else ""
        rows = [f"{step}{layer},{expert},{count}\n" for layer, expert, count in cells if count]
    path = desk.put("list.csv", f"{header}\n" + "".join(rows))
    options = [] if model else ["--num-experts", 8, "--top-k", 2]
    same_counts(desk.bring(path, model=model, options=options).arrays, ids)
    outcome = desk.bring(path, model=False, options=["--num-experts", 6, "--top-k", 2])
    assert "7 experts recorded, but 6 are expected" in outcome.err
    outcome = desk.bring(desk.put("plain.npy", npy(counted(ids, experts=7))), options=["--from", "matrix"])
    assert "7 experts recorded, but 8 are expected" in outcome.err


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("layer,expert,heat", "c.csv:1:3: column 'heat' is not known"),
        ("layer,expert,count,load", "c.csv:1:4: column 'load' is there twice"),
        ("token,expert,count", "c.csv:1:1: column 'token' is not known"),
        ("expert,count", "a column of experts, but none of layers"),
        (",layer,expert,heat", "c.csv:1:4: column 'heat' is not known"),
        (",4,2", "c.csv:1:1: column 1 has no name, and the others are not experts 0, 1, ..."),
        (",0,1", "c.csv:1:1: column 1 has no name, and is no index 0, 1, ..."),
    ],
)
def test_columns_of_csv_are_never_guessed(desk: Desk, header: str, message: str) -> None:
    width = header.count(",") + 1
    outcome = desk.bring(desk.put("c.csv", f"{header}\n" + ("1," * width)[:-1] + "\n"))
    assert outcome.code == 3
    assert message in outcome.err


@pytest.mark.parametrize("order", ["layer by layer", "token by token"])
def test_token_lines(desk: Desk, order: str) -> None:
    lines: list[object] = [{"header": True, "model": "x"}]
    for step, part in enumerate(np.split(IDS, 3)):
        pairs = [(token, row) for token in range(20) for row in range(4)]
        if order == "layer by layer":
            pairs.sort(key=lambda pair: pair[1])
        for token, row in pairs:
            ids = part[token, row].tolist()
            lines.append(
                {"step": step, "layer": 1 + row, "token_idx": token, "topk_ids": ids, "topk_weights": [0.6, 0.4]}
            )
    outcome = desk.bring(desk.put("moe_routes.jsonl", json_lines(lines)))
    assert "1 record without layer and topk_ids left out" in outcome.err
    same_tokens(outcome.arrays)
    assert outcome.arrays["step_id"].tolist() == np.repeat([0, 1, 2], 20).tolist()


def token_lines(order: dict[int, list[int]], named: bool = True, ids: Ids = IDS) -> str:
    """Records of one pass, layer by layer, each with tokens in this order."""
    lines = []
    for row, tokens in order.items():
        for token in tokens:
            record = {"layer": 1 + row, "topk_ids": ids[token, row].tolist()}
            lines.append(record | {"token_idx": token} if named else record)
    return json_lines(lines)


def test_token_lines_are_joined_by_token(desk: Desk) -> None:
    """Layers wrote their tokens in different orders; without token_idx the order is all there is."""
    order = {row: np.random.default_rng(row).permutation(60).tolist() for row in range(4)}
    same_tokens(desk.bring(desk.put("moe_routes.jsonl", token_lines(order))).arrays)
    same = dict.fromkeys(range(4), order[0])
    path = desk.put("moe_routes.jsonl", token_lines(same, named=False))
    same_tokens(desk.bring(path).arrays, IDS[order[0]])


def test_token_lines_of_many_tokens_a_record(desk: Desk) -> None:
    lines = [
        {"layer": 1 + row, "token_idx": tokens.tolist(), "topk_ids": IDS[tokens, row].tolist()}
        for row in range(4)
        for tokens in np.split(np.random.default_rng(row).permutation(60), 3)
    ]
    same_tokens(desk.bring(desk.put("moe_routes.jsonl", json_lines(lines))).arrays)


def test_token_lines_of_one_layer(desk: Desk) -> None:
    """Each pass begins at token 0 again, but nothing tells where."""
    lines = [{"layer": 1, "token_idx": token % 20, "topk_ids": IDS[token, 0].tolist()} for token in range(60)]
    path = desk.put("moe_routes.jsonl", json_lines(lines))
    outcome = desk.bring(path, model=False, options=["--num-experts", 8])
    np.testing.assert_array_equal(outcome.arrays["expert_ids"], IDS[:, :1])


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([0, 1, 3], "layer 2 lacks token 2 in the pass that begins here, another has it [token-sum]"),
        ([0, 1, 1], "layer 2 has token 1 twice in the pass that begins here [token-sum]"),
    ],
)
def test_token_lines_of_other_tokens(desk: Desk, tokens: list[int], message: str) -> None:
    outcome = desk.bring(desk.put("moe_routes.jsonl", token_lines({0: [0, 1, 2], 1: tokens, 2: [0, 1, 2]})))
    assert outcome.code == 3
    assert f"moe_routes.jsonl:1:1: token_idx: {message}" in outcome.err


def test_token_lines_some_of_which_name_no_token(desk: Desk) -> None:
    text = token_lines({0: [0, 1]}) + token_lines({1: [0, 1]}, named=False)
    outcome = desk.bring(desk.put("moe_routes.jsonl", text))
    assert outcome.code == 3
    assert "2 of 4 records of the pass that begins here name their tokens" in outcome.err


def test_native_files_are_joined(desk: Desk) -> None:
    for index, part in enumerate(np.split(IDS, 2)):
        np.savez_compressed(
            desk.folder / f"{index}.npz",
            expert_ids=part.astype(np.int16),
            layer_ids=MOE_LAYERS,
            num_experts=8,
            seq_id=np.repeat([0, 1, 2], 10),
        )
    arrays = desk.bring(desk.folder / "0.npz", desk.folder / "1.npz").arrays
    same_tokens(arrays)
    assert arrays["seq_id"].tolist() == np.repeat(range(6), 10).tolist()


@pytest.mark.parametrize("name", ["seq_id", "step_id"])
@pytest.mark.parametrize(
    "ids", [([-3, -1], [-3, -1], [-1, 0]), ([-1, 4], [-9, 2], [0, 1]), ([0, 1], [-2, -1], [-2, -1])]
)
def test_ids_of_joined_native_files_stay_apart(desk: Desk, ids: tuple[list[int], ...], name: str) -> None:
    """Negative ones, too, and those of the first file are kept."""
    paths = [desk.folder / f"{index}.npz" for index in range(3)]
    for path, part, own in zip(paths, np.split(IDS, 3), ids, strict=True):
        columns: dict[str, Any] = {name: np.repeat(own, 10)}
        np.savez(path, expert_ids=part, layer_ids=MOE_LAYERS, num_experts=8, **columns)
    arrays = desk.bring(*paths).arrays
    same_tokens(arrays)
    joined = arrays[name].reshape(6, 10)
    assert (joined == joined[:, :1]).all()
    assert len(set(joined[:, 0].tolist())) == 6
    assert joined[:2, 0].tolist() == ids[0]
    assert [joined[2 * i + 1, 0] - joined[2 * i, 0] for i in range(3)] == [own[1] - own[0] for own in ids]


def test_ids_of_joined_native_files_that_leave_no_room(desk: Desk) -> None:
    paths = [desk.folder / f"{index}.npz" for index in range(2)]
    for path, part in zip(paths, np.split(IDS, 2), strict=True):
        seq_id = np.repeat([-5, (1 << 63) - 1], 15)
        np.savez(path, expert_ids=part, layer_ids=MOE_LAYERS, num_experts=8, seq_id=seq_id)
    outcome = desk.bring(*paths)
    assert outcome.code == 3
    assert "1.npz: ids from -5 to 9223372036854775807 cannot follow those of the files before" in outcome.err
    assert desk.bring(paths[0]).arrays["seq_id"].tolist() == np.repeat([-5, (1 << 63) - 1], 15).tolist()


def test_nothing_of_a_native_trace_is_lost(desk: Desk) -> None:
    """Weights, positions and domains of two traces that name their domains differently; one is compressed."""
    weights = np.random.default_rng(0).random((2, 30, 4, 2))
    for index, (part, save) in enumerate(zip(np.split(IDS, 2), (np.savez, np.savez_compressed), strict=True)):
        save(
            desk.folder / f"{index}.npz",
            expert_ids=part.astype(np.int16),
            layer_ids=MOE_LAYERS,
            num_experts=8,
            seq_id=np.repeat([0, 4], 15),
            pos=np.tile(np.arange(15), 2),
            step_id=np.arange(30) // 10,
            domain_id=np.repeat([1, 0], 15),
            domain_names=[["code", "prose"], ["prose", "maths"]][index],
            weights=weights[index].astype([np.float16, np.float32][index]),
        )
    arrays = desk.bring(desk.folder / "0.npz", desk.folder / "1.npz").arrays
    same_tokens(arrays)
    assert arrays["seq_id"].tolist() == np.repeat([0, 4, 5, 9], 15).tolist()
    assert arrays["pos"].tolist() == np.tile(np.arange(15), 4).tolist()
    assert arrays["step_id"].tolist() == np.repeat([0, 1, 2, 5, 6, 7], 10).tolist()
    named = arrays["domain_names"][arrays["domain_id"]].tolist()
    assert named == np.repeat(["prose", "code", "maths", "prose"], 15).tolist()
    np.testing.assert_array_equal(arrays["weights"][:30], weights[0].astype(np.float16))
    np.testing.assert_array_equal(arrays["weights"][30:], weights[1].astype(np.float32))


def test_weights_stay_beside_the_choices_that_are_kept(desk: Desk) -> None:
    """A dense layer, padding and a third choice that is never used are left out of both."""
    ids = np.concatenate([with_dense(IDS), np.full((60, 5, 1), -1)], axis=2)
    ids[7] = -1
    weights = np.random.default_rng(0).random(ids.shape).astype(np.float32)
    np.savez(desk.folder / "own.npz", expert_ids=ids, num_experts=8, weights=weights)
    arrays = desk.bring(desk.folder / "own.npz").arrays
    same_tokens(arrays, np.delete(IDS, 7, axis=0))
    np.testing.assert_array_equal(arrays["weights"], np.delete(weights[:, 1:, :2], 7, axis=0))
    np.savez(desk.folder / "own.npz", expert_ids=ids, num_experts=8, weights=weights[:, 0])
    assert "own.npz: weights: (60, 3) of float32 found" in desk.bring(desk.folder / "own.npz").err
