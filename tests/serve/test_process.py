"""The server as a process: it refuses bad bundles and settings, sheds load, lets clients go, and stops cleanly."""

import asyncio
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

from tests.serve.conftest import Server, running_server, serve_command, wait_until

FUNCTION = "def f{n}(a):\n    return a[1]\n\n\n"
SOME_SECONDS_OF_WORK = "".join(FUNCTION.format(n=n) for n in range(120))
MORE_WORK_THAN_ANY_TEST_WAITS_FOR = "".join(FUNCTION.format(n=n) for n in range(8_000))


def refused(*arguments: str) -> str:
    """The message of a server that does not start."""
    done = subprocess.run(serve_command(*arguments), capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.parametrize("file", ["onnx/model.onnx.data", "tokenizer.json", "rules.yaml", "prompt.jinja"])
def test_a_bundle_with_a_changed_byte_is_refused_by_name(tiny_bundle: Path, tmp_path: Path, file: str) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, copy)
    content = bytearray((copy / file).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / file).write_bytes(content)
    assert file in refused(str(copy))


def test_what_can_not_be_served_or_set_is_refused_by_name(tiny_bundle: Path, tmp_path: Path) -> None:
    assert "manifest.json" in refused(str(tmp_path))
    assert "--port='high'" in refused(str(tiny_bundle), "--port", "high")
    assert "--slots='0'" in refused(str(tiny_bundle), "--slots", "0")
    assert "--engine='nonsense'" in refused(str(tiny_bundle), "--engine", "nonsense")
    assert "--cache-url" in refused(str(tiny_bundle), "--cache-url", "http://127.0.0.1/")
    assert "--new-key" in refused("--new-key", "ci")
    assert "DEEPCODE_BUNDLE" in refused()


def test_serving_imports_no_training_library() -> None:
    # What few servers need is imported by those alone, so that all start at once.
    heavy = (
        *("torch", "transformers", "onnx", "onnxruntime_genai", "compress"),
        *("opentelemetry", "valkey", "redis", "httpx", "rich", "psycopg", "faiss", "serve.client.check"),
    )
    code = (
        "import sys, serve.app, serve.launcher, serve.analysis.local\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def analyze(server: Server, code: str) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/analyze", json={"code": code}, timeout=120)


def keep_asking(server: Server, code: str) -> httpx.Response:
    """Ask until the server has room: the tests' own questions, whether it is full, take room too."""
    while (response := analyze(server, code)).status_code == 503:
        pass
    return response


def is_full(server: Server) -> bool:
    response = analyze(server, "x = 1\n")
    if response.status_code != 503:
        return False
    assert response.json()["type"].endswith(":overloaded")
    assert int(response.headers["retry-after"]) > 0
    return True


