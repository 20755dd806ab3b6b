"""Every trap of recording, planted: named, with its cure, and gone when the cure is taken."""

from __future__ import annotations

import json

import numpy as np
import pytest

from planner.trace.faults import FAULTS
from planner.trace.native import read_trace
from tests.unit.importers.recording import MOE_LAYERS, Desk, Outcome, counted, json_lines, npy, pt, routes, with_dense
from tests.unit.importers.test_round_trips import IDS, PLACED, megatron, on_slots, same_counts, same_tokens, slot_counts

PLANTED: set[str] = set()


def named(outcome: Outcome, fault: str, *words: str, code: int = 3) -> None:
    """The fault is named, with these words in message or cure."""
    PLANTED.add(fault)
    assert outcome.code == code, outcome.err
    assert f"[{fault}" in outcome.err, outcome.err
    for word in words:
        assert word in outcome.err, outcome.err


def test_dense_layers_are_left_out_with_and_without_a_model(desk: Desk) -> None:
    path = desk.put("routes.npy", npy(with_dense(IDS).astype(np.uint8)))
    named(desk.bring(path), "dense-layer", "rows of dense layers 0 left out", code=0)
    outcome = desk.bring(path, model=False, options=["--num-experts", 8])
    named(outcome, "dense-layer", "layers 0 hold no routing", code=0)
    same_tokens(outcome.arrays)
    counts = np.concatenate([[np.eye(1, 8, dtype=np.int64)[0] * 120], counted(IDS)])  # 60 tokens x top-2 on expert 0
    outcome = desk.bring(desk.put("counts.npy", npy(counts)))
    named(outcome, "dense-layer", code=0)
    same_counts(outcome.arrays, IDS)


@pytest.mark.parametrize("filler", [255, 65535, -5])
def test_filler_ids(desk: Desk, filler: int) -> None:
    ids = with_dense(IDS).astype(np.int32)
    ids[7, 2, 1] = filler
    path = desk.put("routes.npy", npy(ids))
    options = ["--from", "vllm"]
    named(desk.bring(path, options=options), "filler-ids", f"id {filler} in 1 choices", f"--filler {filler}")
    expected = IDS.copy()
    expected[7, 1, 1] = -1
    same_tokens(desk.bring(path, options=[*options, "--filler", filler]).arrays, expected)


def test_an_accepted_filler_id_is_no_expert(desk: Desk) -> None:
    """Also beside expert 0, which it must not choose a second time."""
    ids = with_dense(IDS).astype(np.uint8)
    ids[7, 2], ids[9, 3] = (0, 255), (255, 5)
    path = desk.put("routes.npy", npy(ids))
    outcome = desk.bring(path, options=["--from", "vllm", "--accept", "filler-ids"])
    named(outcome, "filler-ids", "id 255 in 2 choices", "accepted", code=0)
    expected = IDS.copy()
    expected[7, 1], expected[9, 2] = (0, -1), (-1, 5)
    same_tokens(outcome.arrays, expected)
    assert outcome.arrays["expert_ids"].dtype.kind == "i"
    read_trace(outcome.path)


def test_repeats_are_found_beside_an_accepted_filler_id(desk: Desk) -> None:
    ids = with_dense(IDS).astype(np.uint8)
    ids[7, 2], ids[9, 3] = (4, 255), (5, 5)
    outcome = desk.bring(desk.put("routes.npy", npy(ids)), options=["--from", "vllm", "--accept", "filler-ids"])
    named(outcome, "repeated-expert", "1 tokens chose an expert twice in one layer, most in row 3")


def test_foreign_ids_alone_are_named(desk: Desk) -> None:
    path = desk.put("routes.npy", npy(np.full((4, 5, 2), 255, dtype=np.uint8)))
    named(desk.bring(path, options=["--from", "vllm"]), "filler-ids", "id 255 in 40 choices", "--filler 255")
    outcome = desk.bring(path, options=["--from", "vllm", "--accept", "filler-ids"])
    assert outcome.code == 3
    assert "no token was routed" in outcome.err


