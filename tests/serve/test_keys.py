"""API keys and rates: who is let in, how often, and what is said to everybody else."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.api.keys import Door, KeyFileError, add_new_key, hash_key, read_keys
from serve.api.limits import TokenBucket
from tests.serve.conftest import Server, running_server, serve_command, wait_until
from tests.serve.problems import problem

OPEN = ("/health/live", "/health/ready", "/health/startup")
FUNCTION = "def f(a):\n    return a[1]\n"


class Clock:
    """Seconds that pass when they are told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@settings(deadline=None)
@given(
    st.floats(1, 1000),
    st.lists(st.tuples(st.floats(0, 100), st.floats(0, 50)), max_size=50),
)
def test_a_bucket_gives_at_most_a_full_minute_and_what_flowed_in(
    per_minute: float, asked: list[tuple[float, float]]
) -> None:
    clock = Clock()
    bucket = TokenBucket(per_minute, clock)
    given_out = 0.0
    for seconds, amount in asked:
        clock.now += seconds
        if bucket.wait_s(amount) == 0 and amount <= per_minute:
            bucket.spend(amount)
            given_out += amount
    assert given_out <= per_minute * (1 + clock.now / 60) * (1 + 1e-9)


def test_a_bucket_says_exactly_how_long_to_wait() -> None:
    clock = Clock()
    bucket = TokenBucket(60, clock)
    bucket.spend(100)
    assert bucket.wait_s(1) == pytest.approx(41)
    clock.now += 41
    assert bucket.wait_s(1) == pytest.approx(0, abs=1e-9)


def make_key(file: Path, name: str) -> str:
    done = subprocess.run(
        serve_command("--api-keys", str(file), "--new-key", name), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_command_makes_keys_and_keeps_their_hashes_alone(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    key = make_key(file, "ci")
    assert file.stat().st_mode & 0o077 == 0
    assert key not in file.read_text()
    assert read_keys(file) == {hash_key(key): "ci"}
    with pytest.raises(KeyFileError, match="ci"):
        add_new_key(file, "ci")
    with pytest.raises(KeyFileError, match="no name"):
        add_new_key(file, "two words")


@pytest.mark.parametrize("line", ["ci", "ci abc", f"ci {'0' * 63}", f"ci {'0' * 64} more", f"{'0' * 64} ci"])
def test_a_line_that_is_no_name_and_hash_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# keys\n{line}\n")
    with pytest.raises(KeyFileError, match="line 2"):
        Door(file)


def test_a_server_does_not_start_with_keys_it_can_not_read(tiny_bundle: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        serve_command(str(tiny_bundle), "--api-keys", str(tmp_path / "none")),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert str(tmp_path / "none") in done.stderr


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "keys"


@pytest.fixture(scope="module")
def key(key_file: Path) -> str:
    return add_new_key(key_file, "ci")


@pytest.fixture(scope="module")
def locked(tiny_bundle: Path, key_file: Path, key: str) -> Iterator[Server]:
    with running_server(tiny_bundle, "--api-keys", str(key_file)) as server:
        yield server


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_every_route_but_the_probes_asks_for_a_key(locked: Server, key: str) -> None:
    schema = httpx.get(f"{locked.url}/schema/openapi.json", headers=bearer(key)).json()
    routes = [(method, path) for path, methods in schema["paths"].items() for method in methods]
    assert ("post", "/v1/analyze") in routes
    for method, path in [*routes, ("get", "/schema/openapi.json")]:
        response = httpx.request(method, locked.url + path.replace("{model}", "tiny"))
        if path in OPEN:
            assert response.status_code == 200
        else:
            problem(response, 401, "unauthorized")
            assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer dca_wrong",
        "Basic {key}",
        "{key}",
        "Bearer {key}x",
        "Bearer \xe9",
        "Bearer {hash}",
    ],
)
def test_what_is_not_a_key_is_not_let_in(locked: Server, key: str, header: str) -> None:
    value = header.format(key=key, hash=hash_key(key)).encode("latin-1")
    headers = [(b"Authorization", value)]
    problem(httpx.post(f"{locked.url}/v1/analyze", json={"code": ""}, headers=headers), 401, "unauthorized")


def test_a_key_lets_in_and_is_in_the_log_by_name_only(locked: Server, key: str) -> None:
    response = httpx.post(f"{locked.url}/v1/analyze", json={"code": FUNCTION}, headers=bearer(key), timeout=120)
    assert response.status_code == 200
    wait_until(lambda: any(line.get("caller") == "ci" for line in locked.log()))
    assert all(key not in str(line) and "return a[1]" not in str(line) for line in locked.log())


def test_rewriting_the_file_changes_who_is_let_in(tiny_bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    old = add_new_key(file, "old")
    with running_server(tiny_bundle, "--api-keys", str(file)) as server:

        def status(key: str) -> int:
            return httpx.get(f"{server.url}/v1/bundle", headers=bearer(key)).status_code

        assert status(old) == 200
        new = add_new_key(file, "new")
        wait_until(lambda: status(new) == 200)
        assert status(old) == 200, "both hold while clients change over"
        file.write_text("\n".join(line for line in file.read_text().splitlines() if line.startswith("new")))
        wait_until(lambda: status(old) == 401)
        file.write_text("nonsense")
        wait_until(lambda: any("stay as they were" in line["message"] for line in server.log() if status(new)))
        assert status(new) == 200
        file.write_text("")
        wait_until(lambda: status(new) == 401)


def test_a_key_over_its_rate_is_told_when_to_come_back_and_others_are_not(tiny_bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    busy, calm = add_new_key(file, "busy"), add_new_key(file, "calm")
    with running_server(tiny_bundle, "--api-keys", str(file), "--requests-per-minute", "0.5") as server:

        def analyze(key: str) -> httpx.Response:
            return httpx.post(f"{server.url}/v1/analyze", json={"code": ""}, headers=bearer(key), timeout=120)

        assert analyze(busy).status_code == 200
        refused = analyze(busy)
        problem(refused, 429, "rate-limited")
        assert 1 <= int(refused.headers["retry-after"]) <= 120
        assert analyze(calm).status_code == 200


def test_tokens_are_counted_when_they_were_computed(tiny_bundle: Path) -> None:
    with running_server(tiny_bundle, "--tokens-per-minute", "1") as server:

        def analyze() -> httpx.Response:
            return httpx.post(f"{server.url}/v1/analyze", json={"code": FUNCTION}, timeout=120)

        assert analyze().status_code == 200
        body = problem(analyze(), 429, "rate-limited")
        assert "1 tokens a minute" in body["detail"]
