"""The search tab of the page, before a real server: it is there only where there is an index to search."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Route, expect

from tests.support.server_process import serving
from tests.web.conftest import Open

READING = """def read_config(path):
    '''Load it.'''
    with open(path) as file:
        return "<b>" + parse(file)
"""
NO_REPORT = ("404",)
"""What a browser says of a bundle that carries no evaluation."""
AREA = "class Circle:\n    def area(self):\n        return 3.14 * self.radius**2\n"


@pytest.fixture(scope="module")
def url(tiny_bundle: Path, tiny_search_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("index")
    with serving(tiny_bundle, "--search-bundle", tiny_search_bundle, "--index-dir", folder) as address:
        files = [{"path": "io.py", "code": READING}, {"path": "shapes.py", "code": AREA}]
        copied = [{"path": "other.py", "code": AREA}]
        for project, held in (("shop", files + copied), ("other", copied)):
            httpx.post(f"{address}/v1/index", json={"project": project, "files": held}, timeout=60).raise_for_status()
        yield address


def test_what_is_asked_for_is_found_and_shown_as_text(open_page: Open, url: str) -> None:
    page = open_page(url, NO_REPORT)
    page.get_by_role("tab", name="Search").click()
    page.get_by_role("combobox", name="in", exact=True).select_option("shop")
    page.get_by_role("searchbox", name="Find").fill("read config")
    page.keyboard.press("Enter")

    first = page.locator("#found > li").first
    expect(first).to_contain_text("read_config")
    expect(first).to_contain_text("io.py, lines 1 to 4")
    expect(first).to_contain_text('return "<b>" + parse(file)')
    expect(first).to_contain_text("by words #1")
    expect(page.get_by_role("status")).to_contain_text("results in")

    page.get_by_role("combobox", name="kind").select_option("method")
    page.get_by_role("textbox", name="files", exact=True).fill("shapes*")
    page.get_by_role("button", name="Search").click()
    expect(page.locator("#found > li")).to_have_count(1)
    expect(first).to_contain_text("Circle.area")
    expect(first).to_contain_text("The same: other.py, line 2")

    page.get_by_role("textbox", name="files", exact=True).fill("nowhere/*")
    page.get_by_role("button", name="Search").click()
    expect(page.get_by_role("status")).to_have_text("Nothing was found.")
    expect(page.locator("#found > li")).to_have_count(0)


def test_who_asks_before_the_projects_are_listed_is_answered_all_the_same(open_page: Open, url: str) -> None:
    page = open_page(url, NO_REPORT)
    never_answered: list[Route] = []
    page.route("**/v1/index", lambda route: never_answered.append(route), times=1)
    with page.expect_request("**/v1/index"):
        page.get_by_role("tab", name="Search").click()
    page.get_by_role("searchbox", name="Find").fill("area")
    page.keyboard.press("Enter")
    expect(page.locator("#found > li").first).to_contain_text("Circle.area")


def test_the_tab_is_in_the_address_and_reached_with_the_keyboard(open_page: Open, url: str) -> None:
    page = open_page(f"{url}/#search", NO_REPORT)
    expect(page.get_by_role("searchbox", name="Find")).to_be_visible()
    page.get_by_role("tab", name="Search").press("ArrowLeft")
    expect(page.get_by_role("button", name="Analyse", exact=True)).to_be_visible()
    page.get_by_role("tab", name="Analyse").press("ArrowRight")
    expect(page.get_by_role("searchbox", name="Find")).to_be_visible()


def test_a_tab_reached_with_the_keyboard_lists_the_projects(open_page: Open, url: str) -> None:
    page = open_page(url, NO_REPORT)
    expect(page.get_by_role("tab", name="Search")).to_be_visible()
    page.get_by_role("tab", name="Analyse").press("ArrowRight")
    expect(page.get_by_role("combobox", name="in", exact=True)).to_contain_text("shop (3 units)")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_accessible(open_page: Open, url: str, scheme: str) -> None:
    page = open_page(f"{url}/#search", NO_REPORT, color_scheme=scheme)
    page.get_by_role("searchbox", name="Find").fill("area")
    page.keyboard.press("Enter")
    expect(page.locator("#found > li").first).to_contain_text("Circle.area")
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_a_project_that_is_gone_is_said_in_words(open_page: Open, url: str) -> None:
    page = open_page(f"{url}/#search", NO_REPORT)
    page.get_by_role("combobox", name="in", exact=True).select_option("other")
    httpx.delete(f"{url}/v1/index/other")
    page.get_by_role("searchbox", name="Find").fill("area")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("No such project")
