"""The results of `ep-plan check` as JUnit XML, in the part of that format that all its schemas allow."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from xml.etree import ElementTree as ET

from planner.review.checked import Checked

_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What no XML document can hold, not even escaped."""


def junit_xml(results: Sequence[Checked], started: datetime, host: str) -> str:
    """The document.

    A finding makes a failure, a file that cannot be read an error.

    Args:
        results: what was found; each file is a test case.
        started: when the check began.
        host: where it ran.
    """
    suite = ET.Element("testsuite")
    for key, value in {
        "id": "0",
        "name": "ep-plan check",
        "package": "ep-plan",
        "timestamp": started.strftime("%Y-%m-%dT%H:%M:%S"),
        "hostname": host,
        "tests": str(len(results)),
        "failures": str(sum(bool(result.all_findings) for result in results)),
        "errors": str(sum(result.error is not None for result in results)),
        "time": f"{sum(result.seconds for result in results):.3f}",
    }.items():
        suite.set(key, _clean(value))
    ET.SubElement(suite, "properties")
    for result in results:
        _case(suite, result)
    ET.SubElement(suite, "system-out").text = _clean("\n".join(_told(result) for result in results))
    ET.SubElement(suite, "system-err")
    root = ET.Element("testsuites")
    root.append(suite)
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _case(suite: ET.Element, result: Checked) -> None:
    names = {"name": str(result.path), "classname": f"ep-plan.{result.kind}", "time": f"{result.seconds:.3f}"}
    case = ET.SubElement(suite, "testcase", {key: _clean(value) for key, value in names.items()})
    if result.error is not None:
        first = result.error.problems[0].message
        error = ET.SubElement(case, "error", {"message": _clean(first), "type": type(result.error).__name__})
        error.text = _clean(str(result.error))
    elif result.all_findings:
        message = _clean(result.all_findings[0])
        ET.SubElement(case, "failure", {"message": message, "type": "finding"}).text = _clean(_details(result))


def _details(result: Checked) -> str:
    lines = [*result.all_findings, *result.all_notes]
    if result.compared is not None:
        lines += [f"{row.what}: {row.golden} -> {row.now} {row.change}".rstrip() for row in result.compared.rows]
        lines += [f"to do: {result.compared.to_do}"] if result.compared.to_do else []
    return "\n".join(lines)


def _told(result: Checked) -> str:
    notes = "".join(f"\n  {note}" for note in result.all_notes)
    return f"{result.path}: {result.summary or ('good' if result.is_good else 'not good')}{notes}"


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("�", text)
