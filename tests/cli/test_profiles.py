"""`ep-plan profiles`: the list, one profile, JSON, unknown names."""

from __future__ import annotations

import json
import re

import pytest

from planner.cli.main import call
from planner.inputs import profiles


def test_the_list_groups_all_profiles(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert call(["profiles"]) == 0
    out = capsys.readouterr().out
    assert "…" not in out
    for kind in ("gpus", "nodes", "fabrics", "models", "engines", "kernels"):
        for name in profiles.names(kind):
            assert name in out
    line = next(line for line in out.splitlines() if line.startswith("h100-sxm "))
    assert re.split(r"\s{2,}", line.strip())[1:] == ["79.6 GiB", "3.35 TB/s", "989 TFLOP/s", "1.98 PFLOP/s", "-"]
    assert "900 GB/s nvlink-5, 18 nodes" in out


def test_the_list_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["profiles", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["gpus"]["h200-sxm"]["hbm_bytes_per_s"] == 4.8e12
    assert data["nodes"]["hgx-h100"]["links"][1]["bytes_per_s"] == 50e9
    assert data["fabrics"]["nvlink-4"]["links"] == 18
    assert data["models"]["deepseek-v3"]["parameters"]["total"] == 671_026_419_200


@pytest.mark.parametrize("name", ["h100-sxm", "hgx-h20", "ib-ndr", "gpt-oss-20b", "vllm", "deepep-normal"])
def test_a_profile_shows_values(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["profiles", name]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{name} (")
    if name == "hgx-h20":
        assert "links[node].bandwidth" in out  # from the fabric that the link names
        assert "450 GB/s" in out
        assert "assumed" in out


def test_a_profile_as_json_spells_fabrics_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["profiles", "hgx-h100", "--json"]) == 0
    link = json.loads(capsys.readouterr().out)["links"][1]
    assert link["fabric"] == "ib-ndr"
    assert link["bandwidth"]["value"] == "400 Gb/s"
    assert link["bandwidth"]["source"]


def test_a_model_shows_parameters_by_component_and_its_cache(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["profiles", "deepseek-v3", "--json"]) == 0
    counted = json.loads(capsys.readouterr().out)["counted"]
    total, active = counted["parameters"].pop("total"), counted["parameters"].pop("active")
    assert sum(counted["parameters"].values()) == total
    assert counted["parameters"]["experts"] == 58 * 256 * 44_040_192
    (cache,) = counted["cache"]
    assert (cache["layers"], cache["bytes_per_token"], cache["bytes_per_sequence"]) == (61, 70_272, 0)
    assert call(["profiles", "deepseek-v3"]) == 0
    out = capsys.readouterr().out
    for figure in ("653,908,770,816", f"{total:,}", f"{active:,}", "70,272 B"):
        assert figure in out


def test_windows_and_states_are_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    """gpt-oss: 12 of 24 layers see 128 tokens. DeepSeek-V4-Flash: 43 windows of 128 vectors of 512 in bf16."""
    assert call(["profiles", "gpt-oss-20b"]) == 0
    assert "sliding window, 128 tokens" in capsys.readouterr().out
    assert call(["profiles", "deepseek-v4-flash", "--json"]) == 0
    (cache,) = json.loads(capsys.readouterr().out)["counted"]["cache"]
    assert cache["bytes_per_sequence"] == 43 * 128 * 512 * 2


def test_an_unknown_name_suggests_near_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["profiles", "h100"]) == 2
    assert "h100-sxm" in capsys.readouterr().err
