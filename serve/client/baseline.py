"""A baseline: the findings a project knows already, so that a check reports only new ones."""

from collections.abc import Set
from pathlib import Path
from typing import Literal

import msgspec

from serve.client.check import Outcome
from serve.client.fixes import replace_file


class UnusableBaseline(Exception):
    """A baseline that can not be read; the message names it and says what to do."""


class KnownFinding(msgspec.Struct, frozen=True):
    """One finding. Only the fingerprint is compared; rule and path are for whoever reads the file."""

    fingerprint: str
    rule: str
    path: str


class Baseline(msgspec.Struct, frozen=True):
    """The file. A fingerprint has no line number in it, so that a finding stays known where lines move."""

    version: Literal[1]
    findings: tuple[KnownFinding, ...]


def read_baseline(file: Path) -> Set[str]:
    """The fingerprints that a baseline knows.

    Raises:
        UnusableBaseline: it is missing or is no baseline.
    """
    rewrite = f"write it with: deepcode-check baseline write {file} PATH…"
    try:
        baseline = msgspec.json.decode(file.read_bytes(), type=Baseline)
    except OSError as error:
        raise UnusableBaseline(f"the baseline {file} cannot be read ({error.strerror}); {rewrite}") from error
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise UnusableBaseline(f"{file} is no baseline of this version ({error}); {rewrite}") from error
    return {known.fingerprint for known in baseline.findings}


def write_baseline(file: Path, outcome: Outcome) -> int:
    """Write the findings of `outcome` to `file`, sorted so that a new version differs little.

    Returns:
        how many there are.

    Raises:
        OSError: the file can not be written; what was there stays.
    """
    findings = sorted(
        (
            KnownFinding(finding.fingerprint, finding.rule, finding.path)
            for file in outcome.checked
            for finding in file.report.findings
        ),
        key=lambda known: (known.path, known.rule, known.fingerprint),
    )
    encoded = msgspec.json.format(msgspec.json.encode(Baseline(1, tuple(findings))), indent=2)
    replace_file(file, encoded + b"\n")
    return len(findings)
