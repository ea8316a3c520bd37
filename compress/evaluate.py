"""What was kept and what was lost: every form of the student beside its teacher, on held-out projects."""

from pathlib import Path
from typing import NamedTuple

import msgspec
import onnx
from accelerate import init_empty_weights
from rich.console import Console
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from bundle.confidence import Calibration
from bundle.manifest import MODEL_GRAPH, TOKENIZER_FILE
from bundle.prompt import Prompt
from bundle.rules import Catalogue
from compress.data.examples import Example, read_examples
from compress.data.tokens import load_tokenizer, make_prompt
from compress.evaluation.answers import Said, answer_confidences, answer_text, read_said, shown, with_calibration
from compress.evaluation.baselines import always_clean, ruff_alone
from compress.evaluation.calibrate import choose_thresholds, expected_calibration_error, fit_calibrations, judge
from compress.evaluation.generate import Decoding, Question, answers_from_checkpoint, answers_from_onnx
from compress.evaluation.generated import Answers
from compress.evaluation.held_out import held_out_units
from compress.evaluation.scores import Scores, length_retention, score, term_retention
from compress.gate import Judged, judged
from compress.recipe import Recipe
from compress.samples import SAMPLES_FILE, sample_answers, write_samples
from compress.student import head_dimension

_TIMED_UNITS = 16


class Row(msgspec.Struct, frozen=True):
    """One line of the score table. `shown` is what is left at the default thresholds, for the last model."""

    model: str
    scores: Scores
    shown: Scores | None
    f1: float
    precision: float
    recall: float
    hygiene_f1: float
    length_retention: float
    term_retention: float
    parameters: int
    bytes_on_disk: int
    kv_bytes_per_token: int
    peak_memory_bytes: int
    tokens_per_second: float
    units_per_second: float


class Baseline(msgspec.Struct, frozen=True):
    """The scores of an answer that no model gave."""

    name: str
    scores: Scores


class Confidence(msgspec.Struct, frozen=True):
    """How the last model's confidences were calibrated, and how well that holds on the test projects.

    A rule without knots had too few findings on validation code to fit any.
    """

    knots: dict[str, Calibration]  # by rule
    validation_findings: int
    test_findings: int
    error_raw: float | None  # expected calibration error; None without findings
    error_calibrated: float | None


class Evaluation(Judged, frozen=True):
    """Everything report.json says."""

    name: str
    units: dict[str, int]
    rows: list[Row]
    baselines: list[Baseline]
    confidence: Confidence
    thresholds: dict[str, float]


def unmeasured(name: str) -> Evaluation:
    """Of a student that nobody evaluated: no scores, and no thresholds of its own."""
    return Evaluation(
        name=name,
        units={},
        rows=[],
        baselines=[],
        confidence=Confidence(knots={}, validation_findings=0, test_findings=0, error_raw=None, error_calibrated=None),
        thresholds={},
        retention={},
        gate={},
        gate_passed=True,
        failures=[],
    )


class Candidate(msgspec.Struct, frozen=True):
    """A model to measure: a transformers checkpoint, or an ONNX export beside the checkpoint it was made from."""

    name: str
    folder: Path
    source: Path  # a checkpoint folder with the tokenizer and the architecture

    @property
    def is_onnx(self) -> bool:
        return (self.folder / MODEL_GRAPH).is_file()


