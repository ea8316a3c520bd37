"""The page as deepcode-serve serves it, and the answer its model card is made of."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import pytest
from playwright.sync_api import expect

from bundle.manifest import MANIFEST_FILE, Manifest, describe_files, write_manifest
from serve.web import STATIC
from tests.support.server_process import serving
from tests.web.conftest import Open
from tests.web.scripted_page import EVALUATION
from tests.web.test_page import CODE, paste


@pytest.fixture(scope="module")
def url(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real server whose student is random and finds something everywhere; its bundle carries an evaluation."""
    folder = tmp_path_factory.mktemp("page") / "bundle"
    shutil.copytree(tiny_bundle, folder)
    (folder / "report.json").write_bytes(EVALUATION)
    manifest = msgspec.json.decode((folder / MANIFEST_FILE).read_bytes(), type=Manifest)
    write_manifest(folder, msgspec.structs.replace(manifest, files=describe_files(folder)))
    with serving(folder) as address:
        yield address


@pytest.mark.parametrize("path", ["/", "/page/main.js", "/page/page.css", "/page/vendor/codemirror.js"])
def test_every_part_of_the_page_comes_under_a_strict_policy(url: str, path: str) -> None:
    response = httpx.get(url + path)
    policy = dict(rule.strip().split(" ", 1) for rule in response.headers["content-security-policy"].split(";"))

    assert response.status_code == 200
    assert policy.pop("img-src") == "'self' data:"
    assert set(policy.values()) == {"'self'", "'none'"}
    assert policy["default-src"] == "'none'"
    assert policy["frame-ancestors"] == "'none'"
    assert response.headers["x-content-type-options"] == "nosniff"


def test_the_page_names_no_other_host_and_every_file_it_names_is_there(url: str) -> None:
    own = [file for file in STATIC.iterdir() if file.suffix in (".html", ".css", ".js")]
    text = {file.name: file.read_text(encoding="utf-8") for file in own}
    named = set(re.findall(r'(?:href|src)="(page/[^"]+)"', text["index.html"]))
    named |= {f"page/{path}" for script in text.values() for path in re.findall(r'from "\./([^"]+)"', script)}

    assert "page/main.js" in named
    assert {httpx.get(f"{url}/{path}").status_code for path in named} == {200}
    assert [name for name in text if re.search(r'(?:href|src|url\(|from|import)[=(\s]*["\']https?:', text[name])] == []


def test_files_beside_the_page_are_not_served(url: str) -> None:
    for path in ("/page/../__init__.py", "/page/%2e%2e/__init__.py", "/page//etc/passwd", "/page/", "/page/vendor"):
        assert httpx.get(url + path).status_code == 404, path


def test_the_evaluation_is_given_as_the_bundle_has_it(url: str, tiny_bundle: Path) -> None:
    response = httpx.get(f"{url}/v1/bundle/report")
    assert response.headers["content-type"].partition(";")[0] == "application/json"
    assert response.content == EVALUATION

    with serving(tiny_bundle) as without:
        missing = httpx.get(f"{without}/v1/bundle/report")
    assert missing.status_code == 404
    assert missing.json()["type"].endswith(":no-report")


def test_the_page_shows_what_the_api_answers(open_page: Open, url: str) -> None:
    report = httpx.post(f"{url}/v1/analyze", json={"code": CODE, "min_confidence": 0}, timeout=60).json()
    page = open_page(url)
    page.get_by_label("the model's own thresholds").uncheck()
    page.get_by_label("confidence at least").fill("0")
    paste(page, CODE)
    page.get_by_role("button", name="Analyse", exact=True).click()

    expect(page.get_by_role("status")).to_contain_text("Done")
    assert report["findings"]
    expect(page.locator("#findings > li")).to_have_count(len(report["findings"]))
    expect(page.locator("#model")).to_contain_text(f"tiny {report['model']['revision']}")
    page.get_by_role("tab", name="Model card").click()
    expect(page.get_by_role("heading", name="What was kept of the teacher")).to_be_visible()
