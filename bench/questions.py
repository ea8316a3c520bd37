"""Ten questions to four projects, and what the code search answers: to read, not to score.

    python -m bench.questions runs/search/bundle --write-docs

The projects are this repository and three packages of PyPI that recipes/search.yaml holds out of its training. The
questions were written before any answer was seen, and stay whatever they find.
"""

import argparse
import asyncio
import tempfile
from pathlib import Path

from bench.docs import DOCS, write_figures
from bench.search import Unobserved
from bench.verdicts import markdown
from bundle.search import open_search_bundle
from serve.search.folder import FolderIndex
from serve.search.messages import IndexRequest, SearchRequest, SourceFile
from serve.search.service import CodeSearch

COMMAND = "python -m bench.questions runs/search/bundle --write-docs"
OURS = "deepcode-analyst"
PUBLISHED = ("httpx==0.28.1", "starlette==1.10.0", "networkx==3.6.1")
ANSWERS = 3
QUESTIONS = (
    (OURS, "refuse a request when too many are waiting"),
    (OURS, "apply an edit to one line of a file"),
    (OURS, "go on with a run that was killed"),
    ("httpx", "follow a redirect to another address"),
    ("httpx", "decompress the body of a response"),
    ("httpx", "read proxy settings from the environment"),
    ("starlette", "serve static files from a folder"),
    ("starlette", "parse an upload of several files"),
    ("networkx", "cheapest route between two nodes"),
    ("networkx", "is every node reachable from every other"),
)


def projects() -> dict[str, list[SourceFile]]:
    """The files of each project."""
    from compress.data.corpus import find_sources
    from compress.data.stage import CORPUS_CACHE  # with it comes torch, which workers that import this module can not

    root = Path(__file__).parents[1]
    ours = [file for room in ("bundle", "compress", "serve") for file in sorted((root / room).rglob("*.py"))]
    found = {OURS: [SourceFile(file.relative_to(root).as_posix(), file.read_text()) for file in ours]}
    sources, _ = find_sources([f"pypi:{requirement}" for requirement in PUBLISHED], CORPUS_CACHE)
    for source in sources:
        code = source.file.read_text(encoding="utf-8")
        found.setdefault(source.project, []).append(SourceFile(source.path, code))
    return found


async def ask(bundle: Path, folder: Path) -> list[list[object]]:
    """A row for each answer: project, question, place, name, and what ranks found it."""
    opened = open_search_bundle(bundle)
    search = CodeSearch(opened, FolderIndex(folder, opened.manifest), 0, Unobserved())
    await search.start()
    for project, files in projects().items():
        await search.update(IndexRequest(project=project, files=tuple(files)))
    rows: list[list[object]] = [["question", "project", "answer", "by meaning", "by words"]]
    for project, question in QUESTIONS:
        answered = await search.search(SearchRequest(project=project, query=question, k=ANSWERS))
        for number, result in enumerate(answered.results):
            told = (question, project) if number == 0 else ("", "")
            place = f"`{result.name}` ({result.path}:{result.start_line})"
            ranks = (result.found_by.get("embedding", "-"), result.found_by.get("bm25", "-"))
            rows.append([*told, place, *ranks])
    search.close()
    return rows


def main() -> None:
    """Print the answers."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.questions", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path, help="a search bundle")
    parser.add_argument("--write-docs", action="store_true", help="write the answers into docs/search.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        answers = markdown(asyncio.run(ask(options.bundle, Path(folder)))) + "\n"
    print(answers)
    if options.write_docs:
        write_figures(DOCS / "search.md", COMMAND, answers)


if __name__ == "__main__":
    main()
