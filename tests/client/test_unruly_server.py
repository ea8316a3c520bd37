"""Servers that are busy, dying, or no deepcode-serve at all."""

import os
import pty
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import pytest

from serve.client.patience import retry_after
from tests.client.conftest import Check
from tests.client.scripted_server import HANG_UP, Answer, problem_answer, report_answer, scripted_server
from tests.support.server_process import COMMANDS


@pytest.fixture
def three_files(tmp_path: Path) -> Path:
    for name in ("a.py", "b.py", "c.py"):
        (tmp_path / name).write_text("x = 1\n")
    return tmp_path


@pytest.mark.parametrize("status", [429, 502, 503])
def test_a_busy_server_is_asked_again(check: Check, three_files: Path, status: int) -> None:
    def busy_twice(number: int, request: dict[str, Any]) -> Answer:
        return problem_answer(status, "full", {"Retry-After": "0"}) if number <= 2 else report_answer(request)

    with scripted_server(busy_twice) as server:
        done = check("a.py", "--url", server.url)

    assert (done.returncode, done.stderr) == (0, "")
    assert len(server.requests) == 3
    assert server.requests[0] == server.requests[2]


def test_a_server_that_wants_too_much_patience_makes_the_check_incomplete(check: Check, three_files: Path) -> None:
    def closed_for_an_hour(number: int, request: dict[str, Any]) -> Answer:
        return problem_answer(503, "maintenance", {"Retry-After": "3600"})

    with scripted_server(closed_for_an_hour) as server:
        done = check(".", "--url", server.url, "--jobs", "1")

    assert done.returncode == 3
    assert "status 503: maintenance" in done.stderr
    assert "not analysed: a.py, b.py, c.py" in done.stderr
    assert len(server.requests) == 1


def test_retry_after_is_read_in_both_of_its_forms() -> None:
    def asked(value: str) -> float | None:
        return retry_after(httpx.Response(503, headers={"Retry-After": value}))

    in_a_minute = datetime.now(UTC) + timedelta(seconds=60)

    assert asked("7") == 7
    assert asked(format_datetime(in_a_minute, usegmt=True)) == pytest.approx(60, abs=2)
    assert asked("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert asked("soon") is None
    assert asked("-3") is None
    assert retry_after(httpx.Response(503)) is None


def test_a_connection_lost_midway_is_tried_again(check: Check, three_files: Path) -> None:
    def hang_up_once(number: int, request: dict[str, Any]) -> Answer:
        return HANG_UP if number == 1 else report_answer(request)

    with scripted_server(hang_up_once) as server:
        done = check("a.py", "--url", server.url)

    assert done.returncode == 0
    assert len(server.requests) == 2


def test_what_was_analysed_before_the_server_died_is_still_reported(check: Check, three_files: Path) -> None:
    with scripted_server(lambda number, request: report_answer(request)) as server:

        def die_on_the_second(number: int, request: dict[str, Any]) -> Answer:
            if number == 1:
                return report_answer(request)
            server.socket.close()
            return HANG_UP

        server.script = die_on_the_second
        done = check(".", "--url", server.url, "--jobs", "1")

    assert done.returncode == 3
    assert "not analysed: b.py, c.py" in done.stderr
    assert done.stdout.startswith("No findings in 1 file ")
    assert done.stdout.endswith("; 2 files not analysed.\n")


@pytest.mark.parametrize("status", [400, 413, 422, 500])
def test_a_refused_file_does_not_stop_the_others(check: Check, three_files: Path, status: int) -> None:
    def refuse_b(number: int, request: dict[str, Any]) -> Answer:
        return problem_answer(status, "not this") if request["path"] == "b.py" else report_answer(request)

    with scripted_server(refuse_b) as server:
        done = check(".", "--url", server.url)

    assert done.returncode == 3
    assert f"not analysed: b.py\n  refused by the server ({status}): not this\n" in done.stderr
    assert sorted(request["path"] for request in server.requests) == ["a.py", "b.py", "c.py"]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer(404, b"<html>not here</html>"), "(status 404): <html>not here</html>"),
        (Answer(401, b'{"detail": "a key is needed"}'), "(status 401): a key is needed"),
        (Answer(308, b"", {"Location": "https://new.example/"}), "moved to https://new.example/"),
        (Answer(200, b"<html>hello</html>"), "did not answer with a report this version can read"),
        (Answer(200, b'{"findings": []}'), "did not answer with a report this version can read"),
        (Answer(404, b"\xff\xfe"), "(status 404)"),
    ],
    ids=["other server", "key needed", "moved", "a page", "other report", "no text"],
)
def test_a_url_that_is_no_deepcode_serve_is_said_once_and_asked_once(
    check: Check, three_files: Path, answer: Answer, said: str
) -> None:
    with scripted_server(lambda number, request: answer) as server:
        done = check(".", "--url", server.url, "--jobs", "1")

    assert done.returncode == 3
    assert done.stderr.count(said) == 1
    assert len(server.requests) == 1


