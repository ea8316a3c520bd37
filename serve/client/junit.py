"""A check as JUnit XML: a test case for every file, so that a test report shows what the check says."""

import re
from collections.abc import Collection
from typing import Any
from xml.etree import ElementTree as etree

from serve.analysis.report import Finding, Severity
from serve.client.check import CheckedFile, Outcome

# What XML 1.0 has no way to write, not even escaped.
NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def encode_junit(outcome: Outcome, failing: Collection[Severity]) -> bytes:
    """A test suite in which a file is a test.

    Args:
        outcome: what to tell.
        failing: the severities that fail the check. Findings of these are failures; those of others are the
            test's output, so that the test report and the exit code say the same.
    """
    cases = [_case(file, failing) for file in outcome.checked]
    for failure in outcome.failed:
        place = "" if failure.line is None else f"line {failure.line}: "
        case = _element("testcase", name=failure.path, classname="deepcode-check", file=failure.path)
        case.append(_element("error", f"{place}{failure.message}", message=failure.message, type="not-analysed"))
        cases.append(case)
    for path in outcome.skipped:
        case = _element("testcase", name=path.path, classname="deepcode-check", file=path.path)
        case.append(_element("skipped", message=path.reason))
        cases.append(case)

    counts = {
        "tests": len(cases),
        "failures": sum(case.find("failure") is not None for case in cases),
        "errors": len(outcome.failed),
        "skipped": len(outcome.skipped),
    }
    suite = _element("testsuite", name="deepcode-check", **counts)
    suite.extend(cases)
    suites = _element("testsuites", name="deepcode-check", **counts)
    suites.append(suite)
    etree.indent(suites)
    return etree.tostring(suites, encoding="utf-8", xml_declaration=True) + b"\n"


def _case(file: CheckedFile, failing: Collection[Severity]) -> etree.Element:
    case = _element("testcase", name=file.path, classname="deepcode-check", file=file.path)
    told = [finding for finding in file.report.findings if finding.severity in failing]
    rest = [finding for finding in file.report.findings if finding.severity not in failing]
    if told:
        text = "\n".join(map(_line, told))
        more = f" and {len(told) - 1} more" if len(told) > 1 else ""
        case.append(_element("failure", text, message=f"{_line(told[0])}{more}", type=told[0].rule))
    if rest:
        case.append(_element("system-out", "\n".join(map(_line, rest))))
    return case


def _line(finding: Finding) -> str:
    place = f"{finding.path}:{finding.start_line}:{finding.start_column}"
    return f"{place}: {finding.severity} {finding.rule} ({finding.confidence:.0%} sure): {finding.message}"


def _element(name: str, text: str | None = None, /, **attributes: Any) -> etree.Element:
    element = etree.Element(name, {key: _xml(str(value)) for key, value in attributes.items()})
    element.text = None if text is None else _xml(text)
    return element


def _xml(text: str) -> str:
    return NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)
