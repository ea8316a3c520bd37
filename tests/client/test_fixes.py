"""--fix and --diff: only verified fixes, only whole ones, and never a broken file."""

import ast
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.analysis.report import Edit, Finding, Fix
from serve.client.check import CheckedFile
from serve.client.edits import apply_edits
from serve.client.files import read_source
from serve.client.fixes import NotFixed, choose_fixes, fix_file, replace_file, unified_diff
from tests.client.conftest import Check
from tests.client.reports import make_finding, make_report
from tests.client.scripted_server import reporting, scripted_server


def fixing(line: int, start: int, end: int, text: str, *, verified: bool = True, **fields: Any) -> Finding:
    """A finding about that span, whose fix replaces it."""
    edit = Edit(start_line=line, start_column=start, end_line=line, end_column=end, text=text)
    place = {"start_line": line, "end_line": line, "start_column": start, "end_column": end}
    return make_finding(**place, fix=Fix(edits=(edit,), verified=verified), **fields)


def fixed(source: str, *findings: Finding) -> str:
    """`source` with the chosen fixes."""
    edits = [edit for finding in choose_fixes(source, findings) if finding.fix for edit in finding.fix.edits]
    return "\n".join(apply_edits(source.split("\n"), edits))


IS = fixing(1, 10, 12, "is")


def test_verified_fixes_are_applied_from_anywhere_in_the_file() -> None:
    source = "if value == None:\n    x = other == None\n"

    assert fixed(source, IS, fixing(2, 15, 17, "is")) == "if value is None:\n    x = other is None\n"


def test_what_was_not_verified_is_not_applied() -> None:
    assert choose_fixes("if value == None:\n    pass\n", [fixing(1, 10, 12, "is", verified=False)]) == ()


def test_of_fixes_that_overlap_the_surer_is_applied() -> None:
    source = "x = a + b\n"
    unsure, sure = fixing(1, 5, 10, "a - b", confidence=0.5), fixing(1, 7, 8, "*", confidence=0.9)

    assert fixed(source, unsure, sure) == "x = a * b\n"


def test_fixes_that_touch_both_apply_and_two_insertions_at_one_place_do_not() -> None:
    assert fixed("x = ab\n", fixing(1, 5, 6, "c"), fixing(1, 6, 7, "d")) == "x = cd\n"
    inserted = fixing(1, 7, 7, "c", confidence=0.9), fixing(1, 7, 7, "d", confidence=0.5)
    assert fixed("x = ab\n", *inserted) == "x = abc\n"


def test_fixes_that_parse_alone_but_not_together_are_applied_as_far_as_they_do() -> None:
    # Each deletes one of two statements; a body needs one.
    source = "def f():\n    a; b\n"
    first, second = fixing(2, 5, 8, "", confidence=0.9), fixing(2, 6, 9, "", confidence=0.8)
    together = fixing(2, 5, 6, "", confidence=0.9), fixing(2, 6, 9, "", confidence=0.8)

    assert fixed(source, first, second) == "def f():\n    b\n"
    assert fixed(source, *together) == "def f():\n    a\n"


def test_a_fix_that_breaks_the_file_is_never_applied() -> None:
    assert choose_fixes("x = 1\n", [fixing(1, 3, 4, "(")]) == ()


@given(st.data())
def test_whatever_is_fixed_parses(data: st.DataObject) -> None:
    source = "def f(a, b):\n    if a == b:\n        return [a, (b)]\n    return -a\n"
    lines = source.split("\n")
    findings = []
    for _ in range(data.draw(st.integers(0, 6))):
        line = data.draw(st.integers(1, 4))
        start = data.draw(st.integers(1, len(lines[line - 1]) + 1))
        end = data.draw(st.integers(start, len(lines[line - 1]) + 1))
        text = data.draw(st.sampled_from(["", "(", ")", "a", "is", " ", ":", "#", "\n", "pass\n    "]))
        findings.append(fixing(line, start, end, text, confidence=data.draw(st.floats(0, 1))))

    ast.parse(fixed(source, *findings))


def checked(file: Path, *findings: Finding) -> CheckedFile:
    return CheckedFile("a.py", read_source(file), make_report("a.py", *findings))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"if v == None:\r\n    pass\r\n", b"if v is None:\r\n    pass\r\n"),
        (b"if v == None:\n    pass\r\n    pass\r", b"if v is None:\n    pass\r\n    pass\r"),
        (b"\xef\xbb\xbfif v == None: pass", b"\xef\xbb\xbfif v is None: pass"),
        (b"if v == None: x = '\xe9'  # coding: latin-1\n", b"if v is None: x = '\xe9'  # coding: latin-1\n"),
        ("if v == None: x = '名'\n".encode(), "if v is None: x = '名'\n".encode()),
    ],
    ids=["CRLF", "mixed", "byte-order mark", "latin-1", "utf-8"],
)
def test_encoding_and_line_ends_are_kept(tmp_path: Path, before: bytes, after: bytes) -> None:
    # The cookie's line has to be a comment of its own.
    if b"latin-1" in before:
        before, after = (b"# coding: latin-1\n" + content for content in (before, after))
    file = tmp_path / "a.py"
    file.write_bytes(before)
    line = 2 if b"latin-1" in before else 1

    done = fix_file(checked(file, fixing(line, 6, 8, "is")), file)

    assert done is not None
    assert done.after == after
    assert file.read_bytes() == before