def evaluate_models(
    recipe: Recipe, catalogue: Catalogue, data: Path, candidates: list[Candidate], out: Path, console: Console
) -> Evaluation:
    """Ask every candidate about the same held-out units; the first is the teacher all are compared with.

    The last one's confidences are calibrated, and its thresholds chosen, on the validation projects. Answers
    are kept in `out` by model, so that a killed evaluation goes on with the next model.
    """
    teacher, shipped = candidates[0], candidates[-1]
    tokenizer = load_tokenizer(teacher.source)  # all candidates share it
    prompt = make_prompt(recipe.data.prompt, catalogue, tokenizer)
    longest = recipe.data.max_tokens - recipe.evaluate.max_answer_tokens

    def fits(example: Example) -> bool:
        return len(prompt.encode(example.unit)) <= longest

    def units(split: str, times: int = 1) -> list[Example]:
        wanted = msgspec.structs.replace(
            recipe.evaluate,
            natural_units=recipe.evaluate.natural_units * times,
            planted_units=recipe.evaluate.planted_units * times,
        )
        return held_out_units(read_examples(data / f"{split}.jsonl"), wanted, catalogue, recipe.seed, fits)

    examples = units("test")

    def ask(each: Candidate, about: list[Example]) -> Answers:
        return _answers(recipe, catalogue, each, tokenizer, prompt, about, out, console)

    def read(texts: list[str], answers: Answers, about: list[Example]) -> list[Said]:
        return [
            read_said(text, answer_confidences(answer, tokenizer.backend_tokenizer), example, catalogue, answer.aided)
            for text, answer, example in zip(texts, answers.generated, about, strict=True)
        ]

    answers = {each.name: ask(each, examples) for each in candidates}
    texts = {name: _texts(given, tokenizer) for name, given in answers.items()}
    said = {name: read(texts[name], given, examples) for name, given in answers.items()}
    unquantised = [each.name for each in candidates if each.folder == each.source]
    side_by_side = list(dict.fromkeys([teacher.name, unquantised[-1], shipped.name]))
    write_samples(sample_answers(examples, texts, said, side_by_side), out / SAMPLES_FILE)

    validation = units("validation", recipe.evaluate.validation_factor)
    renamed = msgspec.structs.replace(shipped, name=f"{shipped.name} validation")
    fitting = ask(renamed, validation)
    fitted = _fit(recipe, catalogue, validation, read(_texts(fitting, tokenizer), fitting, validation))
    calibrated = with_calibration(said[shipped.name], fitted.knots)
    kept = score(examples, shown(calibrated, fitted.thresholds), catalogue, recipe.seed)

    def row(each: Candidate) -> Row:
        scores = score(examples, said[each.name], catalogue, recipe.seed)
        return Row(
            model=each.name,
            scores=scores,
            shown=kept if each is shipped else None,
            f1=scores.injected.f1,
            precision=scores.injected.precision,
            recall=scores.injected.recall,
            hygiene_f1=scores.hygiene.f1,
            length_retention=length_retention(texts[teacher.name], texts[each.name]),
            term_retention=term_retention(examples, texts[teacher.name], texts[each.name]),
            parameters=_parameters(each.source),
            bytes_on_disk=_weight_bytes(each.folder),
            kv_bytes_per_token=_kv_bytes_per_token(each),
            peak_memory_bytes=answers[each.name].peak_memory_bytes,
            tokens_per_second=answers[each.name].tokens_per_second,
            units_per_second=answers[each.name].units_per_second,
        )

    rows = [row(each) for each in candidates]
    raw_on_test = judge(examples, said[shipped.name])
    evaluation = Evaluation(
        name=recipe.name,
        units={
            "natural": sum(example.planted is None for example in examples),
            "planted": sum(example.planted is not None for example in examples),
            "projects": len({example.project for example in examples}),
        },
        rows=rows,
        baselines=[
            Baseline("always clean", score(examples, always_clean(examples), catalogue, recipe.seed)),
            Baseline("ruff alone", score(examples, ruff_alone(examples, catalogue), catalogue, recipe.seed)),
        ],
        confidence=Confidence(
            knots=fitted.knots,
            validation_findings=fitted.findings,
            test_findings=len(raw_on_test),
            error_raw=expected_calibration_error(raw_on_test),
            error_calibrated=expected_calibration_error(judge(examples, calibrated)) if fitted.knots else None,
        ),
        thresholds=fitted.thresholds,
        retention=_retention(rows[0], rows[-1]),
        gate={},
        gate_passed=True,
        failures=[],
    )
    return judged(evaluation, recipe.evaluate.gate)


