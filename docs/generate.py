"""Writes the generated pages of docs/ and the table of README.md, or says which of them are stale.

python docs/generate.py            write them
python docs/generate.py --check    change nothing; exit 1 and name the stale ones
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click
from pages import accuracy, commands, export, formats, profiles, schemas, traces

FOLDER: Final = Path(__file__).resolve().parent
PAGES: Final = {
    "commands.md": commands.page,
    "export.md": export.page,
    "formats.md": formats.page,
    "profiles.md": profiles.page,
    "traces.md": traces.page,
}


def stale_pages() -> dict[Path, str]:
    """Pages whose file differs from what it should hold, with the right text."""
    texts = {FOLDER / name: page() for name, page in PAGES.items()}
    texts |= {FOLDER / name: text for name, text in schemas.pages().items()}
    texts[FOLDER.parent / "README.md"] = accuracy.readme()
    return {
        path: text for path, text in texts.items() if not path.is_file() or path.read_text(encoding="utf-8") != text
    }


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; exit 1 if a page is stale.")
def main(check: bool) -> None:
    """Write the generated pages of docs/."""
    stale = stale_pages()
    for path, text in stale.items():
        if check:
            click.echo(f"{path.relative_to(FOLDER.parent)} is stale: run `make docs`", err=True)
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
            click.echo(f"wrote {path.relative_to(FOLDER.parent)}", err=True)
    if check and stale:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
