"""What is asked: real functions of the standard library, a project of it, and that project after a change."""

import ast
import random
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec
from tokenizers import Tokenizer

from bundle.manifest import open_bundle
from bundle.prompt import Prompt
from bundle.units import FunctionNode, Unit, UnparsableCode, cut_units
from compress.data.corpus import SourceFile, find_sources
from serve.analysis.analyzer import ANSWER_TOKENS

PROJECT = "email"
LONGEST_PROMPT = 384
MOST_FUNCTIONS = 12_000
CHANGED_SHARE = 0.05


class Question(msgspec.Struct, frozen=True):
    """One function: its code for an API of analyses, and its prompt for one of completions."""

    code: str
    prompt: str
    prompt_ids: list[int]


class Project(msgspec.Struct, frozen=True):
    """Whole files by their path, and their units as questions."""

    files: dict[str, str]
    questions: list[Question]


class Workload:
    """Questions in one bundle's own prompt; the same ones in the same order every time."""

    def __init__(self, bundle_path: Path) -> None:
        bundle = open_bundle(bundle_path)
        self._tokenizer = Tokenizer.from_file(str(bundle.tokenizer_file))
        self._prompt = Prompt(bundle.prompt_template, bundle.catalogue, self._tokenizer)
        self._most_tokens = bundle.manifest.context_length - ANSWER_TOKENS
        self._sources, _ = find_sources(["stdlib"], Path())

    def functions(self) -> list[Question]:
        """Distinct functions that are a file of one unit each, shuffled; none is of the project."""
        sources = [source for source in self._sources if source.project != PROJECT]
        random.Random(0).shuffle(sources)
        found: dict[str, Question] = {}
        for source in sources:
            for unit in _units(_read(source)):
                if unit.kind in ("function", "method") and unit.code not in found and _stands_alone(unit):
                    found[unit.code] = self._question(unit)
            if len(found) > MOST_FUNCTIONS:
                break
        questions = [each for each in found.values() if self._fits(each)]
        random.Random(0).shuffle(questions)
        return questions

    def project(self) -> Project:
        """The project as it is published."""
        return self._project({source.path: _read(source) for source in self._sources if source.project == PROJECT})

    def changed(self, project: Project) -> Project:
        """The project with a statement more in one of twenty functions."""
        rng = random.Random(0)
        return self._project({path: _change(code, rng) for path, code in project.files.items()})

    def _project(self, files: dict[str, str]) -> Project:
        """Units that no context holds are no questions; our server skips them too."""
        questions = (self._question(unit) for code in files.values() for unit in _units(code))
        return Project(files, [each for each in questions if len(each.prompt_ids) <= self._most_tokens])

    def _question(self, unit: Unit) -> Question:
        text = f"{self._prompt.prefix}{unit.numbered()}{self._prompt.suffix}"
        return Question(unit.code, text, self._prompt.encode(unit))

    def _fits(self, question: Question) -> bool:
        """Short enough for everybody, and the same tokens for who is sent the text and who is sent the tokens."""
        if len(question.prompt_ids) > LONGEST_PROMPT:
            return False
        return self._tokenizer.encode(question.prompt).ids == question.prompt_ids


def _read(source: SourceFile) -> str:
    with tokenize.open(source.file) as file:
        return file.read()


def _units(code: str) -> Sequence[Unit]:
    try:
        return cut_units(code)
    except UnparsableCode:
        return ()


def _stands_alone(unit: Unit) -> bool:
    """Whether an analysis of the unit's own text asks the same question as one of the file it is from."""
    return [each.texts for each in _units(unit.code)] == [unit.texts]


def _change(code: str, rng: random.Random) -> str:
    lines = code.split("\n")
    chosen = [node for node in _functions(ast.parse(code)) if rng.random() < CHANGED_SHARE]
    for node in sorted(chosen, key=lambda each: -(each.end_lineno or 0)):
        lines.insert(node.end_lineno or 0, " " * node.body[0].col_offset + "pass")
    return "\n".join(lines)


def _functions(tree: ast.Module) -> Iterator[FunctionNode]:
    nodes: Iterable[ast.AST] = ast.walk(tree)
    return (
        node
        for node in nodes
        if isinstance(node, FunctionNode) and node.body[0].lineno > node.lineno and len(node.body) > 1
    )
