"""[tool.deepcode-check] in pyproject.toml, and what a project leaves out."""

from pathlib import Path

import pytest

from serve.client.files import select_files
from serve.client.ignoring import Patterns
from tests.client.conftest import Check
from tests.client.reports import make_finding
from tests.client.scripted_server import reporting, scripted_server


def write(path: Path, content: str = "x = 1\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def configure(folder: Path, *lines: str) -> None:
    write(folder / "pyproject.toml", "\n".join(["[tool.deepcode-check]", *lines]))


def names(folder: Path, *excluded: Patterns, root: Path | None = None) -> list[str]:
    return [path.relative_to(root or folder).as_posix() for path in select_files([folder], excluded).files]


def test_the_section_sets_defaults_and_the_command_line_wins(check: Check, tmp_path: Path) -> None:
    write(tmp_path / "a.py", "if value == None:\n    pass\n")
    with scripted_server(reporting(make_finding())) as server:
        configure(
            tmp_path,
            f'url = "{server.url}"',
            'fail-on = "never"',
            "min-confidence = 0.25",
            'rules = ["none-comparison"]',
        )
        by_section = check("a.py")
        by_option = check("a.py", "--fail-on", "note", "--min-confidence", "0.5", "--rules", "bare-except")

    assert (by_section.returncode, by_option.returncode) == (0, 1), by_section.stderr
    asked = [(request["min_confidence"], request["rules"]) for request in server.requests]
    assert asked == [(0.25, ["none-comparison"]), (0.5, ["bare-except"])]


def test_it_is_found_from_below_up_to_the_repositorys_root(check: Check, tmp_path: Path, dead_url: str) -> None:
    configure(tmp_path, f'url = "{dead_url}"')
    write(tmp_path / "pkg" / "pyproject.toml", "[project]\n")
    write(tmp_path / "pkg" / "a.py")
    inside = check("a.py", cwd=tmp_path / "pkg")
    (tmp_path / "pkg" / ".git").mkdir()
    separate = check("a.py", cwd=tmp_path / "pkg")

    assert inside.returncode == 3 and "cannot be reached" in inside.stderr
    assert separate.returncode == 2 and "one of the arguments --url --bundle is required" in separate.stderr


def test_its_paths_are_relative_to_it(check: Check, tmp_path: Path) -> None:
    write(tmp_path / "sub" / "a.py", "if value == None:\n    pass\n")
    write(tmp_path / "sub" / "generated" / "b.py")
    with scripted_server(reporting(make_finding(fingerprint="known"))) as server:
        configure(tmp_path, f'url = "{server.url}"', 'baseline = "known.json"', 'exclude = ["sub/generated/"]')
        write(tmp_path / "known.json", '{"version": 1, "findings": [{"fingerprint": "known", "rule": "", "path": ""}]}')
        done = check(".", cwd=tmp_path / "sub")

    assert done.returncode == 0, done.stdout
    assert [request["path"] for request in server.requests] == ["a.py"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("fail_on = 'error'", "unknown key 'fail_on'; the nearest known key is 'fail-on'"),
        ("min-confidance = 0.5", "unknown key 'min-confidance'; the nearest known key is 'min-confidence'"),
        ("fail-on = 'sometimes'", "Invalid enum value 'sometimes' - at `$.fail-on`"),
        ("min-confidence = 2", "Expected `float` <= 1.0 - at `$.min-confidence`"),
        ("jobs = 0", "Expected `int` >= 1 - at `$.jobs`"),
        ("url = 'x'\nbundle = 'y'", "set either url or bundle"),
        ("url = 'nowhere'", "'nowhere' is not an address"),
        ("bundle = 'gone'", "is not a folder; a bundle is the folder that deepcode-compress writes"),
        ("exclude = 'a.py'", "Expected `array`, got `str` - at `$.exclude`"),
        ("jobs = ", "cannot be read: Invalid value"),
    ],
)
def test_a_section_that_cannot_be_used_is_wrong_usage(check: Check, tmp_path: Path, line: str, said: str) -> None:
    configure(tmp_path, line)

    done = check(".")

    assert done.returncode == 2
    assert said in done.stderr
    assert "pyproject.toml" in done.stderr


def test_exclude_leaves_out_even_what_is_named_and_lists_that(check: Check, tmp_path: Path) -> None:
    for name in ("a.py", "b.py", "old/c.py"):
        write(tmp_path / name)
    with scripted_server(reporting()) as server:
        done = check(".", "old/c.py", "b.py", "--url", server.url, "--exclude", "b.*", "--exclude", "old/")

    assert [request["path"] for request in server.requests] == ["a.py"]
    assert "skipped: b.py: excluded\n" in done.stdout
    assert "skipped: old/c.py: excluded\n" in done.stdout


def test_what_git_ignores_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / ".git" / "info").mkdir(parents=True)
    write(tmp_path / ".git" / "info" / "exclude", "private.py\n")
    write(tmp_path / ".gitignore", "# comment\nbuild/\n*_pb2.py\n!kept_pb2.py\n/only_here.py\n")
    write(tmp_path / "pkg" / ".gitignore", "local.py\n!own_pb2.py\n")
    for name in (
        *("build/x.py", "a_pb2.py", "kept_pb2.py", "only_here.py", "private.py", "a.py"),
        *("pkg/local.py", "pkg/own_pb2.py", "pkg/a_pb2.py", "pkg/only_here.py", "local.py"),
    ):
        write(tmp_path / name)

    assert names(tmp_path) == ["a.py", "kept_pb2.py", "local.py", "pkg/only_here.py", "pkg/own_pb2.py"]
    assert names(tmp_path / "pkg") == ["only_here.py", "own_pb2.py"]


def test_who_names_what_git_ignores_gets_it(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    write(tmp_path / ".gitignore", "build/\n")
    file = write(tmp_path / "build" / "x.py")

    assert names(tmp_path / "build") == ["x.py"]
    assert select_files([file]).files == (file,)


def test_outside_a_repository_only_the_walked_folders_count(tmp_path: Path) -> None:
    write(tmp_path / ".gitignore", "a.py\n")
    write(tmp_path / "pkg" / "a.py")

    assert names(tmp_path / "pkg") == ["a.py"]
    assert names(tmp_path) == []


def test_a_malformed_line_of_a_gitignore_does_not_undo_the_others(tmp_path: Path) -> None:
    write(tmp_path / ".gitignore", "!\nskipped.py\n")
    for name in ("skipped.py", "a.py"):
        write(tmp_path / name)

    assert names(tmp_path) == ["a.py"]


def test_a_malformed_exclude_is_wrong_usage(check: Check, tmp_path: Path, dead_url: str) -> None:
    done = check(".", "--url", dead_url, "--exclude", "!")

    assert done.returncode == 2
    assert "--exclude" in done.stderr or "pattern" in done.stderr
