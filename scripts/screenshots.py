"""The pictures of docs/page.md: the sample analysed in light and in dark, and the model card.

deepcode-serve runs/nano/bundle &
python scripts/screenshots.py http://127.0.0.1:8000
"""

import sys
from pathlib import Path

from playwright.sync_api import Browser, expect, sync_playwright

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "recipes" / "samples" / "orders.py"
DOCS = ROOT / "docs"
CHROMIUM = "/usr/bin/chromium-headless-shell"
PATIENCE_MS = 120_000


def take(browser: Browser, url: str, scheme: str) -> None:
    """One analysis of the sample, and in light the model card as well."""
    page = browser.new_context(viewport={"width": 1200, "height": 720}, color_scheme=scheme).new_page()
    page.goto(url)
    page.set_input_files("#file", SAMPLE)
    page.get_by_role("button", name="Analyse", exact=True).click()
    expect(page.get_by_text("Done in")).to_be_visible(timeout=PATIENCE_MS)
    page.screenshot(path=DOCS / f"page-{scheme}.png")
    if scheme == "light":
        page.get_by_role("tab", name="Model card").click()
        expect(page.get_by_role("heading", name="What was kept of the teacher")).to_be_visible()
        page.screenshot(path=DOCS / "page-card.png")


def main() -> None:
    """Take all three."""
    [url] = sys.argv[1:]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM if Path(CHROMIUM).exists() else None)
        take(browser, url, "light")
        take(browser, url, "dark")
        browser.close()


if __name__ == "__main__":
    main()
