"""`ep-plan trace record` on a model folder as transformers saves it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.cli.running import files_in, run

torch = pytest.importorskip("torch", reason="recording needs torch")
transformers = pytest.importorskip("transformers", reason="recording needs transformers")
tokenizers = pytest.importorskip("tokenizers", reason="recording needs tokenizers")

BEGIN = 256


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


def test_files_become_domains_and_sequences(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "prose.txt").write_text("a" * 40)
    (tmp_path / "code.py").write_text("b" * 18)
    result = run("trace", "record", model_folder, "--text", "prose.txt", "code.py", "--length", 10, "--batch", 3,
                 "-o", "out.npz", cwd=tmp_path)  # fmt: skip
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


def test_batches_do_not_matter_and_long_files_are_cut(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("Each batch gives the same choices. " * 9)
    for name, batch in (("one.npz", 1), ("many.npz", 16)):
        done = run("trace", "record", model_folder, "--text", "text.txt", "--length", 24, "--batch", batch, "-o", name,
                   "--order", "files", "--tokens-per-file", 250, cwd=tmp_path)  # fmt: skip
        assert done.code == 0
        assert "warning: text.txt: only the first 250 tokens are recorded" in done.err
    assert files_in(tmp_path) == {"text.txt", "one.npz", "many.npz"}
    with np.load(tmp_path / "one.npz") as one, np.load(tmp_path / "many.npz") as many:
        assert len(one["expert_ids"]) == 250 + 11  # eleven beginnings
        assert np.array_equal(np.sort(one["expert_ids"]), np.sort(many["expert_ids"]))


def test_what_is_wrong_is_told_before_anything_is_written(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    done = run("trace", "record", model_folder, "--text", "empty.txt", "binary.txt", cwd=tmp_path)
    assert done.code == 3
    assert "empty.txt: holds no text" in done.err
    assert "binary.txt: not UTF-8" in done.err
    assert run("trace", "record", "nowhere", "--text", "empty.txt", cwd=tmp_path).code == 2
    assert run("trace", "record", model_folder, "--text", "nowhere.txt", cwd=tmp_path).code == 2
    (tmp_path / "hollow").mkdir()
    done = run("trace", "record", "hollow", "--text", "empty.txt", cwd=tmp_path)
    assert done.code == 3
    assert "hollow: cannot be loaded" in done.err
    assert files_in(tmp_path) == {"empty.txt", "binary.txt", "hollow"}


def test_without_torch_it_says_what_to_install(model_folder: Path, tmp_path: Path) -> None:
    package = tmp_path / "blocked" / "torch"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('blocked by a test')\n")
    (tmp_path / "text.txt").write_text("some text")
    env = {"PYTHONPATH": str(tmp_path / "blocked")}
    done = run("trace", "record", model_folder, "--text", "text.txt", cwd=tmp_path, env=env)
    assert done.code == 7
    assert "pip install 'ep-plan[record]'" in done.err
