"""The gate: which outcome ends with which exit code."""

import pytest

from serve.client.cli import exit_code
from serve.client.files import FailedPath
from tests.client.reports import make_finding, make_outcome

FAILURE = (FailedPath("b.py", "does not parse"),)


@pytest.mark.parametrize(
    ("severity", "fail_on", "code"),
    [
        ("error", "error", 1),
        ("error", "warning", 1),
        ("error", "note", 1),
        ("error", "never", 0),
        ("warning", "error", 0),
        ("warning", "warning", 1),
        ("warning", "note", 1),
        ("warning", "never", 0),
        ("note", "error", 0),
        ("note", "warning", 0),
        ("note", "note", 1),
        ("note", "never", 0),
    ],
)
def test_a_finding_fails_the_check_from_its_severity_on(severity: str, fail_on: str, code: int) -> None:
    outcome = make_outcome("x = 1\n", make_finding(severity=severity))

    assert exit_code(outcome, fail_on, fail_open=False) == code


@pytest.mark.parametrize("findings", [(), (make_finding(),)], ids=["clean", "with findings"])
def test_an_incomplete_check_is_never_mistaken_for_a_verdict(findings: tuple) -> None:
    outcome = make_outcome("x = 1\n", *findings, failed=FAILURE)

    assert exit_code(outcome, "warning", fail_open=False) == 3


def test_fail_open_judges_by_what_was_analysed() -> None:
    assert exit_code(make_outcome("x = 1\n", failed=FAILURE), "warning", fail_open=True) == 0
    assert exit_code(make_outcome("x = 1\n", make_finding(), failed=FAILURE), "warning", fail_open=True) == 1
