"""The stages of a search recipe in order. Each takes the folders of earlier ones and writes its own."""

from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from bundle.search import INT8
from compress import ranks
from compress.code_search.bundling import write_exports, write_search_bundle
from compress.code_search.data import Pair, build_pairs, read_pairs
from compress.code_search.embeddings import (
    EmbeddingKey,
    embedding_key,
    hard_negatives,
    read_embeddings,
    write_embeddings,
)
from compress.code_search.encoders import encoder_fingerprint, encoder_folder, load_encoder, save_encoder
from compress.code_search.evaluate import (
    BASELINE,
    DISTILLED,
    RAW,
    SHIPPED,
    TEACHER,
    SearchCandidate,
    SearchEvaluation,
    evaluate_search,
)
from compress.code_search.recipe import SearchDistill, SearchGate, SearchRecipe, SearchTrain
from compress.code_search.report import read_search_evaluation, search_tables, write_search_report
from compress.code_search.scores import SearchScores
from compress.code_search.student import start_student
from compress.code_search.train import Taught, train_encoder
from compress.data.build import corpus_fingerprint
from compress.data.corpus import find_sources
from compress.data.stage import CORPUS_CACHE
from compress.export.int8 import CALIBRATION_EXAMPLES
from compress.gate import judged, require_passed
from compress.lineage import as_told
from compress.stages import Run
from compress.training_log import training_history

SEARCH_STAGES = ("data", "teacher", "embeddings", "student", "distill", "baseline", "onnx", "evaluate", "bundle")


def run_search_recipe(recipe: SearchRecipe, folder: Path, console: Console, rerun_from: str | None = None) -> None:
    """Go through every stage the recipe asks for; see `Run.stage` for what is skipped and resumed.

    Raises:
        RecipeError: the recipe names something that is not there or cannot work.
        GateError: the int8 student is below the recipe's gate; no bundle is written.
    """
    ranks.join()
    SearchPipeline(recipe, Run(folder, console, rerun_from, SEARCH_STAGES), console).run()


