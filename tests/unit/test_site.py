"""The documentation as a site: built without a warning, whole, and asking nobody for anything."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.building import EXAMPLES

pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")
pytest.importorskip("material", reason="the extra `docs` is not installed")

ROOT = EXAMPLES.parent
ASKS = re.compile(
    r"<(?:script|img|iframe|source)[^>]*\ssrc=\"?(?:https?:)?//|<link[^>]*rel=\"?stylesheet[^>]*https?://"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_there_and_in_the_menu(site: Path) -> None:
    written = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    written = {path for path in written if "pages" not in path.parts}
    expected = {path.with_name("index.html") if path.stem == "README" else path for path in written}
    made = {path.relative_to(site) for path in site.rglob("*.html")}
    assert expected <= made
    menu = str(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").as_posix()
        assert name in menu or name.startswith(("adr/", "pages/")), name


def test_schemas_are_published(site: Path) -> None:
    names = {path.name for path in (ROOT / "docs" / "schemas").glob("*.json")}
    assert names
    assert names == {path.name for path in (site / "schemas").iterdir()}


def test_no_page_asks_for_anything_outside(site: Path) -> None:
    for page in site.rglob("*.html"):
        assert not ASKS.search(page.read_text(encoding="utf-8")), page


def test_formulas_are_drawn(site: Path) -> None:
    text = (site / "model.html").read_text(encoding="utf-8")
    assert text.count("<math") > 100
    assert "arithmatex" not in text
    assert "\\sum" not in re.sub(r"<code>.*?</code>", "", text)


def test_no_source_of_a_page_is_published(site: Path) -> None:
    assert not [path for path in site.rglob("*") if path.suffix in (".py", ".md")]
