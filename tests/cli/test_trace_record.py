"""`ep-plan trace record` on a model folder as transformers saves it."""

from __future__ import annotations

import importlib.util
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from planner.cli.main import call
from tests.cli.running import files_in, run

torch = pytest.importorskip("torch", reason="recording needs torch")
transformers = pytest.importorskip("transformers", reason="recording needs transformers")
tokenizers = pytest.importorskip("tokenizers", reason="recording needs tokenizers")

BEGIN = 256


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Runs `trace record` in this process, as torch is slow to start, with `tmp_path` as current folder."""
    monkeypatch.chdir(tmp_path)

    def run_here(*arguments: object) -> Done:
        code = call(["trace", "record", *map(str, arguments)])
        return Done(code, *capsys.readouterr())

    return run_here


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Mixtral of three layers with a tokenizer of one token per byte."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        "mixtral",
        vocab_size=257,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=6,
        num_experts_per_tok=2,
        bos_token_id=BEGIN,
        eos_token_id=BEGIN,
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(letters)} | {"<s>": BEGIN}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", BEGIN)]
    )
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>")
    wrapped.save_pretrained(folder)
    return folder


def test_files_become_domains_and_sequences(record: Any, model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "prose.txt").write_text("a" * 40)
    (tmp_path / "code.py").write_text("b" * 18)
    result = record(model_folder, "--text", "prose.txt", "code.py", "--length", 10, "--batch", 3,
                 "-o", "out.npz")  # fmt: skip
    assert (result.code, result.out) == (0, ""), result.err
    assert "65 tokens in 7 sequences, 3 MoE layers of 6 experts" in result.err
    with np.load(tmp_path / "out.npz") as trace:
        assert trace["expert_ids"].shape == trace["weights"].shape == (65, 3, 2)
        assert trace["layer_ids"].tolist() == [0, 1, 2]
        assert trace["domain_names"].tolist() == ["prose", "code"]
        # 40 characters: four sequences of a beginning and 9, one of 4; 18: two of 9. The files take turns.
        per_sequence = [trace["domain_id"][trace["seq_id"] == sequence] for sequence in range(7)]
        assert [len(domains) for domains in per_sequence] == [10, 10, 10, 10, 10, 10, 5]
        assert [int(domains[0]) for domains in per_sequence] == [0, 1, 0, 0, 0, 1, 0]
        assert trace["pos"][:10].tolist() == list(range(10))
        # Equal text, equal position: equal choices, though batches and padding differ.
        by_sequence = trace["expert_ids"].reshape(-1, 6)[:60].reshape(6, 10, 6)
        assert np.array_equal(by_sequence[0], by_sequence[3])
        assert not np.array_equal(by_sequence[0][1:], by_sequence[1][1:])


def test_batches_do_not_matter_and_long_files_are_cut(record: Any, model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("Each batch gives the same choices. " * 9)
    for name, batch in (("one.npz", 1), ("many.npz", 16)):
        done = record(model_folder, "--text", "text.txt", "--length", 24, "--batch", batch, "-o", name,
                   "--order", "files", "--tokens-per-file", 250)  # fmt: skip
        assert done.code == 0
        assert "warning: text.txt: only the first 250 tokens are recorded" in done.err
    assert files_in(tmp_path) == {"text.txt", "one.npz", "many.npz"}
    with np.load(tmp_path / "one.npz") as one, np.load(tmp_path / "many.npz") as many:
        assert len(one["expert_ids"]) == 250 + 11  # eleven beginnings
        assert np.array_equal(np.sort(one["expert_ids"]), np.sort(many["expert_ids"]))


def test_what_is_wrong_is_told_before_anything_is_written(record: Any, model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    done = record(model_folder, "--text", "empty.txt", "binary.txt")
    assert done.code == 3
    assert "empty.txt: holds no text" in done.err
    assert "binary.txt: not UTF-8" in done.err
    assert record("nowhere", "--text", "empty.txt").code == 2
    assert record(model_folder, "--text", "nowhere.txt").code == 2
    (tmp_path / "hollow").mkdir()
    done = record("hollow", "--text", "empty.txt")
    assert "empty.txt: holds no text" in done.err  # before a model is loaded
    (tmp_path / "text.txt").write_text("some text")
    done = record("hollow", "--text", "text.txt")
    assert done.code == 3
    assert "hollow: the model cannot be loaded" in done.err
    assert files_in(tmp_path) == {"empty.txt", "text.txt", "binary.txt", "hollow"}
    done = record(model_folder, "--text", "empty.txt", "-o", "empty.txt")
    assert done.code == 2
    assert "empty.txt is an input of this command" in done.err


def without(model_folder: Path, copy: Path, pattern: str) -> Path:
    """A copy of the model folder that lacks some files."""
    shutil.copytree(model_folder, copy, ignore=shutil.ignore_patterns(pattern))
    return copy


def test_what_is_wrong_with_a_model_folder(record: Any, model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("some text")

    def told(folder: Path) -> tuple[int, str]:
        done = record(folder, "--text", "text.txt")
        return done.code, done.err

    hollow = without(model_folder, tmp_path / "no-weights", "model*")
    assert told(hollow)[0] == 3
    assert f"{hollow}: the model cannot be loaded" in told(hollow)[1]
    mute = without(model_folder, tmp_path / "no-tokenizer", "tokenizer*")
    assert told(mute)[0] == 3
    assert f"{mute}: the tokenizer cannot be loaded" in told(mute)[1]
    cut = without(model_folder, tmp_path / "cut", "nothing")
    with (cut / "model.safetensors").open("r+b") as file:
        file.truncate(4000)
    assert told(cut)[0] == 3
    assert f"{cut}: the model cannot be loaded" in told(cut)[1]
    for folder in (hollow, mute, cut):
        assert "needed" in told(folder)[1]


def test_weights_that_are_not_there_are_never_made_up(record: Any, model_folder: Path, tmp_path: Path) -> None:
    """transformers fills what is missing at random, routers too, and says so in a log line only."""
    safetensors = pytest.importorskip("safetensors.torch")
    folder = without(model_folder, tmp_path / "model", "nothing")
    weights = safetensors.load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if ".gate." not in name}
    assert len(kept) == len(weights) - 3
    safetensors.save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "text.txt").write_text("some text")
    done = record(folder, "--text", "text.txt")
    assert done.code == 3
    assert re.search(r"no weights for layers\.0\..*gate\.weight \(3 in all\)", done.err), done.err
    assert not (tmp_path / "trace.npz").exists()


def test_a_dense_model_and_a_strange_tokenizer(record: Any, model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("some text")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    few, told = {"num_local_experts": 4, "num_experts_per_tok": 2}, ""
    for name, family, keys in (("dense", "llama", {"vocab_size": 257}), ("few", "mixtral", {"vocab_size": 50} | few)):
        folder = without(model_folder, tmp_path / name, "model*")
        config = transformers.AutoConfig.for_model(family, num_key_value_heads=2, **sizes, **keys)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        done = record(folder, "--text", "text.txt")
        assert done.code == 3
        told += done.err
    assert f"{tmp_path / 'dense'}: no router found in LlamaModel" in told
    assert "but the model knows 50 tokens" in told


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_devices_that_are_not_there(record: Any, model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("some text")
    done = record(model_folder, "--text", "text.txt", "--device", "cuda")
    assert done.code == 7
    assert "device cuda:" in done.err
    assert record(model_folder, "--text", "text.txt", "--device", "gpu0").code == 2
    if importlib.util.find_spec("accelerate") is None:
        assert record(model_folder, "--text", "text.txt", "--device", "auto").code == 7


def test_without_torch_it_says_what_to_install(model_folder: Path, tmp_path: Path) -> None:
    package = tmp_path / "blocked" / "torch"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('blocked by a test')\n")
    (tmp_path / "text.txt").write_text("some text")
    env = {"PYTHONPATH": str(tmp_path / "blocked")}
    done = run("trace", "record", model_folder, "--text", "text.txt", cwd=tmp_path, env=env)
    assert done.code == 7
    assert "pip install 'ep-plan[record]'" in done.err
