"""Which files a check is about, and how their text is read."""

import os
from pathlib import Path

import pytest

from serve.client.files import MissingPath, UnreadableSource, read_source, select_files, shown


def write(path: Path, content: bytes | str = "x = 1\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_a_folder_is_walked_for_python_files_in_sorted_order(tmp_path: Path) -> None:
    for name in ("b.py", "a.py", "sub/z.py", "sub/notes.txt", "sub dir/ünï.py"):
        write(tmp_path / name)

    names = [path.relative_to(tmp_path).as_posix() for path in select_files([tmp_path]).files]

    assert names == ["a.py", "b.py", "sub dir/ünï.py", "sub/z.py"]


@pytest.mark.parametrize("folder", [".git", ".venv", ".hidden", "node_modules", "__pycache__"])
def test_folders_that_hold_no_code_of_the_project_are_passed_over(tmp_path: Path, folder: str) -> None:
    write(tmp_path / folder / "deep" / "other.py")
    own = write(tmp_path / "own.py")

    assert select_files([tmp_path]).files == (own,)


def test_a_virtual_environment_of_any_name_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path / "env" / "pyvenv.cfg", "home = /usr/bin\n")
    write(tmp_path / "env" / "lib" / "installed.py")

    assert select_files([tmp_path]).files == ()


def test_a_folder_named_on_the_command_line_is_walked_whatever_its_name(tmp_path: Path) -> None:
    inside = write(tmp_path / ".hooks" / "check.py")

    assert select_files([tmp_path / ".hooks"]).files == (inside,)


def test_a_file_named_twice_is_analysed_once(tmp_path: Path) -> None:
    file = write(tmp_path / "a.py")

    assert select_files([file, tmp_path, file]).files == (file,)


def test_a_link_to_a_file_that_is_there_anyway_does_not_count_twice(tmp_path: Path) -> None:
    file = write(tmp_path / "real.py")
    (tmp_path / "also.py").symlink_to(file)

    assert select_files([tmp_path]).files == (file,)


def test_a_symlink_loop_ends_and_is_listed(tmp_path: Path) -> None:
    file = write(tmp_path / "package" / "a.py")
    (tmp_path / "package" / "again").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "package" / "self.py").symlink_to(tmp_path / "package" / "self.py")

    selection = select_files([tmp_path])

    assert selection.files == (file,)
    assert [(Path(item.path).name, item.reason) for item in selection.skipped] == [
        ("again", "a symbolic link to a folder; name it to have it analysed"),
        ("self.py", "a symbolic link that leads nowhere"),
    ]


def test_what_is_not_python_is_listed_when_it_was_named(tmp_path: Path) -> None:
    notes = write(tmp_path / "notes.txt")

    selection = select_files([notes])

    assert selection.files == ()
    assert [item.reason for item in selection.skipped] == ["not a .py file"]


def test_a_pipe_with_a_python_name_is_listed_and_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.py")

    selection = select_files([tmp_path])

    assert [item.reason for item in selection.skipped] == ["not a regular file"]


def test_a_missing_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingPath, match=r"gone\.py does not exist"):
        select_files([tmp_path / "gone.py"])


def test_paths_are_shown_below_the_current_folder_with_slashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    assert shown(tmp_path / "src" / "a.py") == "src/a.py"
    assert shown(Path("./src/a.py")) == "src/a.py"
    assert shown(Path("/elsewhere/a.py")) == "/elsewhere/a.py"
    assert shown(Path(os.fsdecode(b"caf\xe9.py"))) == "caf\N{REPLACEMENT CHARACTER}.py"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("é = 1\n".encode(), "é = 1\n"),
        ("# -*- coding: latin-1 -*-\né = 1\n".encode("latin-1"), "# -*- coding: latin-1 -*-\né = 1\n"),
        ("#!/bin/python\n# vim: set fileencoding=cp1251 :\nя = 1\n".encode("cp1251"), None),
        (b"\xef\xbb\xbfx = 1\n", "x = 1\n"),
        (b"x = 1\r\ny = 2\r\n", "x = 1\ny = 2\n"),
        (b"x = 1\ry = 2\r", "x = 1\ny = 2\n"),
        (b"", ""),
    ],
    ids=["utf-8", "latin-1 cookie", "cookie on line 2", "byte-order mark", "CRLF", "lone CR", "empty"],
)
def test_source_is_read_as_python_reads_it(tmp_path: Path, content: bytes, text: str | None) -> None:
    expected = content.decode("cp1251") if text is None else text

    assert read_source(write(tmp_path / "a.py", content)) == expected


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("é = 1\n".encode("latin-1"), "save it as UTF-8"),
        (b"x = 1\n" * 5 + b"\xff\n", "is not text in its encoding"),
        (b"# coding: klingon\n", "klingon"),
        (b"# coding: hex\nx = 1\n", "names no encoding that can be used"),
        (b"# coding: utf-7\nx = '+2AA-'\n", "is not text in its encoding"),
        (b"\x7fELF\x00\x00", "is binary"),
    ],
    ids=["no cookie", "late byte", "unknown cookie", "cookie of no text", "lone surrogate", "binary"],
)
def test_what_python_could_not_read_is_said_so(tmp_path: Path, content: bytes, reason: str) -> None:
    with pytest.raises(UnreadableSource, match=reason):
        read_source(write(tmp_path / "a.py", content))


def test_a_file_that_cannot_be_read_is_said_so(tmp_path: Path) -> None:
    # Permissions do not stop root, under which containers run tests; this refuses everyone.
    (tmp_path / "a.py").symlink_to("/proc/self/mem")

    with pytest.raises(UnreadableSource, match="cannot be read: Input/output error"):
        read_source(tmp_path / "a.py")
