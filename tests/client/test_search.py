"""`deepcode-check index`, `deepcode-check search` and the Python client, against a server with a tiny real encoder."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve.client.errors import NoSearch, UnknownProject
from serve.client.searching import AsyncSearchClient, SearchClient
from serve.search.messages import IndexRequest, SourceFile
from tests.client.conftest import Check
from tests.support.server_process import COMMANDS, serving

READING = "def read_config(path):\n    with open(path) as file:\n        return parse(file)\n"
AREA = "class Circle:\n    def area(self):\n        return 3.14 * self.radius**2\n"


@pytest.fixture(scope="module")
def url(tiny_bundle: Path, tiny_search_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("index")
    with serving(tiny_bundle, "--search-bundle", tiny_search_bundle, "--index-dir", folder) as address:
        yield address


def test_a_project_is_indexed_searched_changed_and_searched_again(check: Check, url: str, tmp_path: Path) -> None:
    (tmp_path / "io.py").write_text(READING)
    (tmp_path / "shapes.py").write_text(AREA)
    indexed = check("index", ".", "--url", url, "--project", "shop")
    assert (indexed.returncode, indexed.stderr) == (0, "")
    assert indexed.stdout.startswith(
        "shop: 2 units in 2 files; 2 new or changed, 0 as before, 0 gone; 2 units embedded"
    )

    found = check("search", "read config", "--url", url, "--project", "shop", "-k", "1")
    assert found.returncode == 0
    assert found.stdout.startswith("io.py:1-3: function read_config (")
    assert "    def read_config(path):\n        with open(path) as file:\n" in found.stdout

    (tmp_path / "io.py").unlink()
    (tmp_path / "copy.py").write_text(AREA)
    again = check("index", ".", "--url", url, "--project", "shop")
    assert "shop: 2 units in 2 files; 1 new or changed, 1 as before, 1 gone; 0 units embedded" in again.stdout
    area = check("search", "area", "--url", url, "--project", "shop", "--kind", "method", "--path", "*.py")
    assert area.stdout.startswith("copy.py:2-3: method Circle.area (")
    assert "the same: shapes.py:2" in area.stdout
    assert check("search", "area", "--url", url, "--project", "shop", "--path", "io*").stdout == (
        "Nothing was found in shop.\n"
    )


def test_the_project_is_called_as_its_folder_unless_it_is_named(check: Check, url: str, tmp_path: Path) -> None:
    folder = tmp_path / "my project"
    folder.mkdir()
    (folder / "a.py").write_text(READING)
    assert check("index", ".", "--url", url, cwd=folder).stdout.startswith("my-project: 1 unit in 1 file;")
    found = check("search", "config", "--url", url, "--format", "json", cwd=folder)
    document = json.loads(found.stdout)
    assert document["project"] == "my-project"
    assert document["results"][0]["path"] == "a.py"


def test_what_is_not_indexed_is_named_and_the_rest_is_indexed(check: Check, url: str, tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text(READING)
    (tmp_path / "broken.py").write_text("def f(:\n")
    (tmp_path / "latin.py").write_bytes(b"x = '\xe9'\n")
    done = check("index", ".", "--url", url, "--project", "mixed")
    assert done.returncode == 3
    assert "not indexed: broken.py" in done.stderr
    assert "not indexed: latin.py" in done.stderr
    assert done.stdout.startswith("mixed: 1 unit in 1 file;")

    passed = check("index", ".", "--url", url, "--project", "mixed", "--exclude", "broken.py", "--exclude", "latin.py")
    assert (passed.returncode, passed.stderr) == (0, "")


def test_who_does_not_answer_is_named_and_the_code_is_3(
    check: Check, url: str, server_url: str, dead_url: str, tmp_path: Path
) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")
    missing = check("search", "x", "--url", url, "--project", "never")
    assert missing.returncode == 3
    assert "index it first: deepcode-check index PATH… --project never" in missing.stderr

    for command in (("search", "x"), ("index", "a.py")):
        without = check(*command, "--url", server_url)
        assert (without.returncode, "--search-bundle" in without.stderr) == (3, True)
    dead = check("search", "x", "--url", dead_url)
    assert (dead.returncode, "cannot be reached" in dead.stderr) == (3, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["search", "x"], "--url"),
        (["search", " ", "--url", "http://127.0.0.1:1"], "the query is empty"),
        (["search", "x", "--url", "http://127.0.0.1:1", "-k", "0"], "is not a whole number from 1 to 100"),
        (["search", "x", "--url", "http://127.0.0.1:1", "--project", "a/b"], "is no project's name"),
        (["search", "x", "--url", "http://127.0.0.1:1", "--kind", "variable"], "invalid choice"),
        (["index", "--url", "http://127.0.0.1:1"], "PATH"),
        (["index", "gone", "--url", "http://127.0.0.1:1"], "gone does not exist"),
    ],
)
def test_wrong_usage(check: Check, arguments: list[str], said: str) -> None:
    done = check(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


def test_a_bundle_in_the_settings_of_a_project_is_no_server(check: Check, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.deepcode-check]\nbundle = "."\n')
    done = check("search", "x")
    assert done.returncode == 2
    assert "--search-bundle: give its --url" in done.stderr


async def test_programs_index_and_search_blocking_and_not(url: str, server_url: str) -> None:
    with SearchClient(url) as client:
        report = client.index(IndexRequest(project="program", files=(SourceFile("a.py", READING),)))
        assert (report.units, report.embedded) == (1, 1)
        assert client.search("config", "program", kinds=["function"]).results[0].name == "read_config"
        assert "program" in [info.project for info in client.projects()]

    async with AsyncSearchClient(url) as client:
        assert (await client.files("program")).files == {"a.py": SourceFile("a.py", READING).sha256}
        assert (await client.search("config", "program", path="b*")).results == ()
        assert "program" in [info.project for info in await client.projects()]
        await client.forget("program")
        with pytest.raises(UnknownProject):
            await client.search("config", "program")
    with SearchClient(server_url) as client, pytest.raises(NoSearch):
        client.projects()


def examples(language: str) -> list[str]:
    """The code blocks of docs/search.md about index and search in one language."""
    page = (Path(__file__).parents[2] / "docs" / "search.md").read_text(encoding="utf-8")
    serving_half = page.partition("\n## Index and search\n")[2]
    return re.findall(rf"^```{language}\n(.*?)^```", serving_half, re.DOTALL | re.MULTILINE)


def test_the_commands_of_the_search_page_do_what_it_says(url: str, tmp_path: Path) -> None:
    for folder, code in (("src", READING), ("tests", AREA)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.py").write_text(code)
    said = []
    for language, start in (("sh", ["bash", "-euo", "pipefail", "-c"]), ("python", [sys.executable, "-c"])):
        for example in examples(language):
            done = subprocess.run(
                [*start, example.replace("http://127.0.0.1:8000", url)],
                cwd=tmp_path,
                env=os.environ | {"PATH": f"{COMMANDS}{os.pathsep}{os.environ['PATH']}"},
                capture_output=True,
                text=True,
                timeout=120,
            )
            assert (done.returncode, done.stderr) == (0, ""), example
            said.append(done.stdout)
    commands, over_http, in_python = said

    assert commands.startswith("shop: 2 units in 2 files")
    assert "src/a.py:1-3: function read_config" in commands
    decode, answers = json.JSONDecoder(), []
    while over_http:  # five answers, one after the other; the last is empty
        answer, end = decode.raw_decode(over_http)
        answers.append(answer)
        over_http = over_http[end:]
    indexed, found, projects, files = answers
    assert indexed["files"] == 3
    assert found["results"][0]["name"] == "total"
    assert {"project": "shop", "files": 3, "units": 3} in projects
    assert [*files["files"]] == ["cart.py", "src/a.py", "tests/a.py"]
    assert in_python.startswith("cart.py:1: function total (")
