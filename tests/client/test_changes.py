"""Only what a change touches: in real git repositories, and by diffs on standard input."""

import difflib
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.client.changes import UnknownChanges, parse_diff
from tests.client.conftest import Check
from tests.client.reports import make_finding
from tests.client.scripted_server import reporting, scripted_server

Git = Callable[..., str]
EVERY_LINE = [make_finding(start_line=line, end_line=line) for line in (1, 2, 3, 4)]
FOUR_LINES = "a == None\nb == None\nc == None\nd == None\n"


def places(done: subprocess.CompletedProcess[str]) -> list[str]:
    """`path:line` of every finding of the text format."""
    lines = done.stdout.splitlines()
    return [line.split(": warning")[0].rsplit(":", 1)[0] for line in lines if ": warning none-comparison" in line]


@pytest.fixture
def git(tmp_path: Path) -> Git:
    """Run git in the test's folder, which is a repository on branch `main`."""

    def run(*arguments: str, folder: Path = tmp_path, content: str | None = None) -> str:
        settings = ("-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "protocol.file.allow=always")
        done = subprocess.run(
            ["git", *settings, *arguments], cwd=folder, capture_output=True, encoding="utf-8", input=content
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("init", "--quiet", "--initial-branch=main")
    return run


@pytest.fixture
def branch(git: Git, tmp_path: Path) -> Path:
    """On branch `feature`: b.py with its third line changed, and new.py; `main` has moved on in a.py."""
    for name in ("a.py", "b.py"):
        (tmp_path / name).write_text(FOUR_LINES)
    git("add", ".")
    git("commit", "--quiet", "-m", "base")
    git("checkout", "--quiet", "-b", "feature")
    (tmp_path / "b.py").write_text(FOUR_LINES.replace("c ==", "changed =="))
    (tmp_path / "new.py").write_text(FOUR_LINES)
    git("add", ".")
    git("commit", "--quiet", "-m", "feature")
    git("checkout", "--quiet", "main")
    (tmp_path / "a.py").write_text(FOUR_LINES.replace("a ==", "main =="))
    git("commit", "--quiet", "-am", "main moves on")
    git("checkout", "--quiet", "feature")
    return tmp_path


def test_only_lines_changed_since_the_merge_base_report_and_only_their_files_are_analysed(
    check: Check, branch: Path
) -> None:
    with scripted_server(reporting(*EVERY_LINE)) as server:
        done = check(".", "--url", server.url, "--changed-since", "main")

    assert places(done) == ["b.py:3", "new.py:1", "new.py:2", "new.py:3", "new.py:4"]
    assert done.returncode == 1
    assert sorted(request["path"] for request in server.requests) == ["b.py", "new.py"]
    assert "3 on unchanged lines" in done.stdout


def test_what_is_not_committed_yet_counts_and_so_do_untracked_files(check: Check, git: Git, branch: Path) -> None:
    (branch / "b.py").write_text(FOUR_LINES.replace("a ==", "edited =="))
    (branch / ".gitignore").write_text("ignored.py\n")
    (branch / "ignored.py").write_text(FOUR_LINES)
    (branch / "ünt rac\tked.py").write_text(FOUR_LINES)
    with scripted_server(reporting(*EVERY_LINE)) as server:
        done = check(".", "--url", server.url, "--changed-since", "HEAD")

    # In b.py the third line is back to what it was before the branch, which is a change since HEAD as well.
    assert places(done)[:2] == ["b.py:1", "b.py:3"]
    assert len(places(done)) == 2 + 4


def test_from_a_folder_below_the_root_and_with_a_users_own_diff_settings(check: Check, git: Git, branch: Path) -> None:
    for setting in ("diff.noprefix", "diff.mnemonicPrefix", "color.ui"):
        git("config", setting, "always" if setting == "color.ui" else "true")
    git("config", "diff.external", "false")
    (branch / "my folder").mkdir()
    (branch / "my folder" / "c ä.py").write_text(FOUR_LINES)
    git("add", ".")
    git("commit", "--quiet", "-m", "more")
    (branch / "my folder" / "c ä.py").write_text(FOUR_LINES.replace("d ==", "e =="))
    with scripted_server(reporting(*EVERY_LINE)) as server:
        done = check(".", "--url", server.url, "--changed-since", "HEAD", cwd=branch / "my folder")

    assert places(done) == ["c ä.py:4"], done.stderr


def test_a_renamed_file_reports_the_lines_that_changed(check: Check, git: Git, branch: Path) -> None:
    git("mv", "b.py", "renamed.py")
    with (branch / "renamed.py").open("a") as file:
        file.write("x == None\n")
    with scripted_server(reporting(*EVERY_LINE, make_finding(start_line=5, end_line=5))) as server:
        done = check("renamed.py", "--url", server.url, "--changed-since", "HEAD")

    assert places(done) == ["renamed.py:5"]


def test_when_nothing_has_changed_nobody_is_asked(check: Check, branch: Path, dead_url: str) -> None:
    done = check(".", "--url", dead_url, "--changed-since", "HEAD")

    assert done.returncode == 0, done.stderr
    assert done.stdout == "No Python file among these paths has changed.\n"


def test_a_shallow_clone_says_how_to_make_it_whole(check: Check, git: Git, branch: Path, dead_url: str) -> None:
    git("clone", "--quiet", "--depth=1", "--no-single-branch", f"file://{branch}", "clone")

    unknown = check(".", "--url", dead_url, "--changed-since", "gone", cwd=branch / "clone")
    unrelated = check(".", "--url", dead_url, "--changed-since", "origin/main", cwd=branch / "clone")

    for done in (unknown, unrelated):
        assert done.returncode == 2
        assert "this clone is shallow: run git fetch --unshallow" in done.stderr
        assert "fetch-depth: 0" in done.stderr
    assert "there is no revision 'gone' here" in unknown.stderr
    assert "'origin/main' and HEAD have no commit in common here" in unrelated.stderr


@pytest.mark.parametrize("reference", ["gone", "--output=/tmp/x", ""])
def test_a_revision_that_is_none_is_named(check: Check, branch: Path, dead_url: str, reference: str) -> None:
    done = check(".", "--url", dead_url, f"--changed-since={reference}")

    assert done.returncode == 2
    assert f"there is no revision {reference!r} here" in done.stderr
    assert "correct --changed-since" in done.stderr


def test_outside_a_repository_git_is_quoted(check: Check, tmp_path: Path, dead_url: str) -> None:
    done = check(".", "--url", dead_url, "--changed-since", "main")

    assert done.returncode == 2
    assert "git says: not a git repository" in done.stderr


@pytest.mark.parametrize("command", [["diff", "main...feature"], ["diff", "--no-prefix", "-U0", "main...feature"]])
def test_a_diff_on_standard_input(check: Check, git: Git, branch: Path, command: list[str]) -> None:
    with scripted_server(reporting(*EVERY_LINE)) as server:
        done = check(".", "--url", server.url, "--stdin-diff", input=git(*command))

    assert places(done) == ["b.py:3", "new.py:1", "new.py:2", "new.py:3", "new.py:4"], done.stderr


def test_an_empty_diff_changes_nothing(check: Check, tmp_path: Path, dead_url: str) -> None:
    (tmp_path / "a.py").write_text(FOUR_LINES)

    done = check(".", "--url", dead_url, "--stdin-diff", input="")

    assert (done.returncode, done.stdout) == (0, "No Python file among these paths has changed.\n")


@pytest.mark.parametrize(
    ("diff", "said"),
    [
        ("hello\n", "this is no unified diff"),
        ("--- a\n+++ b\n@@ -1 +1 @@\n-x\n", "the diff is cut off"),
        ("--- a\n+++ b\n@@ -1 +1 @@\n*x\n", "line 4 of the diff is not one of a hunk: '*x'"),
        ("@@ -1 +1 @@\n-x\n+y\n", "line 1 of the diff is no hunk of a file"),
        ("--- a\n+++ b\n@@@ -1 -1 +1 @@@\n", "make one with git diff BASE HEAD"),
    ],
)
def test_what_is_no_diff_is_said_so(check: Check, tmp_path: Path, dead_url: str, diff: str, said: str) -> None:
    done = check(".", "--url", dead_url, "--stdin-diff", input=diff)

    assert done.returncode == 2
    assert said in done.stderr


def test_lines_that_look_like_headers_inside_a_hunk_are_lines() -> None:
    diff = (
        "--- a/x.py\n+++ b/x.py\n@@ -1,2 +1,3 @@\n--- gone\n+++ y\n+@@ -1 +1 @@\n same\n\\ No newline at end of file\n"
    )

    assert parse_diff(diff) == {"b/x.py": [1, 2]}


def test_names_are_unquoted() -> None:
    diff = '--- /dev/null\n+++ "b/\\303\\244 \\"\\t.py"\t\n@@ -0,0 +1 @@\n+x\n--- a\n+++ /dev/null\n@@ -1 +0,0 @@\n-x\n'

    assert parse_diff(diff) == {'b/ä "\t.py': [1]}


LINES = st.lists(st.sampled_from(["", "a", "b", "-- x", "++ x", "@@ -1 +1 @@", "\ta "]), max_size=12)


@given(before=LINES, after=LINES, context=st.integers(0, 3))
def test_the_added_lines_are_those_that_make_the_new_file(before: list[str], after: list[str], context: int) -> None:
    diff = "\n".join(difflib.unified_diff(before, after, "a/x.py", "b/x.py", lineterm="", n=context))
    added = parse_diff(diff).get("b/x.py", [])

    kept = [line for number, line in enumerate(after, start=1) if number not in added]
    matcher = difflib.SequenceMatcher(None, before, after)
    assert kept == [line for block in matcher.get_matching_blocks() for line in after[block.b : block.b + block.size]]


def test_a_diff_without_its_last_line_is_refused() -> None:
    diff = "\n".join(difflib.unified_diff(["a", "b"], ["a", "c"], "a/x.py", "b/x.py", lineterm=""))

    with pytest.raises(UnknownChanges, match="cut off"):
        parse_diff(diff.rsplit("\n", 1)[0])