def test_filler_ids_that_are_valid_experts(desk: Desk) -> None:
    """255 is an expert where there are 256; a row that it fills is none, and neither is one of zeros."""
    good = routes(40, layers=3, experts=256, top_k=4)
    ids = good.copy()
    ids[5:9] = 255  # padding: all layers
    ids[20, 1] = 0  # one layer never written
    ids[21, 2] = 255
    outcome = desk.bring(desk.put("routes.npy", npy(ids.astype(np.uint8))), model=False, options=["--num-experts", 256])
    named(outcome, "filler-ids", "4 tokens that chose no expert", "2 rows with one id in all choices", code=0)
    expected = good.copy()
    expected[20, 1] = expected[21, 2] = -1
    np.testing.assert_array_equal(outcome.arrays["expert_ids"], np.delete(expected, range(5, 9), axis=0))


def test_physical_ids(desk: Desk) -> None:
    ids = on_slots(IDS).transpose(1, 0, 2)[:, :, :2]
    named(desk.bring(desk.put("routes.npy", npy(ids)), options=["--from", "vllm"]), "physical-ids", "up to 9", "0..7")
    counts = desk.put("counts.npy", npy(slot_counts(on_slots(IDS))))
    named(desk.bring(counts, options=["--top-k", 2]), "physical-ids", "10 experts recorded", "the map of that run")


def test_wrong_map_shows_as_repeated_experts(desk: Desk) -> None:
    wrong = np.tile([0, 1, 2, 3, 3, 4, 5, 6, 7, 7], (5, 1))
    record = {"forward_pass_id": 0, "rank": 0, "forward_mode": 2, "topk_ids_of_layer": on_slots(IDS)}
    path = desk.put("r_0.pt", pt({"records": [record], "last_physical_to_logical_map": wrong}))
    named(desk.bring(path), "repeated-expert", "chose an expert twice")


def test_shared_experts(desk: Desk) -> None:
    """A fused shared expert is recorded as id 8 in a third column."""
    shared = np.concatenate([with_dense(IDS), np.full((60, 5, 1), 8)], axis=2)
    path = desk.put("routes.npy", npy(shared.astype(np.uint8)))
    options = ["--from", "vllm"]
    named(desk.bring(path, model=False, options=[*options, "--num-experts", 8]), "shared-experts", "--filler 8")
    same_tokens(desk.bring(path, options=[*options, "--filler", 8]).arrays)


@pytest.mark.parametrize("model", [True, False])
def test_an_accepted_shared_expert_leaves_no_column(desk: Desk, model: bool) -> None:
    shared = np.concatenate([with_dense(IDS), np.full((60, 5, 1), 8)], axis=2)
    path = desk.put("routes.npy", npy(shared.astype(np.uint8)))
    said = ["--from", "vllm", "--accept", "shared-experts", *([] if model else ["--num-experts", 8])]
    outcome = desk.bring(path, model=model, options=said)
    named(outcome, "shared-experts", "accepted", code=0)
    same_tokens(outcome.arrays)
    assert read_trace(outcome.path).trace.top_k == 2


def test_double_count_by_ranks_that_saw_the_same(desk: Desk) -> None:
    for rank in range(2):
        desk.put(f"megatron/router_trace_rank{rank}.jsonl", megatron(IDS, rank, 3, MOE_LAYERS))
        records = [{"forward_pass_id": i, "rank": rank, "global_physical_count": slot_counts(on_slots(part))}
                   for i, part in enumerate(np.split(IDS, 3))]  # fmt: skip
        desk.put(f"sglang/r_{rank}.pt", pt({"records": records, "last_physical_to_logical_map": PLACED}))
    outcome = desk.bring(desk.folder / "megatron")
    named(outcome, "double-count", "router_trace_rank1.jsonl recorded the same as router_trace_rank0.jsonl", "one rank")
    same_tokens(desk.bring(desk.folder / "megatron" / "router_trace_rank0.jsonl").arrays)
    named(desk.bring(desk.folder / "sglang"), "double-count", "r_1.pt recorded the same as r_0.pt")
    accepted = desk.bring(desk.folder / "megatron", options=["--accept", "double-count"])
    named(accepted, "double-count", "accepted", code=0)
    assert len(accepted.arrays["expert_ids"]) == 120


def test_double_count_in_the_numbers(desk: Desk) -> None:
    counts = counted(routes(4000, experts=8))
    named(desk.bring(desk.put("counts.npy", npy(3 * counts))), "double-count", "multiples of 3", "divide by 3")
    same_counts(desk.bring(desk.put("counts.npy", npy(counts))).arrays, routes(4000, experts=8))


