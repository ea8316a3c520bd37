"""A real Chromium, and pages in it that must not say a word on the console."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

CHROMIUMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
# It is nobody's browser: nothing to update, to sync or to look up.
FLAGS = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run")
PATIENCE_MS = 60_000
expect.set_options(timeout=PATIENCE_MS)

Open = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium from the system, else the one of `playwright install`; without either these tests are skipped.

    It ends with the module: Playwright's event loop would be in the way of asynchronous tests.
    """
    with sync_playwright() as playwright:
        system = next((path for name in CHROMIUMS if (path := shutil.which(name))), None)
        if system is None and not Path(playwright.chromium.executable_path).exists():
            pytest.skip("no Chromium: apt-get install chromium-headless-shell, or playwright install chromium")
        browser = playwright.chromium.launch(executable_path=system, args=FLAGS, timeout=PATIENCE_MS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    """Open an address in a profile of its own. At the end nothing may stand on the console but `expected` words."""
    said: list[str] = []
    contexts = []

    def listen(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            said.append(message.text)

    allowed: list[str] = []

    def open_address(url: str, expected: tuple[str, ...] = (), **options: object) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        allowed.extend(expected)
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", listen)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(url)
        return page

    yield open_address
    for context in contexts:
        context.close()
    assert [text for text in said if not any(word in text for word in allowed)] == []