class _Fitted(NamedTuple):
    knots: dict[str, Calibration]
    thresholds: dict[str, float]
    findings: int


def _fit(recipe: Recipe, catalogue: Catalogue, validation: list[Example], said: list[Said]) -> _Fitted:
    """Calibration and default thresholds from what was said about the validation units."""
    raw = judge(validation, said)
    knots = fit_calibrations(raw, catalogue)
    thresholds = choose_thresholds(
        judge(validation, with_calibration(said, knots)),
        catalogue,
        recipe.evaluate.precision,
        clean_units=sum(not example.findings for example in validation),
        false_per_100_clean=recipe.evaluate.false_per_100_clean,
    )
    return _Fitted(knots, thresholds, len(raw))


def _retention(teacher: Row, shipped: Row) -> dict[str, float]:
    """The shipped student against its teacher, in the gate's own terms."""
    return {
        "f1_retention": shipped.f1 / teacher.f1 if teacher.f1 else 0.0,
        "hygiene_f1_retention": shipped.hygiene_f1 / teacher.hygiene_f1 if teacher.hygiene_f1 else 0.0,
        "answer_validity": shipped.scores.validity.value,
        "length_retention": shipped.length_retention,
        "term_retention": shipped.term_retention,
    }


def _answers(
    recipe: Recipe,
    catalogue: Catalogue,
    each: Candidate,
    tokenizer: PreTrainedTokenizerFast,
    prompt: Prompt,
    examples: list[Example],
    out: Path,
    console: Console,
) -> Answers:
    kept = out / f"answers-{each.name.replace(' ', '-')}.json"
    if kept.is_file():
        return msgspec.json.decode(kept.read_bytes(), type=Answers)
    questions = [Question(prompt.encode(example.unit), example.unit.texts) for example in examples]
    decoding = Decoding(
        tokenizer_file=each.source / TOKENIZER_FILE,
        rules=catalogue.ids,
        vocab_size=AutoConfig.from_pretrained(each.source).vocab_size,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_answer_tokens=recipe.evaluate.max_answer_tokens,
        max_tokens_per_batch=recipe.evaluate.max_tokens_per_batch,
        timed=_TIMED_UNITS,
    )
    with console.status(f"answers of {each.name}"):
        if each.is_onnx:
            head_dim = head_dimension(AutoConfig.from_pretrained(each.source))
            answers = answers_from_onnx(each.folder, head_dim, questions, decoding)
        else:
            answers = answers_from_checkpoint(each.folder, questions, decoding)
    staged = kept.with_suffix(".tmp")
    staged.write_bytes(msgspec.json.encode(answers))
    staged.replace(kept)
    return answers


def _texts(answers: Answers, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    return [answer_text(each, tokenizer.backend_tokenizer, tokenizer.eos_token_id) for each in answers.generated]


def _parameters(checkpoint: Path) -> int:
    """Of the architecture: a quantised form has as many as the checkpoint it was made from."""
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(checkpoint))
    model.tie_weights()
    return model.num_parameters()


def _weight_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for pattern in ("*.safetensors", "*.onnx*") for file in folder.glob(pattern))


def _kv_bytes_per_token(each: Candidate) -> int:
    """Keys and values of all layers for one token: as an ONNX graph declares them, else in 16 bits."""
    config = AutoConfig.from_pretrained(each.source)
    numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * head_dimension(config)
    if not each.is_onnx:
        return numbers * 2
    graph = onnx.load(each.folder / MODEL_GRAPH, load_external_data=False).graph
    kept = next(value for value in graph.input if value.name.startswith("past_key_values."))
    return numbers * onnx.helper.tensor_dtype_to_np_dtype(kept.type.tensor_type.elem_type).itemsize