def test_pipeline_stages_that_overwrote_each_other(desk: Desk) -> None:
    """Both stages wrote hidden layers from 0; the dense layer of the first was overwritten, too."""
    lines = [
        {"layer": layer, "topk_ids": chosen} for token in IDS.tolist() for layer, chosen in enumerate(token[:2], 1)
    ]
    path = desk.put("moe_routes.jsonl", json_lines(lines))
    named(desk.bring(path), "pipeline-ranks", "only the first 2 of 4 MoE layers", "--layer-offset")
    stage = desk.bring(path, options=["--layer-offset", 2])
    assert stage.arrays["layer_ids"].tolist() == [3, 4]
    counts = desk.put("counts.npy", npy(counted(IDS)[:2]))
    named(desk.bring(counts), "pipeline-ranks")
    for rank, layers in enumerate(([1, 2], [2, 3])):
        desk.put(f"m/router_trace_rank{rank}.jsonl", megatron(IDS[:, :2], rank, 3, layers))
    named(desk.bring(desk.folder / "m"), "pipeline-ranks", "layer 2 is in ranks whose other layers differ")


def test_moe_ordinals_and_hidden_layers(desk: Desk) -> None:
    ordinals = desk.put("routes.npy", npy(IDS.astype(np.uint8)))  # four rows where vLLM has five
    named(desk.bring(ordinals), "layer-index", "4 rows, as many as four-of-five has MoE layers", "--rows moe")
    same_tokens(desk.bring(ordinals, options=["--rows", "moe"]).arrays)
    for rank in range(2):  # five rows where omni-infer has four
        rows = np.vstack([np.zeros((1, 8), dtype=np.int64), counted(IDS)])[:, 4 * rank : 4 * rank + 4]
        text = "".join("\t".join(map(str, row)) + "\n" for row in rows.tolist())
        desk.put(f"dump/activation_counts_recordstep_0_rank_{rank}.txt", text)
    named(desk.bring(desk.folder / "dump"), "layer-index", "5 rows", "--rows hidden")
    same_counts(desk.bring(desk.folder / "dump", options=["--rows", "hidden"]).arrays, IDS)
    lines = [{"layer": layer, "topk_ids": chosen} for token in IDS.tolist() for layer, chosen in enumerate(token)]
    path = desk.put("moe_routes.jsonl", json_lines(lines))  # keys 0..3 where the model has 1..4
    named(desk.bring(path), "layer-index", "layers 0 are routed, but are no MoE layers")
    same_tokens(desk.bring(path, options=["--rows", "moe"]).arrays)
    named(desk.bring(path, model=False, options=["--num-experts", 8, "--rows", "moe"]), "layer-index", code=0)


def test_zero_layers(desk: Desk) -> None:
    ids = with_dense(IDS)
    ids[:, 3] = 0
    path = desk.put("routes.npy", npy(ids.astype(np.uint8)))
    named(desk.bring(path), "zero-layer", "MoE layers 3 of four-of-five were never recorded")
    assert desk.bring(path, model=False, options=["--num-experts", 8]).arrays["layer_ids"].tolist() == [1, 2, 4]
    windows = np.stack([counted(part) for part in np.split(IDS, 2)])
    windows[1, 2] = 0
    counts = desk.put("counts.npy", npy(windows))
    named(desk.bring(counts), "zero-layer", "window 1: layer 3 has no counts", "accepted, 1 window")
    accepted = desk.bring(counts, options=["--accept", "zero-layer"])
    named(accepted, "zero-layer", "accepted]", code=0)
    same_counts(accepted.arrays, IDS[:30])
    accepted = desk.bring(path, options=["--accept", "zero-layer"])  # DeepSeek-V4: hash layers are not recorded
    named(accepted, "zero-layer", "accepted]", code=0)
    assert accepted.arrays["layer_ids"].tolist() == [1, 2, 4]


