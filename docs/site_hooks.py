"""Hooks of mkdocs: pages that lie outside docs/, links that leave it, and formulas without script.

Formulas become MathML when the site is built, so no page asks a server for a script that draws them.
"""

from __future__ import annotations

import html
import posixpath
import re
from pathlib import Path
from typing import Final

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_ROOT: Final = Path(__file__).resolve().parent.parent
_BROUGHT: Final = ("CHANGELOG.md", "CONTRIBUTING.md")
"""Pages of the root that are part of the site."""
_LINK: Final = re.compile(r"\[([^\]]+)\]\(([^)\s]+)\)")
_MATH: Final = re.compile(r"^( *)```math\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_FORMULA: Final = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add pages of the root."""
    for name in _BROUGHT:
        files.append(File.generated(config, name, abs_src_path=str(_ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Lead links to pages brought along to where these are; of links to what is not part of the site keep the text."""
    is_brought = page.file.src_uri in _BROUGHT
    folder = "" if is_brought else posixpath.join("docs", posixpath.dirname(page.file.src_uri))

    def there(found: re.Match[str]) -> str:
        text, link = found.groups()
        if "://" in link or link.startswith("#"):
            return found[0]
        path, _, anchor = link.partition("#")
        target = posixpath.normpath(posixpath.join(folder, path))
        known = target if target in _BROUGHT else target.removeprefix("docs/") if target.startswith("docs/") else None
        file = None if known is None else files.get_file_from_path(known)
        if known is None or file is None or file.inclusion.is_excluded():
            assert (_ROOT / target).exists(), f"{page.file.src_uri}: no such file: {link}"
            return text
        here = posixpath.dirname(page.file.src_uri) or "."
        return f"[{text}]({posixpath.relpath(known, here)}{'#' + anchor if anchor else ''})"

    return _MATH.sub(_as_dollars, _LINK.sub(there, markdown))


def _as_dollars(found: re.Match[str]) -> str:
    """A fenced formula as the extension knows it; in a list it must not end the paragraph."""
    indent, formula = found.groups()
    return f"{indent}${formula.strip()}$" if indent else f"$$\n{formula}$$"


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Draw formulas."""

    def drawn(found: re.Match[str]) -> str:
        formula: str = convert(html.unescape(found[3]), display="block" if found[2] == "[" else "inline")
        return formula

    return _FORMULA.sub(drawn, content)
