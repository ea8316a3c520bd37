"""The stages of a recipe in order. Each takes the folders of earlier ones and writes its own."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from accelerate import PartialState
from rich.console import Console
from transformers import AutoModelForCausalLM, PreTrainedModel

from bundle.rules import Catalogue, load_catalogue
from compress import ranks
from compress.assemble import write_bundle
from compress.card import publish_teacher
from compress.data.examples import read_examples
from compress.data.stage import data_stage
from compress.data.tokens import TokenDataset, load_tokenizer, make_prompt, prompt_template
from compress.distill import train_student
from compress.evaluate import Candidate, Evaluation, evaluate_models
from compress.evaluation.scores import Scores
from compress.evaluation.tables import detail_tables, score_tables
from compress.exporting import Exporting
from compress.gate import judged, require_passed
from compress.lineage import as_told
from compress.logits import SoftLabelKey, SoftLabels, require_room, soft_label_key, write_soft_labels
from compress.mishaps import LABELLING_KNOBS, memory_advice
from compress.recipe import Gate, OnPolicy, Recipe, TeacherAnswers, Train
from compress.report import Story, write_report
from compress.samples import SAMPLES_FILE, read_samples
from compress.stages import Run
from compress.student import start_student
from compress.teacher import checkpoint_fingerprint, prepare_teacher
from compress.teacher_answers import verdict_counts, write_teacher_answers
from compress.training_log import training_history


def run_recipe(recipe: Recipe, folder: Path, console: Console, rerun_from: str | None = None) -> None:
    """Go through every stage the recipe asks for; see `Run.stage` for what is skipped and resumed.

    Raises:
        RecipeError: the recipe names something that is not there or cannot work.
        GateError: the shipped student is below the recipe's gate; no bundle is written.
    """
    ranks.join()
    Pipeline(recipe, Run(folder, console, rerun_from), load_catalogue(), console).run()


class Prepared(NamedTuple):
    """What distilling starts from."""

    data: Path
    teacher: Path
    asked: Callable[[], SoftLabels | PreTrainedModel]  # what the student learns from: loaded when it is called
    made_by: list[str]  # the stages that made all of it


class Pipeline:
    """A recipe's stages in one run folder."""

    def __init__(self, recipe: Recipe, run: Run, catalogue: Catalogue, console: Console) -> None:
        self.recipe, self.run_folder, self.catalogue, self.console = recipe, run, catalogue, console

    def run(self) -> None:
        """Every stage the recipe asks for."""
        if self.recipe.student is None:
            data = data_stage(self.run_folder, self.recipe, self.catalogue)
            teacher = self._teacher(data)
            report = self._evaluate(data, [Candidate("teacher", teacher, teacher)], after=["data", "teacher"])
            self._publish(teacher, data, report)
            return
        distill, prepared = self.recipe.distill, self.prepare()
        data, teacher = prepared.data, prepared.teacher
        start = self._start(teacher)
        after = [*prepared.made_by, "student"]
        student = self._train("distill", start, self.recipe.train, self.dataset, prepared.asked, after)
        phases = {"distill": Candidate("student, distilled", student, student)}
        if distill.fine_tune is not None:
            student = self._train("fine_tune", student, distill.fine_tune, self.labelled, None, ["data", "distill"])
            phases["fine_tune"] = Candidate("student, fine-tuned", student, student)
        if distill.on_policy is not None:
            student = self._on_policy(student, teacher, distill.on_policy, [*prepared.made_by, *phases])
            phases["on_policy"] = Candidate("student, on-policy", student, student)
        candidates = [Candidate("teacher", teacher, teacher)]
        after = ["data", "teacher", *phases]
        if distill.baseline:
            plain = self._train("baseline", start, self.recipe.train, self.labelled, None, ["data", "student"])
            candidates.append(Candidate("student, labels only", plain, plain))
            after.append("baseline")
        candidates += phases.values()
        exporting = Exporting(self.recipe, self.run_folder, self.dataset, self.console)
        validation = functools.partial(self.read_dataset, data, student, "validation")
        exports = exporting.run(student, list(phases)[-1], teacher, validation, candidates)
        report = self._evaluate(data, candidates, after=[*after, *exports])
        self._bundle(student, exports, report)

    def prepare(self) -> Prepared:
        """The stages before the student: data, the teacher, its answers and its soft labels."""
        distill, data = self.recipe.distill, data_stage(self.run_folder, self.recipe, self.catalogue)
        teacher = self._teacher(data)
        # Student and teacher share a tokenizer, so all stages share one tokenised training split, made on demand.
        self.labelled = functools.cache(lambda: self.read_dataset(data, teacher))
        # What distilling learns from: the labelled examples, or those with the teacher's answers among them.
        self.dataset, made_by = self.labelled, ["data", "teacher"]
        if distill.teacher_answers is not None:
            answers = self._teacher_answers(data, teacher, distill.teacher_answers)
            self.dataset = functools.cache(lambda: self.read_dataset(answers, teacher))
            made_by.append("answers")
        if distill.teacher == "online":
            return Prepared(data, teacher, functools.partial(_load, teacher), made_by)
        return Prepared(data, teacher, self._logits(teacher, made_by), [*made_by, "logits"])

    def read_dataset(self, folder: Path, checkpoint: Path, split: str = "train") -> TokenDataset:
        """A split of the examples in a stage's folder, as token ids of a checkpoint's tokenizer."""
        tokenizer = load_tokenizer(checkpoint)
        prompt = make_prompt(self.recipe.data.prompt, self.catalogue, tokenizer)
        examples = read_examples(folder / f"{split}.jsonl")
        dataset = TokenDataset(examples, prompt, tokenizer.eos_token_id, self.recipe.data.max_tokens)
        self.console.print(dataset.summary)
        return dataset

    def _teacher(self, data: Path) -> Path:
        recipe = self.recipe
        # A teacher that is used as it is does not depend on the data.
        trained = recipe.teacher.train is not None
        inputs: dict[str, Any] = {"teacher": recipe.teacher, "seed": recipe.seed}
        if not trained:
            inputs["files"] = checkpoint_fingerprint(recipe.teacher)

        def prepare(out: Path) -> None:
            if recipe.teacher.scratch is not None:
                ranks.require_one("training a teacher from scratch")
            prepare_teacher(recipe, self.catalogue, data, out)

        folder = self.run_folder.stage(
            "teacher",
            after=["data"] if trained else [],
            inputs=inputs,
            action=prepare,
            together=trained,
        )
        return folder / "model"

    def _teacher_answers(self, data: Path, teacher: Path, options: TeacherAnswers) -> Path:
        recipe = self.recipe

        def write(out: Path) -> None:
            write_teacher_answers(
                teacher,
                read_examples(data / "train.jsonl"),
                make_prompt(recipe.data.prompt, self.catalogue, load_tokenizer(teacher)),
                self.catalogue,
                options,
                recipe.data.max_tokens,
                recipe.seed,
                out,
            )

        folder = self.run_folder.stage(
            "answers",
            after=["data", "teacher"],
            inputs={
                "teacher_answers": options,
                "prompt": prompt_template(recipe.data.prompt),
                "max_tokens": recipe.data.max_tokens,
                "seed": recipe.seed,
            },
            action=write,
        )
        counts = (f"{count} {verdict}" for verdict, count in verdict_counts(folder).items())
        self.console.print(f"teacher's answers: {', '.join(counts)}")
        return folder

    def _logits(self, teacher: Path, after: list[str]) -> Callable[[], SoftLabels]:
        distill = self.recipe.distill
        tokenizer = load_tokenizer(teacher)

        def key() -> SoftLabelKey:
            return soft_label_key(self.dataset(), teacher, distill, len(tokenizer))

        def write(out: Path) -> None:
            self.console.print(require_room(out / "labels", self.dataset(), key()))
            with memory_advice("soft labels", LABELLING_KNOBS):
                # One process may spread the teacher over all GPUs; of several each has its own.
                model = _load(teacher, device_map="auto" if ranks.count() == 1 else PartialState().device)
                write_soft_labels(model, self.dataset(), key(), tokenizer.pad_token_id, out / "labels")

        folder = self.run_folder.stage(
            "logits",
            after=after,
            inputs={
                "prompt": prompt_template(self.recipe.data.prompt),
                "temperature": distill.temperature_schedule or distill.temperature,
                "labels": distill.labels,
                "kept": distill.top_k if distill.labels == "top_k" else distill.samples,
            },
            action=write,
            together=True,
        )
        return lambda: SoftLabels(folder / "labels", key())

    def _start(self, teacher: Path) -> Path:
        folder = self.run_folder.stage(
            "student",
            after=["data", "teacher"],
            inputs={"student": self.recipe.student, "seed": self.recipe.seed},
            action=lambda out: start_student(self.recipe, self.catalogue, teacher, self.labelled(), out),
        )
        return folder / "model"

    def _train(
        self,
        name: str,
        start: Path,
        train: Train,
        dataset: Callable[[], TokenDataset],
        teacher: Callable[[], SoftLabels | PreTrainedModel] | None,
        after: list[str],
    ) -> Path:
        """The student trained from `start`, with a teacher or on the labels alone."""
        recipe = self.recipe
        # What comes before and after distilling is no part of it.
        distill = msgspec.structs.replace(recipe.distill, teacher_answers=None, fine_tune=None, on_policy=None)
        folder = self.run_folder.stage(
            name,
            after=after,
            inputs={
                "train": train,
                "seed": recipe.seed,
                "prompt": prompt_template(recipe.data.prompt),
                "distill": distill if teacher is not None else None,
            },
            action=lambda out: train_student(
                start, load_tokenizer(start), dataset(), train, distill, teacher and teacher(), recipe.seed, out, name
            ),
            together=True,
        )
        return folder / "model"

    def _on_policy(self, student: Path, teacher: Path, options: OnPolicy, after: list[str]) -> Path:
        def train(out: Path) -> None:
            ranks.require_one("distilling on-policy")
            from compress.on_policy import train_on_policy  # trl takes seconds to import

            train_on_policy(student, teacher, self.dataset(), options, self.recipe.seed, out)

        folder = self.run_folder.stage(
            "on_policy",
            after=after,
            inputs={
                "on_policy": options,
                "seed": self.recipe.seed,
                "prompt": prompt_template(self.recipe.data.prompt),
            },
            action=train,
        )
        return folder / "model"

    def _evaluate(self, data: Path, candidates: list[Candidate], after: list[str]) -> Path:
        asked = self.recipe.evaluate

        def report(evaluation: Evaluation, out: Path) -> None:
            trained = {each.name: training_history(each.folder) for each in candidates if each.folder == each.source}
            story = Story(
                histories={name: history for name, history in trained.items() if history},
                samples=read_samples(out / SAMPLES_FILE),
                recipe=as_told(self.recipe),
                lineage={"stages": dict(self.run_folder.keys)},
            )
            write_report(evaluation, out / "report", story)

        folder = self.run_folder.stage(
            "evaluate",
            after=after,
            inputs={
                "evaluate": msgspec.structs.replace(asked, gate=Gate()),
                "seed": self.recipe.seed,
                "measures": Scores.__struct_fields__,
            },
            action=lambda out: report(
                evaluate_models(self.recipe, self.catalogue, data, candidates, out, self.console), out
            ),
        )
        # Another gate judges the answers that were given: nobody is asked again.
        evaluation = judged(read_evaluation(folder / "report"), asked.gate)
        if ranks.number() == 0 and evaluation != read_evaluation(folder / "report"):
            report(evaluation, folder)
        ranks.meet()
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
        require_passed(self.recipe.name, evaluation.failures)
        # What is served first names the weights.
        kind_of = {"onnx": "onnx", "quantize": "nf4", "recover": "nf4", "vllm": "vllm", "cuda": "cuda"}
        named = {kind: exports[stage] for stage, kind in kind_of.items() if stage in exports}
        lineage = {"recipe": as_told(self.recipe), "stages": dict(self.run_folder.keys)}

        folder = self.run_folder.stage(
            "bundle",
            after=["evaluate"],
            inputs={"gate": self.recipe.evaluate.gate},
            action=lambda out: write_bundle(
                self.recipe, self.catalogue, student, named, evaluation, report, lineage, out
            ),
        )
        self.console.print(f"bundle: {folder}")


def _load(checkpoint: Path, device_map: str | torch.device | None = None) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto", device_map=device_map)


def read_evaluation(report: Path) -> Evaluation:
    """The evaluation a run wrote.

    Raises:
        FileNotFoundError: the run has not come to its evaluation yet.
    """
    return msgspec.json.decode((report / "report.json").read_bytes(), type=Evaluation)