def test_a_new_line_in_a_fix_ends_as_the_files_lines_do(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_bytes(b"x = 1\r\n")

    done = fix_file(checked(file, fixing(1, 6, 6, "\ny = 2")), file)

    assert done is not None and done.after == b"x = 1\r\ny = 2\r\n"


@pytest.mark.parametrize(
    ("content", "changed", "text", "reason"),
    [
        (b"x = 1\n", b"x = 10\n", "2", "it changed while it was analysed"),
        (b"x = 1\n", b"\xff\n", "2", "it changed while it was analysed"),
        (b"# coding: latin-1\nx = 1\n", None, "'\u20ac'", "its encoding has no '\u20ac'"),
    ],
    ids=["changed", "no text any more", "not in latin-1"],
)
def test_a_file_that_cannot_be_fixed_is_left_alone(
    tmp_path: Path, content: bytes, changed: bytes | None, text: str, reason: str
) -> None:
    file = tmp_path / "a.py"
    file.write_bytes(content)
    analysed = checked(file, fixing(content.count(b"\n"), 5, 6, text))
    file.write_bytes(changed or content)

    with pytest.raises(NotFixed, match=reason):
        fix_file(analysed, file)


def test_a_link_stays_a_link_and_permissions_stay(tmp_path: Path) -> None:
    real, link = tmp_path / "real.py", tmp_path / "link.py"
    real.write_text("old")
    real.chmod(0o750)
    link.symlink_to(real)

    replace_file(link, b"new")

    assert link.is_symlink()
    assert (real.read_text(), real.stat().st_mode & 0o777) == ("new", 0o750)
    assert sorted(os.listdir(tmp_path)) == ["link.py", "real.py"]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A file whose line ends are not git's favourites, and which does not end with one."""
    (tmp_path / "a b.py").write_bytes(b"if value == None:\r\n    pass\r\nx = 1")
    return tmp_path


def test_fix_changes_the_file_and_what_it_fixed_no_longer_fails(check: Check, project: Path) -> None:
    with scripted_server(reporting(IS)) as server:
        done = check(".", "--url", server.url, "--fix")

    assert (done.returncode, done.stderr) == (0, "")
    assert (project / "a b.py").read_bytes() == b"if value is None:\r\n    pass\r\nx = 1"
    assert done.stdout == "No findings in 1 file (by nano 0123456789ab, int4 on onnx); 1 fixed.\n"


def test_what_could_not_be_fixed_still_fails(check: Check, project: Path) -> None:
    with scripted_server(reporting(IS, make_finding(rule="bare-except"))) as server:
        done = check(".", "--url", server.url, "--fix")

    assert done.returncode == 1
    assert "bare-except" in done.stdout
    assert "none-comparison" not in done.stdout


def test_diff_changes_nothing_and_git_takes_it_as_a_patch(check: Check, project: Path) -> None:
    before = (project / "a b.py").read_bytes()
    with scripted_server(reporting(IS)) as server:
        done = check(".", "--url", server.url, "--diff", encoding=None)

    assert done.returncode == 1
    assert (project / "a b.py").read_bytes() == before
    assert b"1 warning in 1 file" in done.stderr
    subprocess.run(["git", "init", "--quiet"], cwd=project, check=True)
    subprocess.run(["git", "apply", "-"], cwd=project, input=done.stdout, check=True)
    assert (project / "a b.py").read_bytes() == before.replace(b"==", b"is")


def test_a_patch_says_where_a_file_has_no_last_line_end(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_bytes(b"if value == None: pass")

    done = fix_file(checked(file, IS), file)

    assert done is not None
    assert unified_diff(done).count(b"\n\\ No newline at end of file\n") == 2


def test_only_new_findings_on_changed_lines_are_fixed(check: Check, project: Path) -> None:
    """What is hidden is not touched."""
    with scripted_server(reporting(IS)) as server:
        check("baseline", "write", "known.json", ".", "--url", server.url)
        done = check(".", "--url", server.url, "--baseline", "known.json", "--fix")

    assert done.returncode == 0
    assert b"==" in (project / "a b.py").read_bytes()


def test_fix_and_diff_exclude_each_other(check: Check, dead_url: str) -> None:
    done = check(".", "--url", dead_url, "--fix", "--diff")

    assert done.returncode == 2
    assert "not allowed with argument" in done.stderr