def test_a_full_server_says_so_and_a_client_that_leaves_makes_room(tiny_bundle: Path) -> None:
    with running_server(tiny_bundle, "--slots", "2", "--max-queue", "1") as server:
        body = httpx.Request("POST", server.url, json={"code": MORE_WORK_THAN_ANY_TEST_WAITS_FOR}).read()
        head = (
            "POST /v1/analyze HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(head.encode() + body)
            wait_until(lambda: is_full(server))
            assert httpx.get(f"{server.url}/health/ready").status_code == 200
        wait_until(lambda: analyze(server, "x = 1\n").status_code == 200)


def test_sigterm_finishes_accepted_work_refuses_new_and_exits_0(tiny_bundle: Path) -> None:
    with running_server(tiny_bundle, "--slots", "1", "--max-queue", "1") as server:
        answers: list[httpx.Response] = []
        accepted = threading.Thread(target=lambda: answers.append(keep_asking(server, SOME_SECONDS_OF_WORK)))
        accepted.start()
        wait_until(lambda: is_full(server))
        server.terminate()
        wait_until(lambda: httpx.get(f"{server.url}/health/ready").status_code == 503)
        assert httpx.get(f"{server.url}/health/live").status_code == 200
        late = analyze(server, "x = 1\n")
        assert late.status_code == 503
        assert late.json()["type"].endswith(":draining")
        assert int(late.headers["retry-after"]) > 0
        accepted.join()
        assert answers[0].status_code == 200
        assert answers[0].json()["usage"]["completion_tokens"] > 0
        assert server.wait() == 0


def test_a_server_that_will_be_stopped_answers_and_keeps_no_connection(tiny_bundle: Path) -> None:
    with running_server(tiny_bundle) as server, httpx.Client(base_url=server.url, timeout=120) as client:
        assert "connection" not in client.post("/v1/analyze", json={"code": "x = 1\n"}).headers
        server.process.send_signal(signal.SIGUSR1)
        wait_until(lambda: client.get("/health/ready").headers.get("connection") == "close")
        last = client.post("/v1/analyze", json={"code": "x = 2\n"})
        assert (last.status_code, last.headers["connection"]) == (200, "close")


def test_a_drain_closes_kept_connections_that_nobody_waits_on(tiny_bundle: Path) -> None:
    with running_server(tiny_bundle, "--slots", "1", "--max-queue", "1") as server:
        with socket.create_connection(("127.0.0.1", server.port)) as kept:
            kept.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = b""
            while not answer.endswith(b'{"status":"ok"}'):
                answer += kept.recv(4096)
            accepted = threading.Thread(target=keep_asking, args=(server, SOME_SECONDS_OF_WORK))
            accepted.start()
            wait_until(lambda: is_full(server))
            server.terminate()
            kept.settimeout(5)
            assert kept.recv(4096) == b""
            accepted.join()
        assert server.wait() == 0


async def test_sigterm_under_load_loses_nothing(tiny_bundle: Path) -> None:
    """Plain answers, streams and batches that are in progress all come to their end."""
    with running_server(tiny_bundle, "--slots", "2") as server:
        code = "".join(FUNCTION.format(n=n) for n in range(12))
        events = {"Accept": "text/event-stream"}
        async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
            asked = [client.post("/v1/analyze", json={"code": f"{code}x = {n}\n"}) for n in range(4)]
            asked += [client.post("/v1/analyze", json={"code": f"{code}y = {n}\n"}, headers=events) for n in range(4)]
            items = [{"id": str(n), "code": f"{code}z = {n}\n"} for n in range(4)]
            asked += [client.post("/v1/analyze/batch", json=items) for _ in range(2)]
            waiting = [asyncio.create_task(each) for each in asked]

            async def in_flight() -> int:
                page = (await client.get("/metrics")).text
                return int(float(page.partition("\ndeepcode_requests_in_flight{")[2].split()[1]))

            while await in_flight() < len(waiting):
                assert not any(task.done() for task in waiting), "there was too little to do"
            server.terminate()
            answers = await asyncio.gather(*waiting)
        assert [answer.status_code for answer in answers] == [200] * len(answers)
        assert all("event: report" in answer.text for answer in answers[4:8])
        assert all(len(answer.text.splitlines()) == len(items) for answer in answers[8:])
        assert server.wait() == 0


CRASHING = """
import pathlib, sys
from serve.cli import main
from serve.engine.steps import Steps

step = Steps.step

def step_until_asked_to_break(self):
    if pathlib.Path({flag!r}).exists():
        raise MemoryError("asked to")
    step(self)

Steps.step = step_until_asked_to_break
if __name__ == "__main__":
    sys.exit(main())
"""


def test_an_engine_that_breaks_down_turns_ready_red_fails_who_waits_and_ends_the_process(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    flag, script = tmp_path / "break", tmp_path / "crashing.py"
    script.write_text(CRASHING.format(flag=str(flag)))
    with running_server(tiny_bundle, start=[sys.executable, str(script)]) as server:
        answers: list[httpx.Response] = []
        asked = threading.Thread(target=lambda: answers.append(analyze(server, SOME_SECONDS_OF_WORK)))
        asked.start()
        wait_until(lambda: 'deepcode_num_requests_running{model_name="tiny"} 0' not in metrics(server))
        flag.touch()
        asked.join()
        assert answers[0].status_code == 503
        assert answers[0].json()["type"].endswith(":engine-failed")
        for probe in ("ready", "live"):
            answer = httpx.get(f"{server.url}/health/{probe}")
            assert (answer.status_code, answer.json()["type"].rpartition(":")[2]) == (503, "engine-failed")
        assert "MemoryError: asked to" in answer.json()["detail"]
        assert 'deepcode_engine_up{model_name="tiny"} 0.0' in metrics(server)
        assert server.wait() == 1


def metrics(server: Server) -> str:
    return httpx.get(f"{server.url}/metrics").text


def test_work_that_outlasts_the_drain_deadline_is_ended(tiny_bundle: Path) -> None:
    with running_server(tiny_bundle, "--slots", "1", "--max-queue", "1", "--drain-seconds", "0.5") as server:

        def try_to_analyze() -> None:
            try:
                answers.append(keep_asking(server, MORE_WORK_THAN_ANY_TEST_WAITS_FOR).status_code)
            except httpx.TransportError:
                answers.append(0)

        answers: list[int] = []
        accepted = threading.Thread(target=try_to_analyze)
        accepted.start()
        wait_until(lambda: is_full(server))
        server.terminate()
        assert server.wait() == 0
        accepted.join()
        assert answers[0] != 200


def test_a_body_that_never_ends_is_ended_by_the_server(tiny_bundle: Path) -> None:
    with (
        running_server(tiny_bundle, "--body-seconds", "0.5") as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection,
    ):
        connection.sendall(
            b"POST /v1/analyze HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b'Content-Length: 1000\r\n\r\n{"code":'
        )
        assert connection.recv(1000).split()[1] == b"408"


def test_settings_come_from_the_environment_too(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPCODE_SLOTS", "none")
    assert "DEEPCODE_SLOTS='none'" in refused(str(tiny_bundle))
