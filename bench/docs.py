"""Figures on the pages of docs/, between marks that name the command which prints them."""

from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
_END = "<!-- end of figures -->"


def write_figures(page: Path, command: str, figures: str) -> None:
    """Replace what stands between the page's marks; a page without them gets them at its end.

    Args:
        page: a Markdown file; made if it is not there.
        command: what the mark says: `python -m bench.serve --write-docs`, say.
        figures: Markdown.
    """
    begin = f"<!-- figures: {command} -->"
    before, after = "", ""
    if page.is_file():
        before, _, rest = page.read_text(encoding="utf-8").partition(begin)
        after = rest.partition(_END)[2]
    page.write_text(f"{before}{begin}\n\n{figures}\n{_END}{after or chr(10)}", encoding="utf-8")
