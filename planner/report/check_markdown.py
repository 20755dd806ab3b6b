"""The results of `ep-plan check` as a Markdown page: a table, then what is wrong and what changed.

All text that comes from files stands in code elements, where nobody is mentioned, and what Markdown could
take for its own in there is written as an entity: a name can neither break a table nor add a link.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from planner.inputs.printable import printable
from planner.review.checked import Checked
from planner.review.compare_golden import Compared

_MARKUP = frozenset("\\`*_[]<>|~&@:$")
_MOST_FINDINGS = 50


def markdown(results: Sequence[Checked]) -> str:
    """The page."""
    good = sum(result.is_good for result in results)
    lines = [f"## ep-plan check: {good} of {len(results)} good", "", "| | file | |", "| --- | --- | --- |"]
    lines += [_row(result) for result in results]
    for result in results:
        if not result.is_good or (result.compared is not None and result.compared.rows):
            lines += ["", *_details(result)]
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """Text that shows as it is, wherever it stands on the page."""
    inside = "".join(f"&#{ord(one)};" if one in _MARKUP else one for one in printable(text))
    return f"<code>{inside.replace('www.', 'www&#46;')}</code>" if inside else ""


def _row(result: Checked) -> str:
    count = len(result.all_findings)
    if result.error is not None:
        told = f"{len(result.error.problems)} problem{'s' if len(result.error.problems) > 1 else ''}"
    elif count:
        told = f"{count} finding{'s' if count > 1 else ''}"
    else:
        told = escaped(result.summary)
    return f"| {'✅' if result.is_good else '❌'} | {escaped(str(result.path))} | {told} |"


def _details(result: Checked) -> Iterator[str]:
    opened = "" if result.is_good else " open"
    yield f"<details{opened}><summary>{escaped(str(result.path))}</summary>"
    yield ""
    problems = str(result.error).splitlines() if result.error else []
    for finding in [*problems, *result.all_findings][:_MOST_FINDINGS]:
        yield f"- {escaped(finding)}"
    for note in result.all_notes[:_MOST_FINDINGS]:
        yield f"- {escaped(note)}"
    if result.compared is not None:
        yield from _compared(result.compared)
    yield ""
    yield "</details>"


def _compared(compared: Compared) -> Iterator[str]:
    if compared.rows:
        yield ""
        yield "| what changed | golden | now | |"
        yield "| --- | ---: | ---: | ---: |"
        for row in compared.rows:
            yield f"| {' | '.join(escaped(text) for text in (row.what, row.golden, row.now, row.change))} |"
    if compared.to_do:
        yield ""
        yield f"To do: {escaped(compared.to_do)}"
