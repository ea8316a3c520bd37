"""A check as a GitLab Code Quality report.

https://docs.gitlab.com/ci/testing/code_quality/#code-quality-report-format
"""

import msgspec

from serve.analysis.report import Severity
from serve.client.check import Outcome

# GitLab's scale is info, minor, major, critical, blocker; a student's opinion is never a blocker.
SEVERITIES: dict[Severity, str] = {"error": "major", "warning": "minor", "note": "info"}


def encode_gitlab(outcome: Outcome) -> bytes:
    """A JSON array with an entry for each finding. The format has no place for files that were not analysed."""
    entries = [
        {
            "description": finding.message,
            "check_name": finding.rule,
            "fingerprint": finding.fingerprint,
            "severity": SEVERITIES[finding.severity],
            "location": {
                "path": finding.path,
                "lines": {"begin": finding.start_line, "end": finding.end_line},
            },
        }
        for file in outcome.checked
        for finding in file.report.findings
    ]
    return msgspec.json.format(msgspec.json.encode(entries), indent=2) + b"\n"
