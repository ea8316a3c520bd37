"""The stages of a recipe in order. Each takes the folders of earlier ones and writes its own."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from transformers import AutoModelForCausalLM, PreTrainedModel

from bundle.rules import Catalogue, load_catalogue
from compress.assemble import write_bundle
from compress.card import publish_teacher
from compress.data.build import build_examples, corpus_fingerprint
from compress.data.corpus import find_sources
from compress.data.examples import read_examples
from compress.data.tokens import TokenDataset, load_tokenizer, make_prompt, prompt_template
from compress.distill import train_student
from compress.errors import GateError
from compress.evaluate import Candidate, Evaluation, evaluate_models
from compress.evaluation.tables import detail_tables, score_tables
from compress.export.onnx import export_onnx
from compress.logits import SoftLabelKey, SoftLabels, require_room, soft_label_key, write_soft_labels
from compress.quantize import quantize_nf4
from compress.recipe import Recipe
from compress.report import write_report
from compress.stages import Run
from compress.student import start_student
from compress.teacher import checkpoint_fingerprint, prepare_teacher

CORPUS_CACHE = Path.home() / ".cache" / "deepcode-analyst" / "corpus"


def run_recipe(recipe: Recipe, folder: Path, console: Console, rerun_from: str | None = None) -> None:
    """Go through every stage the recipe asks for; see `Run.stage` for what is skipped and resumed.

    Raises:
        RecipeError: the recipe names something that is not there or cannot work.
        GateError: the shipped student is below the recipe's gate; no bundle is written.
    """
    _Pipeline(recipe, Run(folder, console, rerun_from), load_catalogue(), console).run()


class _Pipeline:
    def __init__(self, recipe: Recipe, run: Run, catalogue: Catalogue, console: Console) -> None:
        self.recipe, self.run_folder, self.catalogue, self.console = recipe, run, catalogue, console

    def run(self) -> None:
        data = self._data()
        teacher = self._teacher(data)
        # Student and teacher share a tokenizer, so all stages share one tokenised training split, made on demand.
        self.dataset = functools.cache(lambda: self._dataset(data, teacher))
        if self.recipe.student is None:
            report = self._evaluate(data, [Candidate("teacher", teacher, teacher)], after=["data", "teacher"])
            self._publish(teacher, data, report)
            return
        asked: Callable[[], SoftLabels | PreTrainedModel]
        if self.recipe.distill.teacher == "online":
            source, asked = "teacher", functools.partial(_load, teacher)
        else:
            source, asked = "logits", self._logits(teacher)
        start = self._start(teacher)
        student = self._train("distill", start, asked, after=["data", source, "student"])
        candidates = [Candidate("teacher", teacher, teacher)]
        if self.recipe.distill.baseline:
            plain = self._train("baseline", start, None, after=["data", "student"])
            candidates.append(Candidate("student, labels only", plain, plain))
        candidates.append(Candidate("student, distilled", student, student))
        exports = self._exports(student, candidates)
        after = ["data", "teacher", *(["baseline"] if self.recipe.distill.baseline else []), "distill"]
        report = self._evaluate(data, candidates, after=[*after, *exports])
        self._bundle(student, exports, report)

    def _dataset(self, data: Path, checkpoint: Path) -> TokenDataset:
        tokenizer = load_tokenizer(checkpoint)
        prompt = make_prompt(self.recipe.data.prompt, self.catalogue, tokenizer)
        examples = read_examples(data / "train.jsonl")
        return TokenDataset(examples, prompt, tokenizer.eos_token_id, self.recipe.data.max_tokens)

    def _data(self) -> Path:
        recipe = self.recipe
        sources, projects = find_sources(recipe.data.corpus, CORPUS_CACHE)
        return self.run_folder.stage(
            "data",
            after=[],
            inputs={
                "data": recipe.data,
                "seed": recipe.seed,
                "corpus": corpus_fingerprint(sources),
                "catalogue": self.catalogue,
            },
            action=lambda out: build_examples(recipe.data, sources, projects, self.catalogue, recipe.seed, out),
        )

    def _teacher(self, data: Path) -> Path:
        recipe = self.recipe
        # A teacher that is used as it is does not depend on the data.
        trained = recipe.teacher.train is not None
        inputs: dict[str, Any] = {"teacher": recipe.teacher, "seed": recipe.seed}
        if not trained:
            inputs["files"] = checkpoint_fingerprint(recipe.teacher)
        folder = self.run_folder.stage(
            "teacher",
            after=["data"] if trained else [],
            inputs=inputs,
            action=lambda out: prepare_teacher(recipe, self.catalogue, data, out),
        )
        return folder / "model"

    def _logits(self, teacher: Path) -> Callable[[], SoftLabels]:
        distill = self.recipe.distill
        tokenizer = load_tokenizer(teacher)

        def key() -> SoftLabelKey:
            return soft_label_key(self.dataset(), teacher, distill, len(tokenizer))

        def write(out: Path) -> None:
            self.console.print(require_room(out / "labels", self.dataset(), key()))
            model = _load(teacher, device_map="auto")
            write_soft_labels(model, self.dataset(), key(), tokenizer.pad_token_id, out / "labels")

        folder = self.run_folder.stage(
            "logits",
            after=["data", "teacher"],
            inputs={
                "prompt": prompt_template(self.recipe.data.prompt),
                "temperature": distill.temperature_schedule or distill.temperature,
                "labels": distill.labels,
                "kept": distill.top_k if distill.labels == "top_k" else distill.samples,
            },
            action=write,
        )
        return lambda: SoftLabels(folder / "labels", key())

    def _start(self, teacher: Path) -> Path:
        folder = self.run_folder.stage(
            "student",
            after=["data", "teacher"],
            inputs={"student": self.recipe.student, "seed": self.recipe.seed},
            action=lambda out: start_student(self.recipe, self.catalogue, teacher, self.dataset(), out),
        )
        return folder / "model"

    def _train(
        self, name: str, start: Path, teacher: Callable[[], SoftLabels | PreTrainedModel] | None, after: list[str]
    ) -> Path:
        """The student trained from `start`, with a teacher or on the labels alone, on the same budget."""
        recipe = self.recipe
        folder = self.run_folder.stage(
            name,
            after=after,
            inputs={
                "train": recipe.train,
                "seed": recipe.seed,
                "prompt": prompt_template(recipe.data.prompt),
                "distill": recipe.distill if teacher is not None else None,
            },
            action=lambda out: train_student(
                start,
                load_tokenizer(start),
                self.dataset(),
                recipe.train,
                recipe.distill,
                teacher and teacher(),
                recipe.seed,
                out,
            ),
        )
        return folder / "model"

    def _exports(self, student: Path, candidates: list[Candidate]) -> dict[str, tuple[Path, str]]:
        """Each export's folder and how it stores weights, by the stage that makes it; ONNX comes last."""
        exports: dict[str, tuple[Path, str]] = {}
        if self.recipe.quantize is not None:
            folder = self.run_folder.stage(
                "quantize",
                after=["distill"],
                inputs={"quantize": self.recipe.quantize},
                action=lambda out: quantize_nf4(student, self.dataset(), out / "nf4"),
            )
            exports["quantize"] = (folder / "nf4", "nf4")
            candidates.append(Candidate("student, NF4", folder / "nf4", student))
        options = self.recipe.export.onnx
        if options is not None:
            folder = self.run_folder.stage(
                "onnx",
                after=["distill"],
                inputs={"onnx": options},
                action=lambda out: export_onnx(student, options, out / "onnx"),
            )
            exports["onnx"] = (folder / "onnx", options.precision)
            candidates.append(Candidate(f"student, ONNX {options.precision}", folder / "onnx", student))
        return exports

    def _evaluate(self, data: Path, candidates: list[Candidate], after: list[str]) -> Path:
        def evaluate(out: Path) -> None:
            evaluation = evaluate_models(self.recipe, self.catalogue, data, candidates, out, self.console)
            write_report(evaluation, out / "report")

        folder = self.run_folder.stage(
            "evaluate",
            after=after,
            inputs={"evaluate": self.recipe.evaluate, "seed": self.recipe.seed},
            action=evaluate,
        )
        evaluation = read_evaluation(folder / "report")
        details = detail_tables(evaluation) if self.recipe.student is None else []
        for table in [*score_tables(evaluation), *details]:
            self.console.print(table.rich())
        return folder / "report"

    def _publish(self, teacher: Path, data: Path, report: Path) -> None:
        folder = self.run_folder.stage(
            "publish",
            after=["evaluate"],
            inputs={},
            action=lambda out: publish_teacher(self.recipe, teacher, data, read_evaluation(report), out),
        )
        self.console.print(f"teacher: {folder}")

    def _bundle(self, student: Path, exports: dict[str, tuple[Path, str]], report: Path) -> None:
        evaluation = read_evaluation(report)
        if not evaluation.gate_passed:
            raise GateError(
                f"{self.recipe.name} is below its gate, so no new bundle was written: "
                f"{'; '.join(evaluation.failures)}. "
                "Train longer, take a larger student, or lower evaluate.gate."
            )
        kind_of = {"onnx": "onnx", "quantize": "nf4"}  # what is served first names the weights
        named = {kind: exports[stage] for stage, kind in kind_of.items() if stage in exports}
        lineage = {"recipe": msgspec.to_builtins(self.recipe), "stages": dict(self.run_folder.keys)}

        folder = self.run_folder.stage(
            "bundle",
            after=["evaluate"],
            inputs={},
            action=lambda out: write_bundle(
                self.recipe, self.catalogue, student, named, evaluation, report, lineage, out
            ),
        )
        self.console.print(f"bundle: {folder}")


def _load(checkpoint: Path, device_map: str | None = None) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto", device_map=device_map)


def read_evaluation(report: Path) -> Evaluation:
    """The evaluation a run wrote.

    Raises:
        FileNotFoundError: the run has not come to its evaluation yet.
    """
    return msgspec.json.decode((report / "report.json").read_bytes(), type=Evaluation)