def test_the_key_of_the_environment_is_sent_and_a_wrong_one_says_where_it_came_from(
    check: Check, three_files: Path
) -> None:
    with scripted_server(lambda number, request: problem_answer(401, "a key is needed")) as server:
        done = check("a.py", "--url", server.url, env=os.environ | {"DEEPCODE_KEY": "secret-key"})

    assert server.headers[0]["Authorization"] == "Bearer secret-key"
    assert done.returncode == 3
    assert "(status 401): a key is needed" in done.stderr
    assert "DEEPCODE_KEY" in done.stderr
    assert "secret-key" not in done.stderr


@pytest.mark.parametrize(("url", "key"), [("http://127.0.0.1:1", "two words"), ("http://user:word@127.0.0.1:1", "key")])
def test_a_key_that_can_not_be_sent_is_wrong_usage(check: Check, three_files: Path, url: str, key: str) -> None:
    done = check("a.py", "--url", url, env=os.environ | {"DEEPCODE_KEY": key})

    assert done.returncode == 2
    assert "DEEPCODE_KEY" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_below_a_path_is_asked_there_and_its_password_is_not_shown(check: Check, three_files: Path) -> None:
    with scripted_server(lambda number, request: problem_answer(403, "no")) as server:
        url = server.url.replace("http://", "http://user:secret@") + "/team/"
        done = check("a.py", "--url", url)

    assert server.requests[0]["endpoint"] == "/team/v1/analyze"
    assert "secret" not in done.stderr


def test_a_request_carries_the_options_that_were_given_and_no_others(check: Check, three_files: Path) -> None:
    with scripted_server(lambda number, request: report_answer(request)) as server:
        check("a.py", "--url", server.url)
        check("a.py", "--url", server.url, "--rules", "bare-except, off-by-one", "--min-confidence", "0.25")

    plain = {"endpoint": "/v1/analyze", "code": "x = 1\n", "path": "a.py"}
    assert server.requests == [
        plain,
        plain | {"rules": ["bare-except", "off-by-one"], "min_confidence": 0.25},
    ]


def test_an_interrupted_check_ends_at_once_with_130(three_files: Path) -> None:
    asked, over = Event(), Event()

    def never(number: int, request: dict[str, Any]) -> Answer:
        asked.set()
        over.wait()
        return HANG_UP

    with scripted_server(never) as server:
        process = subprocess.Popen(
            [COMMANDS / "deepcode-check", "a.py", "--url", server.url],
            cwd=three_files,
            # Tests that were started in the background of a shell inherit that SIGINT is ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        assert asked.wait(timeout=60)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
        over.set()


@pytest.mark.parametrize("waits", [True, False], ids=["longer than two seconds", "shorter"])
def test_a_progress_bar_appears_on_a_terminal_for_those_who_wait(three_files: Path, waits: bool) -> None:
    def answer(number: int, request: dict[str, Any]) -> Answer:
        if waits and number == 2:
            time.sleep(3)
        return report_answer(request)

    ours, theirs = pty.openpty()
    with scripted_server(answer) as server:
        command = [COMMANDS / "deepcode-check", ".", "--url", server.url, "--jobs", "1"]
        environment = os.environ | {"TERM": "xterm", "COLUMNS": "80"}
        done = subprocess.run(
            command, cwd=three_files, stdout=subprocess.PIPE, stderr=theirs, env=environment, timeout=60
        )
    os.close(theirs)
    shown = read_all(ours)

    assert done.returncode == 0
    assert done.stdout.startswith(b"No findings in 3 files")
    assert ("Analysing" in shown and "1/3" in shown) if waits else shown == ""


def read_all(terminal: int) -> str:
    parts = []
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:  # Linux's way to say that the other side was closed
            part = b""
        if not part:
            os.close(terminal)
            return b"".join(parts).decode()
        parts.append(part)


def test_a_reader_that_leaves_early_does_not_change_the_exit_code(three_files: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with scripted_server(lambda number, request: report_answer(request)) as server:
        command = [COMMANDS / "deepcode-check", ".", "--url", server.url]
        done = subprocess.run(command, cwd=three_files, stdout=writing, stderr=subprocess.PIPE, timeout=60)
    os.close(writing)

    assert (done.returncode, done.stderr) == (0, b"")


def test_a_log_in_another_encoding_does_not_end_the_check(check: Check, tmp_path: Path) -> None:
    (tmp_path / "naïve.py").write_text("x = 1\n")
    with scripted_server(lambda number, request: problem_answer(422, "ungültig 不行")) as server:
        done = check(".", "--url", server.url, env=os.environ | {"PYTHONIOENCODING": "ascii"})

    assert done.returncode == 3
    assert r"na\xefve.py" in done.stderr


def test_a_fault_of_the_client_itself_is_no_verdict(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")
    broken = (
        "import sys, serve.client.cli as cli; cli.check_files = None; "
        "sys.exit(cli.main(['a.py', '--url', 'http://127.0.0.1:1']))"
    )

    done = subprocess.run([sys.executable, "-c", broken], cwd=tmp_path, capture_output=True, text=True)

    assert done.returncode == 3
    assert "Traceback" in done.stderr