def test_token_sums(desk: Desk) -> None:
    counts = counted(IDS)
    counts[1, 3] -= 1
    path = desk.put("counts.npy", npy(counts))
    named(desk.bring(path), "token-sum", "119 choices in layer 2, but 120 in others (1 such rows)")
    assert desk.bring(path, options=["--accept", "token-sum"]).code == 0
    counts = counted(IDS)
    counts[:, 3] += 1
    named(desk.bring(desk.put("counts.npy", npy(counts))), "token-sum", "121 choices", "not a multiple of top-2")
    lines = [
        {"layer": 1 + row, "token_idx": t, "topk_ids": IDS[t, row].tolist()} for row in range(4) for t in range(60)
    ]
    path = desk.put("moe_routes.jsonl", json_lines(lines[:-1]))
    named(desk.bring(path), "token-sum", "moe_routes.jsonl:1:1: layer 4 has 59 tokens")


def test_dummy_tokens(desk: Desk) -> None:
    """Each eighth token is padding that went through the routers; a first token that is always the same is not."""
    good = routes(320, layers=4, experts=64, top_k=4)
    for every, found in ((8, True), (16, False)):
        ids = good.copy()
        ids[::every] = ids[0, :, ::-1]  # the same sets in another order
        path = desk.put("routes.npy", npy(ids.astype(np.uint8)))
        outcome = desk.bring(path, model=False, options=["--num-experts", 64])
        if found:
            named(outcome, "dummy-tokens", "12% of the tokens chose the very same experts", "record without them")
        else:
            assert (outcome.code, "dummy-tokens" in outcome.err) == (0, False)
    few = routes(320, layers=1, experts=4, top_k=2)  # six choices there are: chance
    assert desk.bring(desk.put("few.npy", npy(few.astype(np.uint8))), model=False,
                      options=["--num-experts", 4, "--from", "vllm"]).code == 0  # fmt: skip


def test_mixed_phases(desk: Desk) -> None:
    log = []
    for phase, part in (("prefill", IDS[:40]), ("decode", IDS[40:])):
        for layer, row in enumerate(counted(part).tolist()):
            data = "\t".join(map(str, row))
            log.append(f"[dump activation] {phase} step 1 in rank 0 for layer {layer} get 8 experts data: {data}\n")
    path = desk.put("server.log", "".join(log))
    named(desk.bring(path), "mixed-phases", "--phase prefill")
    same_counts(desk.bring(path, options=["--phase", "decode"]).arrays, IDS[40:])
    uneven = np.stack([counted(routes(64)), counted(routes(1))])
    named(desk.bring(desk.put("counts.npy", npy(uneven))), "mixed-phases", "windows of 8 to 512 choices", code=0)
    assert desk.bring(desk.put("counts.npy", npy(uneven)), options=["--phase", "decode"]).code == 2


def test_all_faults_come_at_once(desk: Desk) -> None:
    usage = {"prompt_tokens": 41, "total_tokens": 61}
    import base64

    ids = with_dense(IDS).astype(np.int32)
    ids[3, 1, 0] = 300
    ids[:, 4] = 0
    text = base64.b64encode(npy(ids)).decode()
    path = desk.put("answer.json", json.dumps({"choices": [{"routed_experts": text}], "usage": usage}))
    outcome = desk.bring(path)
    for fault in ("mixed-phases", "filler-ids", "zero-layer"):
        named(outcome, fault)
    assert "1 file, 3 problems; nothing was written." in outcome.err


def test_another_model(desk: Desk) -> None:
    assert "top-3 recorded" in desk.bring(desk.put("r.npy", npy(routes(60, layers=5, top_k=3).astype(np.uint8)))).err
    outcome = desk.bring(desk.put("c.npy", npy(counted(routes(60, layers=7)))))
    assert outcome.code == 3
    assert "7 rows, but four-of-five has 4 MoE layers" in outcome.err


def test_dense_layers_of_a_model_that_chooses_one_expert(desk: Desk) -> None:
    """Llama 4: a zero is one choice of expert 0, so only the whole layer tells."""
    model = (desk.folder / "model.yaml").read_text().replace("top_k: 2", "top_k: 1")
    (desk.folder / "model.yaml").write_text(model)
    outcome = desk.bring(
        desk.put("routes.npy", npy(with_dense(IDS[:, :, :1]).astype(np.uint8))), options=["--from", "vllm"]
    )
    named(outcome, "dense-layer", code=0)
    same_tokens(outcome.arrays, IDS[:, :, :1])


def test_every_fault_was_planted() -> None:
    assert set(FAULTS) == PLANTED
