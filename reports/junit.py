"""Records as JUnit XML, which pipelines read."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from xml.etree.ElementTree import Element, ElementTree, SubElement

from reports.schema import Outcome

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from reports.lenient import Loaded, LoadedRun
    from reports.schema import Record

# What XML 1.0 has no way to write.
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_COUNTED = {"failures": "failure", "errors": "error", "skipped": "skipped"}
_RECORDS = "records"


def write_junit(loaded: Loaded, path: Path) -> None:
    """Write a suite per run and a case per check.

    No verdict is an error, an expected failure is skipped with its reason. A run that was interrupted, a line that does
    not parse and a file that cannot be read are errors of the class ``records``.
    """
    root = Element("testsuites", name="rwkv-tpu")
    for run in loaded.runs:
        _suite(root, run)
    if loaded.unreadable:
        suite = _element(root, "testsuite", {"name": "unreadable"})
        for fault in loaded.unreadable:
            _error(suite, "file", fault)
        _count(suite)
    for attribute in ("tests", *_COUNTED):
        root.set(attribute, str(sum(int(suite.get(attribute, "0")) for suite in root)))
    ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)


def _suite(root: Element, run: LoadedRun) -> None:
    manifest = run.file.run
    suite = _element(root, "testsuite", {"name": manifest.id, "timestamp": manifest.started})
    properties = SubElement(suite, "properties")
    told = {"target": manifest.where, "state": run.state, "toolchain": manifest.toolchain.get("version", "")}
    told |= {"checkpoint": str(manifest.checkpoint.get("name", "")), "command": " ".join(manifest.command)}
    for name, value in told.items():
        _element(properties, "property", {"name": name, "value": value})
    for record in run.file.records:
        _case(suite, record)
    for fault in run.broken:
        _error(suite, "line", fault)
    if run.file.interrupted:
        _error(suite, "interrupted", f"{run.path}: the run was interrupted after {len(run.file.records)} checks")
    _count(suite)


def _case(suite: Element, record: Record) -> None:
    name = f"{record.check}[{record.case}]" if record.case else record.check
    attributes = {"classname": record.suite, "name": name, "time": f"{record.seconds:.3f}"}
    case = _element(suite, "testcase", attributes)
    first = next(iter(record.message.splitlines()), "")
    if record.outcome is Outcome.FAILED:
        kind = record.stage.value if record.stage else "failed"
        _element(case, "failure", {"message": first, "type": kind}).text = _clean(record.message)
    elif record.outcome is Outcome.INFRA:
        _element(case, "error", {"message": first, "type": "infra"}).text = _clean(record.message)
    elif record.outcome is Outcome.EXPECTED_FAILURE:
        reason = record.expected.reason if record.expected else first
        _element(case, "skipped", {"message": f"expected failure: {reason}"}).text = _clean(record.message)
    elif record.outcome is Outcome.SKIPPED:
        _element(case, "skipped", {"message": first})


def _error(suite: Element, name: str, words: str) -> None:
    case = _element(suite, "testcase", {"classname": _RECORDS, "name": name, "time": "0"})
    _element(case, "error", {"message": words, "type": _RECORDS})


def _count(suite: Element) -> None:
    cases = suite.findall("testcase")
    suite.set("tests", str(len(cases)))
    for attribute, tag in _COUNTED.items():
        suite.set(attribute, str(sum(case.find(tag) is not None for case in cases)))


def _element(parent: Element, tag: str, attributes: Mapping[str, str]) -> Element:
    return SubElement(parent, tag, {name: _clean(value) for name, value in attributes.items()})


def _clean(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)