class SearchPipeline:
    """A search recipe's stages in one run folder."""

    def __init__(self, recipe: SearchRecipe, run: Run, console: Console) -> None:
        self.recipe, self.run_folder, self.console = recipe, run, console

    def run(self) -> None:
        """Every stage the recipe asks for."""
        recipe = self.recipe
        data = self._data()
        raw, teacher = self._teacher(data)
        embeddings = self._embeddings(data, teacher)
        start = self._start(teacher)

        def taught() -> Taught:
            return self._taught(data, teacher, embeddings)

        distilled = self._train("distill", start, data, taught, recipe.distill, ["data", "embeddings", "student"])
        encoders = {RAW: raw} if recipe.teacher.train is not None else {}
        encoders[TEACHER] = teacher
        after = ["data", "teacher", "distill"]
        if recipe.distill.baseline:
            alone = self._train("baseline", start, data, None, _pairs_alone(recipe.distill), ["data", "student"])
            encoders[BASELINE] = alone
            after.append("baseline")
        encoders[DISTILLED] = distilled
        exported = self._onnx(data, encoders, after)
        report = self._evaluate(data, encoders, exported, ["data", "onnx"])
        self._bundle(exported, report)

    def _data(self) -> Path:
        data = self.recipe.data
        sources, projects = find_sources(data.corpus, CORPUS_CACHE)
        return self.run_folder.stage(
            "data",
            after=[],
            inputs={"data": data, "seed": self.recipe.seed, "corpus": corpus_fingerprint(sources)},
            action=lambda out: build_pairs(data, sources, projects, self.recipe.seed, out),
        )

    def _teacher(self, data: Path) -> tuple[Path, Path]:
        """The teacher as it came, and as it teaches."""
        recipe = self.recipe
        name = encoder_folder(recipe.teacher.model)
        trained = recipe.teacher.train

        def prepare(out: Path) -> None:
            if not (out / "raw").is_dir():
                save_encoder(load_encoder(name, recipe.data.max_tokens), out / "raw")
            if trained is not None:
                pairs = read_pairs(data / "train.jsonl")
                self._loop(str(out / "raw"), pairs, trained, _pairs_alone(recipe.distill), None, out, "teacher", ())

        folder = self.run_folder.stage(
            "teacher",
            # A teacher that is used as it is does not depend on the data.
            after=["data"] if trained is not None else [],
            inputs={
                "teacher": msgspec.structs.replace(recipe.teacher, model=Path(recipe.teacher.model).name),
                "files": encoder_fingerprint(name),
                "scale": recipe.distill.scale,
                "max_tokens": recipe.data.max_tokens,
                "seed": recipe.seed,
            },
            action=prepare,
        )
        return folder / "raw", folder / ("model" if trained is not None else "raw")

    def _embeddings(self, data: Path, teacher: Path) -> Path:
        def write(out: Path) -> None:
            pairs = read_pairs(data / "train.jsonl")
            encoder = load_encoder(str(teacher), self.recipe.data.max_tokens)
            for name, texts in _texts(pairs).items():
                write_embeddings(encoder, texts, self._key(texts, teacher), out / name)

        return self.run_folder.stage(
            "embeddings", after=["data", "teacher"], inputs={"max_tokens": self.recipe.data.max_tokens}, action=write
        )

    def _key(self, texts: list[str], teacher: Path) -> EmbeddingKey:
        return embedding_key(texts, teacher, self.recipe.data.max_tokens)

    def _taught(self, data: Path, teacher: Path, embeddings: Path) -> Taught:
        pairs = read_pairs(data / "train.jsonl")
        queries, documents = (
            read_embeddings(embeddings / name, self._key(texts, teacher)) for name, texts in _texts(pairs).items()
        )
        count = min(self.recipe.distill.hard_negatives, len(pairs) - 1)
        return Taught(queries, documents, hard_negatives(queries, documents, count))

    def _start(self, teacher: Path) -> Path:
        recipe = self.recipe
        folder = self.run_folder.stage(
            "student",
            after=["teacher"],
            inputs={"student": recipe.student, "max_tokens": recipe.data.max_tokens},
            action=lambda out: start_student(teacher, recipe.student, recipe.data.max_tokens, out),
        )
        return folder / "model"

    def _train(self, name: str, start: Path, data: Path, taught: Any, distill: SearchDistill, after: list[str]) -> Path:
        """The student trained from `start`: on the pairs, and with what `taught` gives when it is not None."""
        recipe = self.recipe
        folder = self.run_folder.stage(
            name,
            after=after,
            inputs={
                "train": recipe.train,
                "distill": msgspec.structs.replace(distill, baseline=False),
                "dimensions": recipe.student.dimensions,
                "max_tokens": recipe.data.max_tokens,
                "seed": recipe.seed,
            },
            action=lambda out: self._loop(
                str(start),
                read_pairs(data / "train.jsonl"),
                recipe.train,
                distill,
                taught and taught(),
                out,
                name,
                recipe.student.dimensions,
            ),
        )
        return folder / "model"

    def _loop(
        self,
        start: str,
        pairs: list[Pair],
        train: SearchTrain,
        distill: SearchDistill,
        taught: Taught | None,
        out: Path,
        description: str,
        dimensions: tuple[int, ...],
    ) -> None:
        recipe = self.recipe
        train_encoder(
            start, pairs, train, distill, taught, dimensions, recipe.data.max_tokens, recipe.seed, out, description
        )

    def _onnx(self, data: Path, encoders: dict[str, Path], after: list[str]) -> Path:
        recipe = self.recipe

        def export(out: Path) -> None:
            pairs = read_pairs(data / "train.jsonl")[:CALIBRATION_EXAMPLES]
            texts = [text for part in _texts(pairs).values() for text in part]
            for name, folder in encoders.items():
                encoder = load_encoder(str(folder), recipe.data.max_tokens)
                dimensions = recipe.student.dimensions if name in (BASELINE, DISTILLED) else ()
                write_exports(encoder, dimensions, texts if name == DISTILLED else (), out / _slug(name))

        return self.run_folder.stage(
            "onnx",
            after=after,
            inputs={"dimensions": recipe.student.dimensions, "encoders": list(encoders)},
            action=export,
        )

    def _evaluate(self, data: Path, encoders: dict[str, Path], exported: Path, after: list[str]) -> Path:
        recipe = self.recipe
        candidates = [SearchCandidate(name, exported / _slug(name)) for name in encoders]
        candidates.append(SearchCandidate(SHIPPED, exported / _slug(DISTILLED), INT8))

        def report(evaluation: SearchEvaluation, out: Path) -> None:
            histories = {name: history for name, folder in encoders.items() if (history := training_history(folder))}
            write_search_report(evaluation, histories, as_told(recipe), out / "report")

        folder = self.run_folder.stage(
            "evaluate",
            after=after,
            inputs={
                "evaluate": msgspec.structs.replace(recipe.evaluate, gate=SearchGate()),
                "index": recipe.index,
                "seed": recipe.seed,
                "measures": SearchScores.__struct_fields__,
            },
            action=lambda out: report(evaluate_search(recipe, data, candidates, out, self.console), out),
        )
        # Another gate judges what was measured: nothing is embedded again.
        evaluation = judged(read_search_evaluation(folder / "report"), recipe.evaluate.gate)
        if evaluation != read_search_evaluation(folder / "report"):
            report(evaluation, folder)
        for table in search_tables(evaluation):
            self.console.print(table.rich())
        return folder / "report"

    def _bundle(self, exported: Path, report: Path) -> None:
        evaluation = read_search_evaluation(report)
        require_passed(self.recipe.name, evaluation.failures)
        lineage = {"recipe": as_told(self.recipe), "stages": dict(self.run_folder.keys)}
        scores = {"retention": evaluation.retention, "units": evaluation.units}
        folder = self.run_folder.stage(
            "bundle",
            after=["evaluate"],
            inputs={"gate": self.recipe.evaluate.gate},
            action=lambda out: write_search_bundle(
                self.recipe,
                exported / _slug(DISTILLED),
                report,
                lineage,
                scores,
                evaluation.hybrid,
                evaluation.embeddings,
                out,
            ),
        )
        self.console.print(f"search bundle: {folder}")


def _pairs_alone(distill: SearchDistill) -> SearchDistill:
    """What is left of the losses without a teacher, so that other changes of them repeat no training without one."""
    return SearchDistill(scale=distill.scale)


def _texts(pairs: list[Pair]) -> dict[str, list[str]]:
    return {"queries": [pair.query for pair in pairs], "documents": [pair.document for pair in pairs]}


def _slug(name: str) -> str:
    return name.replace(", ", "-").replace(" ", "-")
