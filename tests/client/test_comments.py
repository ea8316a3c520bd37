"""`# deepcode: ignore`: where it counts, and where it is only text."""

import pytest

from serve.client.comments import ignored_lines, is_ignored
from tests.client.conftest import Check
from tests.client.reports import make_finding
from tests.client.scripted_server import reporting, scripted_server


@pytest.mark.parametrize(
    ("comment", "rules"),
    [
        ("# deepcode: ignore", None),
        ("#deepcode:ignore", None),
        ("# deepcode: ignore - the caller checks", None),
        ("# noqa  # deepcode: ignore[none-comparison]", {"none-comparison"}),
        ("# deepcode: ignore[ a , b ]", {"a", "b"}),
        ("# deepcode: ignore[]", {""}),
    ],
)
def test_a_comment_ignores_its_rules_or_all(comment: str, rules: set[str] | None) -> None:
    assert ignored_lines(f"x = 1\nif value == None: pass  {comment}\n") == {2: rules}


@pytest.mark.parametrize(
    "line",
    [
        'text = "# deepcode: ignore"',
        "x = 1  # deepcode: ignored",
        "x = 1  # deepcode: ignore-all",
        "x = 1  # deepcode: ignore[none-comparison",
        "x = 1  # ignore",
    ],
)
def test_what_only_looks_like_one_ignores_nothing(line: str) -> None:
    assert ignored_lines(f"{line}\n") == {}


def test_code_this_python_can_not_read_keeps_the_comments_before_it() -> None:
    assert ignored_lines("x = 1  # deepcode: ignore\ny = (\n") == {1: None}


def test_a_comment_counts_on_any_line_of_the_finding_and_for_no_other_rule() -> None:
    ignored = ignored_lines("f(\n    1,  # deepcode: ignore[none-comparison]\n)\n")

    assert is_ignored(make_finding(start_line=1, end_line=3), ignored)
    assert not is_ignored(make_finding(start_line=3, end_line=3), ignored)
    assert not is_ignored(make_finding(start_line=1, end_line=3, rule="bare-except"), ignored)


def test_what_is_ignored_does_not_fail_the_check_and_is_counted(check: Check, tmp_path) -> None:
    (tmp_path / "a.py").write_text("if value == None:  # deepcode: ignore[none-comparison]\n    pass\n")
    with scripted_server(reporting(make_finding())) as server:
        done = check("a.py", "--url", server.url)

    assert done.returncode == 0
    assert done.stdout == "No findings in 1 file (by nano 0123456789ab, int4 on onnx); 1 ignored in the code.\n"
