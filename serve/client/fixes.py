"""Applying verified fixes to files, so that a file is left as it was or better, and always parses."""

import difflib
import io
import os
import re
import shutil
import tempfile
import tokenize
from collections.abc import Sequence
from pathlib import Path

import msgspec

from bundle.units import UnparsableCode, parse
from serve.analysis.report import Edit, Finding
from serve.client.check import CheckedFile
from serve.client.edits import apply_edits, overlap

LINE_END = re.compile("(\r\n|\r|\n)")


class NotFixed(Exception):
    """A file was left as it is; the message says why."""


class FixedFile(msgspec.Struct, frozen=True):
    """A file's bytes before and after the fixes of some of its findings."""

    path: str
    before: bytes
    after: bytes
    findings: tuple[Finding, ...]


def fix_file(file: CheckedFile, location: Path) -> FixedFile | None:
    """The file with as many of its verified fixes as go together, or None where there are none.

    Its encoding, byte-order mark and line ends are kept. Nothing is written.

    Raises:
        NotFixed: the file is not the one that was analysed, or its encoding lacks a character of a fix.
    """
    findings = choose_fixes(file.source, file.report.findings)
    if not findings:
        return None
    try:
        before = location.read_bytes()
        after = _rewrite(before, file.source, _edits(findings))
    except OSError as error:
        raise NotFixed(f"cannot be read: {error.strerror}") from error
    except UnicodeEncodeError as error:
        raise NotFixed(f"its encoding has no {error.object[error.start : error.end]!r}") from error
    except (SyntaxError, UnicodeDecodeError) as error:
        raise NotFixed("it changed while it was analysed") from error
    return FixedFile(file.path, before, after, findings)


def choose_fixes(source: str, findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """The findings whose fixes were verified, do not overlap, and together leave a file that parses.

    Of fixes that overlap, the surer finding's is taken.
    """
    chosen: list[Finding] = []
    for finding in sorted(findings, key=lambda finding: -finding.confidence):
        if finding.fix is None or not finding.fix.verified or not finding.fix.edits:
            continue
        if not any(overlap(edit, other) for edit in finding.fix.edits for other in _edits(chosen)):
            chosen.append(finding)
    if not chosen or _parses(source, chosen):
        return tuple(chosen)
    # Each parses alone, together they do not: take them one after the other, as far as that goes.
    kept: list[Finding] = []
    for finding in chosen:
        if _parses(source, [*kept, finding]):
            kept.append(finding)
    return tuple(kept)


def unified_diff(fixed: FixedFile) -> bytes:
    """The change as a patch that git apply takes."""
    lines = difflib.diff_bytes(
        difflib.unified_diff,
        list(io.BytesIO(fixed.before)),  # splitlines() would also break at a lone \r, which git does not
        list(io.BytesIO(fixed.after)),
        f"a/{fixed.path}".encode(),
        f"b/{fixed.path}".encode(),
    )
    return b"".join(line if line.endswith(b"\n") else line + b"\n\\ No newline at end of file\n" for line in lines)


def replace_file(file: Path, content: bytes) -> None:
    """Write `content` to `file` in one step, keeping its permissions and, for a link, the link.

    Raises:
        OSError: it can not be written; what was there stays.
    """
    target = os.path.realpath(file)
    with tempfile.NamedTemporaryFile(dir=os.path.dirname(target), delete=False) as temporary:
        try:
            temporary.write(content)
            temporary.close()
            if os.path.exists(target):
                shutil.copymode(target, temporary.name)
            else:
                os.chmod(temporary.name, 0o644)
            os.replace(temporary.name, target)
        except BaseException:
            os.unlink(temporary.name)
            raise


def _edits(findings: Sequence[Finding]) -> list[Edit]:
    return [edit for finding in findings if finding.fix is not None for edit in finding.fix.edits]


def _parses(source: str, findings: Sequence[Finding]) -> bool:
    try:
        parse("\n".join(apply_edits(source.split("\n"), _edits(findings))))
    except UnparsableCode:
        return False
    return True


def _rewrite(content: bytes, source: str, edits: Sequence[Edit]) -> bytes:
    encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
    text = content.decode(encoding)
    parts = LINE_END.split(text)
    lines, ends = parts[::2], parts[1::2]
    if "\n".join(lines) != source:
        raise NotFixed("it changed while it was analysed")
    starts = [0]
    for line, end in zip(lines, ends, strict=False):
        starts.append(starts[-1] + len(line) + len(end))
    for edit in sorted(edits, key=lambda edit: (edit.start_line, edit.start_column), reverse=True):
        start = starts[edit.start_line - 1] + edit.start_column - 1
        stop = starts[edit.end_line - 1] + edit.end_column - 1
        text = text[:start] + edit.text.replace("\n", ends[0] if ends else "\n") + text[stop:]
    return text.encode(encoding)
