"""Options of `validate` and `probe` that do not go together are refused before anything runs; none is ignored."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from planner.cli.probe import command as probe
from planner.cli.validate import command as validate


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--hosts", "a"], "--hosts is for --print-launch"),
        (["--image", "i"], "--image is for --print-launch"),
        (["--rendezvous", "a:1"], "--rendezvous is for --worker"),
        (["--emulate", "--calibrate", "t.yaml"], "an emulation has none"),
        (["--calibrate", "./validation.json"], "--calibrate and -o both name validation.json"),
        (["--emulate", "--windows", "4", "--repeats", "5"], "--windows, --repeats: with --emulate"),
        (["--emulate", "--device", "cuda"], "--device: with --emulate"),
        (["--print-launch", "slurm", "--json"], "--json: --print-launch prints a script"),
        (["--print-launch", "slurm", "--ranks", "2"], "--ranks is for --emulate"),
        (["--print-launch", "slurm", "--scale", "2"], "--scale is for --emulate"),
        (["--print-launch", "slurm", "--rendezvous", "a:1"], "--rendezvous is for --worker"),
        (["--print-launch", "slurm", "--image", "i"], "--image is for --print-launch kubernetes"),
        (["--print-launch", "slurm", "--emulate"], "without --emulate and --worker"),
    ],
)
def test_validate(options: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(validate, ["plan.json", *options])
    assert result.exit_code == 2
    assert words in result.output
    assert list(tmp_path.iterdir()) == []


def test_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(probe, ["--device", "cpu", "--rendezvous", "a:1"])
    assert result.exit_code == 2
    assert "--rendezvous is for --worker" in result.output
