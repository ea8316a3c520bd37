"""Command lines that cannot be carried out end with 2 and say what to write instead."""

from pathlib import Path

import pytest

from tests.client.conftest import Check


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["."], "one of the arguments --url --bundle is required, or url or bundle in"),
        ([".", "--url", "http://127.0.0.1:1", "--bundle", "."], "not allowed with argument"),
        (["--url", "http://127.0.0.1:1"], "the following arguments are required: PATH"),
        (["gone.py", "--url", "http://127.0.0.1:1"], "gone.py does not exist"),
        ([".", "--url", "127.0.0.1:8000"], "is not an address like http://127.0.0.1:8000"),
        ([".", "--url", "http://host:port"], "is not an address: Invalid port"),
        ([".", "--bundle", "gone"], "'gone' is not a folder"),
        ([".", "--url", "http://127.0.0.1:1", "--min-confidence", "1.5"], "is not a number from 0 to 1"),
        ([".", "--url", "http://127.0.0.1:1", "--min-confidence", "nan"], "is not a number from 0 to 1"),
        ([".", "--url", "http://127.0.0.1:1", "--rules", "a,,b"], "is not a list of rules"),
        ([".", "--url", "http://127.0.0.1:1", "--jobs", "0"], "is not a whole number of at least 1"),
        ([".", "--url", "http://127.0.0.1:1", "--format", "xml"], "invalid choice: 'xml'"),
        ([".", "--url", "http://127.0.0.1:1", "--fail-on", "hint"], "invalid choice: 'hint'"),
    ],
)
def test_wrong_usage(check: Check, arguments: list[str], said: str) -> None:
    done = check(*arguments)

    assert done.returncode == 2
    assert said in done.stderr
    assert done.stdout == ""


def test_no_python_files_is_a_passed_check_that_asks_nobody(check: Check, dead_url: str) -> None:
    done = check(".", "--url", dead_url)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "There are no Python files among these paths.\n"


def test_help_explains_the_exit_codes(check: Check) -> None:
    done = check("--help")

    assert done.returncode == 0
    assert "Exit codes: 0 nothing at or above --fail-on" in " ".join(done.stdout.split())


def test_a_server_that_is_not_there_is_an_incomplete_check(check: Check, dead_url: str, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")
    (tmp_path / "b.py").write_text("y = 1\n")

    done = check(".", "--url", dead_url)

    assert done.returncode == 3
    assert "not analysed: a.py, b.py" in done.stderr
    assert f"{dead_url} cannot be reached" in done.stderr
    assert "start deepcode-serve or correct the address" in done.stderr


def test_fail_open_passes_without_a_server_and_still_says_so(check: Check, dead_url: str, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")

    done = check("a.py", "--url", dead_url, "--fail-open")

    assert done.returncode == 0
    assert "cannot be reached" in done.stderr
