"""`ep-plan size` as a user meets it."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from planner.cli.size import TokenRate
from tests.cli.running import deployment_file, files_in, run

FIXED = "solve: {split: {tp: 1, pp: 1, etp: 1}}\n"


def mixtral(folder: Path, phase: str = "decode") -> Path:
    """Mixtral on nodes of two L40S; few splits to look at."""
    (folder / "topology.yaml").write_text(
        "schema: ep-plan/topology/1\ngpu: l40s\nnodes: 1\ngpus_per_node: 2\nlinks:\n"
        "  - {level: node, bandwidth: 25 GB/s, latency: 5 us}\n"
        "  - {level: cluster, bandwidth: 12.5 GB/s, latency: 10 us}\n"
    )
    work = f"workload: {{phase: {phase}, tokens_per_gpu: 1, context_length: 1024}}\n"
    path = deployment_file(folder, f"model: mixtral-8x7b\ntopology: topology.yaml\n{work}{FIXED}")
    return path.rename(folder / f"{phase}.yaml")


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("20k tok/s", 20_000),
        ("20 ktok/s", 20_000),
        ("20ktok/s", 20_000),
        ("20 k tok/s", 20_000),
        ("20000tokens/s", 20_000),
        ("1.5k tokens/s", 1500),
    ],
)
def test_rates(text: str, rate: float) -> None:
    assert TokenRate().convert(text, None, None) == rate


def test_the_rates_that_a_message_recommends_are_rates() -> None:
    with pytest.raises(click.BadParameter) as caught:
        TokenRate().convert("20 Mtok/s", None, None)
    recommended = re.findall(r'"([^"]+)"', caught.value.message)
    assert [TokenRate().convert(text, None, None) for text in recommended] == [20_000, 20_000]


def test_several_nodes_need_a_level_that_joins_them(tmp_path: Path) -> None:
    path = mixtral(tmp_path)
    topology = tmp_path / "topology.yaml"
    topology.write_text("".join(topology.read_text().splitlines(keepends=True)[:-1]))
    told = run("size", path, "--concurrency", 1, cwd=tmp_path)
    assert told.code == 2
    assert "only the level 'node' inside a node" in told.err
    assert "level: cluster" in told.err
    assert "--max-nodes 1" in told.err
    alone = run("size", path, "--concurrency", 1, "--max-nodes", 1, cwd=tmp_path)
    assert "no split of 2 GPUs fits" in alone.words


@pytest.mark.parametrize("option", ["--max-step", "--max-ttft"])
def test_no_time_is_no_limit(tmp_path: Path, option: str) -> None:
    told = run("size", mixtral(tmp_path), "--concurrency", 1, option, "0 s", cwd=tmp_path)
    assert told.code == 2
    assert "must be above 0" in told.err


def test_answer_reason_front_and_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    asked = ("size", mixtral(tmp_path), "--target", "300 tok/s", "--price", "gpu=1.50/h", "--max-nodes", 4)
    told = run(*asked, "--plot", "front.svg", cwd=tmp_path)
    assert told.code == 0, told.err
    assert "1 node would not do: no split of 2 GPUs fits" in told.words
    assert "6.00" in told.out  # two nodes of two GPUs
    assert (tmp_path / "front.svg").read_bytes().startswith(b"<?xml")
    document = run(*asked, "--json", cwd=tmp_path).json()
    (answer,) = document["answers"]
    assert (document["best"], document["least"]) == ("topology.yaml", "cost")
    assert (answer["point"]["nodes"], answer["point"]["gpus"], answer["per_hour"]) == (2, 4, 6.0)
    assert answer["point"]["figures"]["tokens_per_s"] >= 300
    assert answer["one_less"]["nodes"] == 1
    assert document["front"]


def test_no_count_will_do(tmp_path: Path) -> None:
    told = run("size", mixtral(tmp_path), "--concurrency", 8, "--max-nodes", 1, "--json", cwd=tmp_path)
    assert told.code == 4
    (answer,) = told.json()["answers"]
    assert answer["point"] is None
    assert "needs" in answer["one_less"]["why_not"]


def test_wrong_usage(tmp_path: Path) -> None:
    deployment = mixtral(tmp_path)
    before = files_in(tmp_path)
    for options in (
        (),
        ("--target", "fast"),
        ("--concurrency", 1, "--price", "gpu=2.50"),
        ("--concurrency", 1, "--least", "cost"),
        ("--concurrency", 1, "--rate", "5/s"),
        ("--concurrency", 1, "--max-ttft", "2 s"),
        ("--concurrency", 1, "--catalogue", "no-such-node"),
        ("--prefill", deployment),
        ("--prefill", deployment, "--input-tokens", 9, "--output-tokens", 9, "--rate", "1/s"),
    ):
        told = run("size", deployment, *options, cwd=tmp_path)
        assert told.code == 2, options
        assert told.out == ""
    assert files_in(tmp_path) == before


def test_prices_and_powers_of_other_gpus_are_refused(tmp_path: Path) -> None:
    """They would count for nothing, and every cost would be unknown."""
    kinds = ("--catalogue", "hgx-h100", "--catalogue", "hgx-h200")
    asked = ("size", mixtral(tmp_path), "--concurrency", 1, *kinds)
    told = run(*asked, "--price", "foo=2/h", "--price", "h200-sxm=3/h", "--watts", "hgx-h100=700 W", cwd=tmp_path)
    assert (told.code, told.out) == (2, "")
    expected = "expected one of: h100-sxm, h200-sxm; or gpu, which stands for any other"
    assert told.err.splitlines() == [
        "error: --price: none of the nodes looked at has a GPU foo",
        f"  {expected}",
        "error: --watts: none of the nodes looked at has a GPU hgx-h100",
        "  that is a node, its GPUs are h100-sxm",
        f"  {expected}",
    ]
    for node, gpu in (("topology.yaml", "l40s"), ("hgx-b200", "b200")):
        told = run("size", mixtral(tmp_path), "--concurrency", 1, "--price", f"{node}=2/h", cwd=tmp_path)
        assert (told.code, f"that is a node, its GPUs are {gpu}\n" in told.err) == (2, True)


def test_a_price_is_given_once(tmp_path: Path) -> None:
    twice = ("--price", "gpu=2/h", "--price", "gpu=3/h")
    told = run("size", mixtral(tmp_path), "--concurrency", 1, *twice, cwd=tmp_path)
    assert (told.code, told.err) == (2, "error: --price: the GPU gpu has two values\n")


def test_a_price_of_some_kinds_is_enough(tmp_path: Path) -> None:
    kinds = ("--catalogue", "hgx-h100", "--catalogue", "hgx-h200", "--max-nodes", 1)
    asked = ("size", mixtral(tmp_path), "--concurrency", 8, *kinds, "--price", "h200-sxm=3/h", "--json")
    document = run(*asked, cwd=tmp_path).json()
    assert [answer["per_hour"] for answer in document["answers"]] == [None, 24.0]
    assert (document["least"], document["best"]) == ("cost", "hgx-h200")


def test_a_pair(tmp_path: Path) -> None:
    requests = ("--input-tokens", 512, "--output-tokens", 64, "--rate", "0.5/s", "--max-nodes", 4)
    told = run("size", mixtral(tmp_path), "--prefill", mixtral(tmp_path, "prefill"), *requests, cwd=tmp_path)
    assert told.code == 0, told.err
    assert "KV cache of a request: 64.0 MiB" in told.words  # 512 x 128 KiB
    assert "in turn: prefill takes" in told.words
